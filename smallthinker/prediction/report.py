"""A prediction for people and for programs. Prints nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from smallthinker import host
from smallthinker.figures import rounded
from smallthinker.memory_plan import MIB
from smallthinker.prediction.advice import Change
from smallthinker.prediction.needs import PlannedModel, Process
from smallthinker.prediction.predict import Prediction, Speed

# Four of five predicted decode speeds were within this share of the measured ones: docs/plan.md.
ERROR_BAND = 0.3


@dataclass(frozen=True)
class Budgets:
    """floor: the model runs; recommended: at most of the full speed; full: every expert stays in memory."""

    floor_bytes: int
    recommended_bytes: int | None
    full_bytes: int


@dataclass(frozen=True)
class Report:
    """sources: what the prediction was made from, by part. changes: None where not asked for. others_cores: of the
    processors, how many other programs and machines took while it was measured."""

    model: PlannedModel
    process: Process
    budgets: Budgets
    predictions: tuple[Prediction, ...]
    changes: tuple[Change, ...] | None
    sources: dict[str, str]
    prompt_tokens: int
    answer_tokens: int
    others_cores: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """For `--json`; seconds, bytes, tokens per second."""
        return {
            "model": self.model.name,
            "quant": self.model.quant,
            "dense_bytes": self.model.dense_bytes,
            "experts_bytes": self.model.experts_bytes,
            "record_bytes": self.model.record_bytes,
            "context": self.process.context,
            "kv": self.process.kv,
            "prompt_tokens": self.prompt_tokens,
            "answer_tokens": self.answer_tokens,
            **asdict(self.budgets),
            "runs": bool(self.predictions),
            "error_band": ERROR_BAND,
            "budgets": [{"plan": asdict(p.plan)} | p.to_dict() for p in self.predictions],
            "changes": None if self.changes is None else [asdict(change) for change in self.changes],
            "sources": self.sources,
            "others_cores": self.others_cores,
        }

    def rows(self) -> list[dict[str, Any]]:
        """For `--csv`: each budget's first answer, and the later ones."""
        model = {"model": self.model.name, "quant": self.model.quant, "context": self.process.context}
        asked = {"prompt_tokens": self.prompt_tokens, "answer_tokens": self.answer_tokens}
        return [
            model
            | {"memory_bytes": p.plan.budget_bytes, "slots": p.plan.slots, "num_experts": p.plan.num_experts}
            | asked
            | {"answer": answer, "load_sec": p.load_sec, "ttft_sec": ttft_sec}
            | {"prefill": prefill.to_dict(), "decode": decode.to_dict()}
            for p in self.predictions
            for answer, ttft_sec, prefill, decode in (
                ("first", p.first_ttft_sec, p.first_prefill, p.first_decode),
                ("later", p.later_ttft_sec, p.later_prefill, p.later_decode),
            )
        ]

    def text(self) -> str:
        busy = host.busy_note(self.others_cores)  # first: whoever reads a disk's figure has seen it
        parts = [self._head()] if busy is None else [busy, self._head()]
        if len(self.predictions) == 1:
            (prediction,) = self.predictions
            parts += [prediction.plan.table(), self._speeds(prediction)]
        elif self.predictions:
            parts.append(self._table())
        if self.changes is not None:
            parts.append(_changes_text(self.changes))
        if self.sources:
            parts.append("predicted from\n" + "\n".join(f"  {part:<10}{what}" for part, what in self.sources.items()))
        return "\n\n".join(parts)

    def _head(self) -> str:
        model, budgets = self.model, self.budgets
        recommended = "" if budgets.recommended_bytes is None else f"recommended {_mib(budgets.recommended_bytes)}, "
        return (
            f"{model.name}: {model.quant}, {_mib(model.dense_bytes)} of dense weights and "
            f"{_mib(model.experts_bytes)} of {model.config.num_records:,} {model.config.records_are}; "
            f"context {self.process.context}, {self.process.kv} keys and values\n"
            f"memory: floor {_mib(budgets.floor_bytes)}, {recommended}full {_mib(budgets.full_bytes)}"
        )

    def _speeds(self, p: Prediction) -> str:
        what = f"prompt of {self.prompt_tokens}, answer of {self.answer_tokens}"
        lines = [
            f"{what:<28}{'first answer':>26}{'later ones':>26}",
            _row("time to first token", f"{rounded(p.first_ttft_sec)} s", f"{rounded(p.later_ttft_sec)} s"),
            _row("prefill, tokens/s", rounded(p.first_prefill.tok_per_sec), rounded(p.later_prefill.tok_per_sec)),
            _row("decode, tokens/s", _band(p.first_decode), _band(p.later_decode)),
            _row("hit rate", f"{p.first_decode.hit_rate:.0%}", f"{p.later_decode.hit_rate:.0%}"),
            _row("read per token", _read(p.first_decode), _read(p.later_decode)),
            _row("roofline of decoding", _roof(p.first_decode), _roof(p.later_decode)),
            _row("roofline of prefill", _roof(p.first_prefill), _roof(p.later_prefill)),
            f"loading takes {rounded(p.load_sec)} s before the first; that one finds no expert in memory",
        ]
        return "\n".join("  " * (i > 0) + line for i, line in enumerate(lines))

    def _table(self) -> str:
        records = self.model.config.records_are.split()[0]
        lines = [
            f"{'memory':>10}{records:>16}{'TTFT first, later':>20}{'decode first, later':>21}{'hit rate':>10}"
            f"{'MiB/token':>11}  roofline"
        ]
        for p in self.predictions:
            first, later = p.first_decode, p.later_decode
            lines.append(
                f"{_mib(p.plan.budget_bytes):>10}{f'{p.plan.slots} of {p.plan.num_experts}':>16}"
                f"{f'{rounded(p.first_ttft_sec)}, {rounded(p.later_ttft_sec)} s':>20}"
                f"{f'{rounded(first.tok_per_sec)}, {rounded(later.tok_per_sec)}':>21}{later.hit_rate:>10.0%}"
                f"{rounded(later.bytes_read_per_token / MIB):>11}  {_roof(later)}"
            )
        return "\n".join([*lines, f"decode in tokens/s, each within about {ERROR_BAND:.0%}".replace("%", " %")])


def _changes_text(changes: Sequence[Change]) -> str:
    if not changes:
        return "nothing that could be set, and no faster disk, is predicted to help"
    lines = ["what would help most, with the decode speed of later answers"]
    lines += [f"  {c.what:<44}{rounded(c.tok_per_sec):>8} tokens/s  {c.gain:+.0%}".replace("%", " %") for c in changes]
    return "\n".join(lines)


def _row(name: str, first: str, later: str) -> str:
    return f"{name:<26}{first:>26}{later:>26}"


def _band(speed: Speed) -> str:
    low, high = (speed.tok_per_sec / (1 + ERROR_BAND), speed.tok_per_sec * (1 + ERROR_BAND))
    return f"{rounded(speed.tok_per_sec)} ({rounded(low)} to {rounded(high)})"


def _read(speed: Speed) -> str:
    return f"{rounded(speed.bytes_read_per_token / MIB)} MiB"


def _roof(speed: Speed) -> str:
    return f"{rounded(speed.roofs.tok_per_sec)} ({speed.roofs.limit})"


def _mib(nbytes: int) -> str:
    return f"{nbytes / MIB:,.0f} MiB"
