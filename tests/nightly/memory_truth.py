"""The budget is a ceiling: runs of four families under the kernel's limit, at budgets from the floor that the refusal
names to where everything fits. Needs root and memory cgroups; some twenty minutes.

    python tests/nightly/memory_truth.py FOLDER          # makes the models there, 1 GB
    python tests/nightly/memory_truth.py FOLDER --store STORE --context 4096

A run that is killed, fails, meets the limit or takes more than its budget is a failure, and the script's exit code 1.
Prints a line for each failure, a table, and one line of JSON at the end.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from shapes import CONTEXT, SHAPES, make_shape

from smallthinker.benchmark.cgroup import joining, memory_limit
from smallthinker.expert_store.store import Store

MIB = 1 << 20
NEW_TOKENS = 8
COLD_EVERY = 4  # of so many budgets one starts from a cold page cache, the floor among them
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 40}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Case:
    """One model and a way to run it. prompt_tokens: of bytes, each a token."""

    name: str
    store: Path
    prompt_tokens: int
    context: int
    options: tuple[str, ...] = ()

    def command(self, memory: str) -> list[str]:
        command = [sys.executable, "-m", "smallthinker", "run", "-m", str(self.store), "--memory", memory, "--raw"]
        command += ["--context", str(self.context), "--seed", "1", "--max-tokens", str(NEW_TOKENS), "--ignore-eos"]
        return [*command, "--stats", "json", *self.options, "-"]

    def floor_mib(self) -> int:
        """As the refusal of next to nothing names it; with a draft model, which is refused first, by two refusals."""
        floor = 20
        while True:
            command = self.command(f"{floor}MiB")
            ended = subprocess.run(command, input="x", capture_output=True, text=True, check=False)
            if ended.returncode == 0 and floor > 20:
                return floor
            named = re.search(r"floor of (\d+) MiB", ended.stderr) or re.search(r"lacks (\d+) MiB", ended.stderr)
            if not named:
                raise SystemExit(f"{self.name}: expected a refusal that names a floor, found {ended.stderr}")
            floor = int(named[1]) + (floor if "lacks" in named[0] else 0)


@dataclass(frozen=True)
class Ran:
    case: str
    prompt_tokens: int
    budget_mib: int
    is_cold: bool
    code: int
    peak_bytes: int
    ceiling_hits: int
    says: str

    @property
    def is_killed(self) -> bool:
        return self.code < 0 or self.code == 137

    @property
    def failed(self) -> bool:
        return self.code != 0 or self.ceiling_hits > 0 or self.peak_bytes > self.budget_mib * MIB


def budgets(floor_mib: int, whole_mib: int, count: int) -> list[int]:
    """The floor, and from there in growing steps to where everything fits."""
    span, last = max(whole_mib - floor_mib, count - 1), count - 1
    return sorted({floor_mib + max(i, round(span * (i / last) ** 2)) for i in range(count)} if last else {floor_mib})


def run(case: Case, budget_mib: int, *, is_cold: bool) -> Ran:
    if is_cold:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    text = "All work and no play. " * (case.prompt_tokens // 22 + 1)
    with memory_limit(budget_mib * MIB) as group:
        command = joining([group.folder], case.command(f"{budget_mib}MiB"))
        ended = subprocess.run(
            command, input=text[: case.prompt_tokens], capture_output=True, text=True, errors="replace", check=False
        )
        says = ended.stderr.strip().splitlines()[-1][:300] if ended.returncode and ended.stderr.strip() else ""
        return Ran(
            case.name,
            case.prompt_tokens,
            budget_mib,
            is_cold,
            ended.returncode,
            group.peak_bytes(),
            group.ceiling_hits(),
            says,
        )


def cases_of(name: str, store: Path, context: int, more: dict[str, tuple[str, ...]]) -> Iterator[Case]:
    """A short prompt, one of half a context, one that leaves room for the answer alone; and with other options."""
    for prompt_tokens in (16, context // 2, context - NEW_TOKENS):
        yield Case(name, store, prompt_tokens, context)
    for option, words in more.items():
        yield Case(f"{name} {option}", store, context // 2, context, words)


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs under the kernel's limit, from the floor to where all fits.")
    parser.add_argument("folder", type=Path, help="where the models are made")
    parser.add_argument("--budgets", type=int, default=24, metavar="N")
    parser.add_argument("--family", action="append", choices=[*SHAPES], help="instead of all; may be repeated")
    parser.add_argument("--store", type=Path, help="a store of one's own instead of the families")
    parser.add_argument("--context", type=int, default=CONTEXT)
    parser.add_argument("--more", action="store_true", help="with a schema and a draft model, too, instead of plain")
    args = parser.parse_args()
    schema, draft = args.folder / "schema.json", args.folder / "draft"
    args.folder.mkdir(parents=True, exist_ok=True)
    schema.write_text(json.dumps(SCHEMA))
    ran: list[Ran] = []
    names: Sequence[str] = [args.store.name] if args.store else args.family or [*SHAPES]
    for name in names:
        store = args.store or make_shape(name, args.folder)
        more = {"schema": ("--schema", str(schema))}
        if not args.store:
            more["draft"] = ("--draft", str(make_draft(args.folder, draft)), "--speculation", "always")
        cases = list(cases_of(name, store, args.context, more))
        for case in cases[3:] if args.more else cases[:3]:
            floor_mib = case.floor_mib()
            with Store.open(store) as opened:
                whole = opened.num_experts * opened.record_bytes // MIB + floor_mib + 64
            for i, budget_mib in enumerate(budgets(floor_mib, whole, args.budgets)):
                one = run(case, budget_mib, is_cold=i % COLD_EVERY == 0)
                ran.append(one)
                if one.failed:
                    print(f"FAILED: {one}", flush=True)
            print(row([one for one in ran if (one.case, one.prompt_tokens) == (case.name, case.prompt_tokens)]))
            sys.stdout.flush()
    failed = [asdict(one) for one in ran if one.failed]
    print(row(ran))
    total = {
        "runs": len(ran),
        "failures": len(failed),
        "ceiling_hits": sum(one.ceiling_hits for one in ran),
        "kills": sum(one.is_killed for one in ran),
        "least_room_mib": round(min(one.budget_mib - one.peak_bytes / MIB for one in ran), 1),
    }
    print(json.dumps(total))
    sys.exit(1 if failed else 0)


def make_draft(folder: Path, draft: Path) -> Path:
    """A model of the same vocabulary and 30 MiB."""
    if not draft.exists():
        from smallthinker.expert_store.synthetic.synth import synth

        config, quant = SHAPES["qwen3_moe"]
        small = {"hidden_size": 256, "num_hidden_layers": 2, "num_experts": 8, "num_experts_per_tok": 2}
        path = folder / "draft.json"
        path.write_text(json.dumps(config | small))
        synth(str(path), draft, quant)
    return draft


def row(ran: Sequence[Ran]) -> str:
    """Of a table: model, prompt, budgets, least room below the budget, ceiling hits, kills, failures."""
    first = ran[0]
    is_one = all((one.case, one.prompt_tokens) == (first.case, first.prompt_tokens) for one in ran)
    name, tokens = (first.case, str(first.prompt_tokens)) if is_one else ("all", "")
    sizes = [one.budget_mib for one in ran]
    room = min(one.budget_mib - one.peak_bytes / MIB for one in ran)
    return (
        f"| {name} | {tokens} | {len(ran)} | {min(sizes)} to {max(sizes)} MiB | {room:.1f} MiB | "
        f"{sum(one.ceiling_hits for one in ran)} | {sum(one.is_killed for one in ran)} | "
        f"{sum(one.failed for one in ran)} |"
    )


if __name__ == "__main__":
    main()
