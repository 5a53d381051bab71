"""One run, in a process of its own: a cold answer, a warm one, and where their time went.

`python -m smallthinker.benchmark.measure` takes a job as JSON on standard input and prints its result as JSON. So the
peak of memory is this run's alone, and nothing of an earlier run is left in the process.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from smallthinker import host
from smallthinker.benchmark.matrix import STARTS, BenchAnswer
from smallthinker.calibration.tracing import record, whole_layers
from smallthinker.engine import Engine
from smallthinker.errors import SmallThinkerError
from smallthinker.expert_store.device.storage_profile import StorageProfile
from smallthinker.measures.profile import Clocks, Stopwatch
from smallthinker.measures.roofline import Phase
from smallthinker.options import EngineOptions
from smallthinker.router.trace import save_trace

Row = dict[str, Any]


def main() -> None:
    job = json.load(sys.stdin)
    try:
        with Engine(job["store"], EngineOptions.from_dict(job["options"])) as engine:
            answers = [BenchAnswer(*answer) for answer in job["answers"]]
            throttle = None if job["throttle"] is None else StorageProfile.from_dict(job["throttle"])
            result = trace(engine, answers, job) if job["trace"] else run(engine, answers, job["greedy"], throttle)
    except SmallThinkerError as e:
        result = {"error": type(e).__name__, "message": " ".join(str(e).split())}
    print(json.dumps(result))


def disk_bytes_per_sec(engine: Engine, throttle: StorageProfile | None) -> tuple[float | None, float | None]:
    """What the disk gives, for the ceiling: as it was probed, and what the kernel lets through."""
    disk = engine.disk_profile
    probed = disk.bandwidth_bytes_per_sec if disk.measured else None
    if throttle is None:
        return probed, engine.disk_bytes_per_sec_allowed
    return probed, throttle.bytes_per_sec(disk.chunk_bytes, disk.depth)


def run(engine: Engine, answers: list[BenchAnswer], greedy: bool, throttle: StorageProfile | None) -> Row:
    """The figures of the answers, one after another, and of the engine that gave them."""
    disk = disk_bytes_per_sec(engine, throttle)
    before = host.cpu_seconds()
    found = [
        {"start": start} | answer_figures(engine, answer, greedy, disk)
        for start, answer in zip(STARTS, answers, strict=True)
    ]
    return {
        "load_sec": engine.load_sec,
        "slots": engine.plan.slots,
        "chunk": engine.plan.chunk,
        "reader": engine.reader_name,
        "threads": engine.threads,
        "isa": engine.isa,
        "others_cores": host.cores_of_others(before, host.cpu_seconds()),
        "answers": found,
    }


def answer_figures(engine: Engine, answer: BenchAnswer, greedy: bool, disk: tuple[float | None, float | None]) -> Row:
    """One answer into an empty context: its speeds, its two phases, and the most slots that decoding had."""
    engine.forget()
    sampling, most_slots, cpu = Stopwatch(), 0, time.process_time()
    before = engine.clocks(), engine.experts.counters()
    began = time.perf_counter()
    logits, _ = engine.prefill(answer.prompt)
    likeliest = int(logits.argmax())
    first_token = time.perf_counter()
    between = engine.clocks(), engine.experts.counters()
    decoding = time.perf_counter()
    for following in answer.following:
        logits = engine.decode(likeliest if greedy else following)
        with sampling:  # in either case: a token costs it
            likeliest = int(logits.argmax())
        most_slots = max(most_slots, engine.experts.limit)
    decode_sec = time.perf_counter() - decoding
    end = engine.clocks(), engine.experts.counters()
    prefill, decode = (
        (Phase.of(c1 - c0, e1 - e0, *disk), c1 - c0)
        for (c0, e0), (c1, e1) in ((before, between), (between, end))
    )  # fmt: skip
    return {
        "ttft_sec": first_token - began,
        "decode_tok_per_sec": len(answer.following) / decode_sec,
        "sampling_sec": sampling.sec,
        "cpu_sec": time.process_time() - cpu,
        "most_slots": most_slots,
        "peak_memory_bytes": host.peak_memory_bytes(),
        "prefill": phase_figures(*prefill),
        "decode": phase_figures(*decode),
    }


def phase_figures(phase: Phase, clocks: Clocks) -> Row:
    """Seconds and bytes of the whole phase, and its ceiling: the roofline of this very run."""
    experts, roofline = phase.experts, phase.roofline
    return {
        "tokens": phase.tokens,
        "wall_sec": phase.wall_sec,
        "python_sec": phase.python_sec,
        "waiting_sec": phase.stall_sec,
        "kernels_sec": {name: kernel.sec for name, kernel in clocks.kernels.items()},
        "hits": experts.hits,
        "guessed": experts.guessed,
        "late": experts.late,
        "misses": experts.misses,
        "certain_bytes": experts.certain_bytes,
        "useful_bytes": experts.useful_bytes,
        "wasted_bytes": experts.wasted_bytes,
        "reread_bytes": experts.reread_bytes,
        "disk_busy_sec": experts.busy_sec,
        "disk_bytes_per_sec_probed": phase.disk_bytes_per_sec_probed,
        "disk_bytes_per_sec_seen": phase.disk_bytes_per_sec_seen,
        "ceiling_tok_per_sec": roofline.tok_per_sec,
        "ceiling_bound": roofline.bound,
    }


def trace(engine: Engine, answers: list[BenchAnswer], job: Row) -> Row:
    """Record the routing of the answers' tokens, one sequence each, into the file that the job names."""
    sequences = []
    for answer in answers:
        following = list(answer.following)
        if job["greedy"]:  # which tokens they are shows only now
            engine.forget()
            logits, _ = engine.prefill(answer.prompt)
            for at in range(len(following)):
                following[at] = int(logits.argmax())
                logits = engine.decode(following[at])
        sequences.append([*answer.prompt, *following])
    found = record(engine, sequences) if engine.config.routed_layers else whole_layers(engine, sequences)
    save_trace(found, Path(job["trace"]))
    return {}


if __name__ == "__main__":
    main()
