"""A whole benchmark: every cell so many times, in turns, each run a process of its own, each result kept at once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from smallthinker.benchmark.bound import best_hit_rate, decode_use
from smallthinker.benchmark.cgroup import MemoryGroup, joining, memory_limit
from smallthinker.benchmark.disk import make_cold, random_bytes_per_sec
from smallthinker.benchmark.matrix import RAW, STARTS, BenchAnswer, BenchSettings, Cell
from smallthinker.benchmark.results import Results, Row, routing_file
from smallthinker.errors import ResultsError
from smallthinker.expert_store.device.disk_profile import DiskProfile, load_profile
from smallthinker.expert_store.device.real_throttle import real_throttle
from smallthinker.expert_store.device.storage_profile import StorageProfile
from smallthinker.expert_store.store import Store
from smallthinker.figures import size_text
from smallthinker.memory_plan import MIB
from smallthinker.router.trace import Trace, load_trace

# What ends a run and would end it every time: such a cell is recorded as impossible.
_HOPELESS = ("MemoryBudgetError", "ContextLengthError")
_KILLED = 137, -9  # by the kernel, at a hard limit
_DIGITS = 6
# Default budgets: the floor and this share of all experts.
_SHARES = (0.15, 0.4, 1.0)


class Watch(Protocol):
    """Who is told how far a benchmark has got."""

    def started(self, what: str) -> None: ...

    def ended(self, measured: bool) -> None:
        """One run is over, or was there already."""
        ...

    def notice(self, text: str) -> None: ...


@dataclass(frozen=True)
class Series:
    """What is to be measured. `profiles` by name; None is the real disk. `answers` by prompt length, two of each."""

    store: Path
    settings: BenchSettings
    cells: list[Cell]
    profiles: dict[str, StorageProfile | None]
    answers: dict[int, list[BenchAnswer]]
    repeats: int

    def steps(self) -> int:
        return len(self.answers) + self.repeats * len(self.cells)

    def run(self, results: Results, watch: Watch) -> None:
        """Measure what the results lack. Raises ResultsError where a run dies, RequestError for a limit that can't be
        had; what was measured until then is kept."""
        traces = {}
        for prompt_tokens in self.answers:
            traces[prompt_tokens] = self._routing(prompt_tokens, results, watch)
        hopeless = set()
        with Store.open(self.store) as store:
            for repeat in range(self.repeats):
                for cell in self.cells:  # in turns: a disk shared with others changes from minute to minute
                    if results.has_run(cell, repeat) or cell in hopeless:
                        watch.ended(measured=False)
                        continue
                    watch.started(cell_name(cell))
                    row = self._run(store, cell, repeat, traces[cell.prompt_tokens])
                    if row["kind"] == "failed":
                        hopeless.add(cell)
                        watch.notice(f"{cell_name(cell)}: {row['error']}")
                    if row not in results.of_kind("failed"):  # said already, by an earlier part of this benchmark
                        results.append(row)
                    watch.ended(measured=True)

    def _routing(self, prompt_tokens: int, results: Results, watch: Watch) -> Trace:
        """Which experts the answers' tokens use, recorded once: it is the same at every budget and on every disk."""
        path = routing_file(results.path.parent, prompt_tokens)
        if not (path.exists() and results.routing(prompt_tokens)):
            watch.started(f"routing of {prompt_tokens} + {self.settings.tokens} tokens")
            found = self._child(self._job(None, prompt_tokens) | {"trace": str(path)}, [])
            if "error" in found:
                raise ResultsError(f"recording the routing: {found['message']}")
            trace = load_trace(path)
            use = [[round(share, 4) for share in layer] for layer in decode_use(trace, prompt_tokens).tolist()]
            results.keep(lambda row: row["kind"] != "routing" or row["prompt_tokens"] != prompt_tokens)
            tokens = len(STARTS) * self.settings.tokens
            results.append({"kind": "routing", "prompt_tokens": prompt_tokens, "tokens": tokens, "use": use})
            watch.ended(measured=True)
            return trace
        watch.ended(measured=False)
        return load_trace(path)

    def _run(self, store: Store, cell: Cell, repeat: int, trace: Trace) -> Row:
        asked = {"memory_bytes": cell.memory_bytes, "profile": cell.profile, "prompt_tokens": cell.prompt_tokens}
        before = random_bytes_per_sec(store, load_profile(store) or DiskProfile())
        make_cold(self.store)
        limits: Row = {"limit_peak_bytes": None, "limit_ceiling_hits": None}
        with ExitStack() as resources:
            groups: list[Path] = []
            group: MemoryGroup | None = None
            if self.settings.limit:
                group = resources.enter_context(memory_limit(cell.memory_bytes))
                groups.append(group.folder)
            profile = self.profiles[cell.profile]
            if profile is not None and self.settings.throttle == "kernel":
                resources.enter_context(real_throttle(profile, self.store))  # this process, and so its child
            found = self._child(self._job(cell, cell.prompt_tokens), groups)
            if group is not None:
                limits = {"limit_peak_bytes": group.peak_bytes(), "limit_ceiling_hits": group.ceiling_hits()}
        if "error" in found:
            return {"kind": "failed", **asked, "error": found["message"][:300]}
        used = store.config.used_of_layers
        certain = 1 - trace.layers * trace.experts_per_token / sum(used)  # of what a token uses
        for n, answer in enumerate(found["answers"]):
            of_routed = best_hit_rate(trace, n, cell.prompt_tokens, answer["most_slots"])
            answer["best_hit_rate"] = (
                of_routed + (1 - of_routed) * certain
            )  # what isn't traced could all have been there
        row = {"kind": "run", **asked, "repeat": repeat, "disk_bytes_per_sec_before": before, **limits, **found}
        rounded: Row = _rounded(row)
        return rounded

    def _job(self, cell: Cell | None, prompt_tokens: int, memory_bytes: int | None = None) -> Row:
        """What a child is told. Without a cell: that much memory, or all there is, and the real disk."""
        storage = None if cell is None else self.profiles[cell.profile]
        is_emulated = self.settings.throttle == "emulated"
        answers = self.answers[prompt_tokens]
        options = replace(
            self.settings.options,
            memory=memory_bytes if cell is None else cell.memory_bytes,
            context=max(len(prompt) + len(following) for prompt, following in answers),
            storage=storage if is_emulated else None,
            hot_set=False,
        )
        return {
            "store": str(self.store),
            "options": options.to_dict(),
            "throttle": None if storage is None or is_emulated else storage.to_dict(),
            "answers": answers,
            "greedy": self.settings.greedy,
            "trace": None,
        }

    def _child(self, job: Row, groups: list[Path]) -> Row:
        """The result of a job, or {"error", "message"} of a cell that is impossible. Raises ResultsError for others."""
        command = joining(groups, [sys.executable, "-m", "smallthinker.benchmark.measure"])
        done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=False)
        if done.returncode in _KILLED and groups:
            return {"error": "MemoryBudgetError", "message": "ended by the kernel at the memory limit"}
        if done.returncode or not done.stdout:
            last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise ResultsError(f"a run ended early: {last}")
        found: Row = json.loads(done.stdout.splitlines()[-1])
        if found.get("error") not in (None, *_HOPELESS):
            raise ResultsError(f"a run ended early: {found['message']}")
        return found

    def floor_bytes(self) -> int:
        """The least budget for the longest prompt, as a refusal names it."""
        longest = max(self.answers)
        refusal = self._child(self._job(None, longest, memory_bytes=1), [])
        floor = re.search(r"floor of (\d+) MiB", refusal.get("message", ""))
        if floor is None:
            raise ResultsError(
                f"expected a budget's floor, found: {refusal.get('message', 'none')}; give budgets with `memory`"
            )
        return int(floor[1]) * MIB


def default_budgets(store: Path, floor_bytes: int) -> list[int]:
    """From barely running to everything in memory, in whole MiB, from 256 MiB on in steps of 16."""
    with Store.open(store) as opened:
        experts_bytes = opened.num_experts * opened.record_bytes
    exact = [floor_bytes + share * experts_bytes for share in _SHARES]
    steps = [MIB if size < 256 * MIB else 16 * MIB for size in exact]
    return [int(-(-size // step)) * step for size, step in zip(exact, steps, strict=True)]


def cell_name(cell: Cell) -> str:
    """For people."""
    disk = "the real disk" if cell.profile == RAW else cell.profile
    return f"{size_text(cell.memory_bytes)}, {disk}, prompt of {cell.prompt_tokens}"


def _rounded(value: Any) -> Any:
    """Six digits of every figure are more than a clock can tell."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
