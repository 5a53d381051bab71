"""Medians and spreads of a results file: one summary for each cell and start. Every view of results is a view of these.

Pure functions. Speeds are tokens per second, times seconds.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from smallthinker.benchmark.matrix import STARTS, Cell, Start
from smallthinker.benchmark.results import Results, Row, cell_of

# Kernels by what they are for. What a later version adds and this one doesn't know is "other kernels".
PARTS: dict[str, tuple[str, ...]] = {
    "experts": ("experts",),
    "attention": ("qkv_proj", "rope", "rope_angles", "kv_append", "attention", "o_proj"),
    "head": ("linear",),
    "router and norms": ("router", "norms", "rmsnorm", "combine", "embed"),
}
OTHER_KERNELS, SAMPLING, PYTHON, WAITING = "other kernels", "sampling", "Python", "waiting for the disk"
PART_NAMES = (*PARTS, OTHER_KERNELS, SAMPLING, PYTHON, WAITING)


@dataclass(frozen=True)
class Spread:
    """Of several runs: the median, the least and the most."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def least(self) -> float:
        return min(self.values)

    @property
    def most(self) -> float:
        return max(self.values)

    def to_dict(self) -> dict[str, Any]:
        return {"median": self.median, "least": self.least, "most": self.most, "runs": len(self.values)}


@dataclass(frozen=True)
class CellSummary:
    """All runs of one cell that began alike.

    *_ceiling: the rooflines of the very runs. hit_rate: of decoding; best_hit_rate: Belady's bound for it. parts: where
    a decoded token's time goes, seconds by PART_NAMES, of the run with the median speed.
    """

    cell: Cell
    start: Start
    decode: Spread
    prefill: Spread
    ttft: Spread
    decode_ceiling: float
    prefill_ceiling: float
    ttft_floor: float
    decode_bound: str
    prefill_bound: str
    hit_rate: float
    best_hit_rate: float
    read_bytes_per_token: float
    parts: dict[str, float]
    load_sec: float
    slots: int
    peak_memory_bytes: int
    limit_peak_bytes: int | None
    ceiling_hits: int | None

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        plain = {key: value for key, value in asdict(self).items() if key not in ("cell", "decode", "prefill", "ttft")}
        spreads = {
            "decode_tok_per_sec": self.decode.to_dict(),
            "prefill_tok_per_sec": self.prefill.to_dict(),
            "ttft_sec": self.ttft.to_dict(),
        }
        return self.cell._asdict() | spreads | plain


def summarise(results: Results) -> list[CellSummary]:
    """In the order of profile, prompt length, budget and start."""
    runs: dict[tuple[Cell, Start], list[tuple[Row, Row]]] = {}
    for row in results.of_kind("run"):
        for answer in row["answers"]:
            runs.setdefault((cell_of(row), answer["start"]), []).append((row, answer))
    profiles = list(dict.fromkeys(cell.profile for cell, _ in runs))
    keys = sorted(
        runs,
        key=lambda key: (
            profiles.index(key[0].profile), key[0].prompt_tokens, key[0].memory_bytes, STARTS.index(key[1]),
        ),
    )  # fmt: skip
    return [_summary(cell, start, runs[cell, start]) for cell, start in keys]


def _summary(cell: Cell, start: Start, runs: Sequence[tuple[Row, Row]]) -> CellSummary:
    answers = [answer for _, answer in runs]

    def median(values: Sequence[float]) -> float:
        return float(statistics.median(values))

    prefill_ceiling = median([a["prefill"]["ceiling_tok_per_sec"] for a in answers])
    middle = sorted(answers, key=lambda a: a["decode_tok_per_sec"])[(len(answers) - 1) // 2]
    peaks = [row["limit_peak_bytes"] for row, _ in runs if row["limit_peak_bytes"] is not None]
    hits = [row["limit_ceiling_hits"] for row, _ in runs if row["limit_ceiling_hits"] is not None]
    return CellSummary(
        cell=cell,
        start=start,
        decode=Spread(tuple(a["decode_tok_per_sec"] for a in answers)),
        prefill=Spread(tuple(cell.prompt_tokens / a["ttft_sec"] for a in answers)),
        ttft=Spread(tuple(a["ttft_sec"] for a in answers)),
        decode_ceiling=median([a["decode"]["ceiling_tok_per_sec"] for a in answers]),
        prefill_ceiling=prefill_ceiling,
        ttft_floor=cell.prompt_tokens / prefill_ceiling if prefill_ceiling else 0.0,
        decode_bound=statistics.mode(a["decode"]["ceiling_bound"] for a in answers),
        prefill_bound=statistics.mode(a["prefill"]["ceiling_bound"] for a in answers),
        hit_rate=median([hit_rate(a["decode"]) for a in answers]),
        best_hit_rate=median([a["best_hit_rate"] for a in answers]),
        read_bytes_per_token=median([read_bytes(a["decode"]) / max(1, a["decode"]["tokens"]) for a in answers]),
        parts=token_parts(middle),
        load_sec=median([row["load_sec"] for row, _ in runs]),
        slots=round(median([row["slots"] for row, _ in runs])),
        peak_memory_bytes=max(a["peak_memory_bytes"] for a in answers),
        limit_peak_bytes=max(peaks, default=None),
        ceiling_hits=max(hits, default=None),
    )


def hit_rate(phase: Row) -> float:
    """Of the experts that were asked for, those that had been kept; guesses that were right are no hits."""
    requests = phase["hits"] + phase["guessed"] + phase["late"] + phase["misses"]
    return phase["hits"] / requests if requests else 0.0


def read_bytes(phase: Row) -> float:
    return float(phase["certain_bytes"] + phase["useful_bytes"] + phase["wasted_bytes"])


def token_parts(answer: Row) -> dict[str, float]:
    """Seconds of a decoded token by PART_NAMES."""
    phase = answer["decode"]
    tokens = max(1, phase["tokens"])
    kernels: Row = phase["kernels_sec"]
    known = {name for names in PARTS.values() for name in names}
    seconds = {part: sum(kernels.get(name, 0.0) for name in names) for part, names in PARTS.items()}
    seconds[OTHER_KERNELS] = sum(sec for name, sec in kernels.items() if name not in known)
    seconds[SAMPLING] = answer["sampling_sec"]
    seconds[PYTHON] = max(0.0, phase["python_sec"])
    seconds[WAITING] = phase["waiting_sec"]
    return {part: sec / tokens for part, sec in seconds.items()}


def cliffs(summaries: Sequence[CellSummary]) -> list[tuple[CellSummary, CellSummary]]:
    """Pairs of neighbouring budgets of which the larger is slower, by more than the runs differ among themselves."""
    rows: dict[tuple[str, int, Start], list[CellSummary]] = {}
    for summary in summaries:
        rows.setdefault((summary.cell.profile, summary.cell.prompt_tokens, summary.start), []).append(summary)
    pairs = itertools.chain.from_iterable(itertools.pairwise(row) for row in rows.values())
    return [(less, more) for less, more in pairs if more.decode.most < less.decode.least]
