"""`smallthinker cache-sim`: a trace replayed with every eviction policy."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from smallthinker.commands.options import Commands, ProgressBar, add_command, renamed, whole


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "cache-sim",
        handle,
        "replay a trace with every eviction policy, and with the optimum that knows the future",
        "smallthinker cache-sim book.trace --expert-memory 512MiB 1GiB",
    )
    parser.add_argument("trace", metavar="TRACE", type=Path, help="a file that `smallthinker trace` wrote")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--expert-memory", metavar="SIZE", nargs="+", help="memory of the cache alone, e.g. 512MiB 1GiB")
    sizes.add_argument(
        "--slots", metavar="N", nargs="+", type=whole, help="experts in memory (default: 10, 25, 34, 50, 75 %% of all)"
    )
    renamed(parser, "--memory", "--expert-memory")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def handle(args: argparse.Namespace) -> int:
    from smallthinker.cache.policies import POLICIES
    from smallthinker.cache.replay import replay
    from smallthinker.diagnosis.inspection import replay_facts, replay_text
    from smallthinker.errors import RequestError
    from smallthinker.memory_plan import parse_size
    from smallthinker.router.trace import load_trace

    trace = load_trace(args.trace)
    most, k = trace.layers * trace.experts, trace.experts_per_token
    slots = args.slots or [parse_size(size, "expert-memory") // trace.record_bytes for size in args.expert_memory or ()]
    slots = slots or [max(most * percent // 100, k) for percent in (10, 25, 34, 50, 75)]
    few = next((n for n in slots if n < k), None)
    if few is not None:
        raise RequestError(
            f"slots: expected at least {k}, the experts of one token in one layer, found {few}; "
            f"give at least {k * trace.record_bytes} bytes"
        )
    replays, done = [], 0
    with ProgressBar("replaying", "run") as progress:

        def count() -> None:
            nonlocal done
            done += 1
            progress(done, len(slots) * (len(POLICIES) + 1), "runs")

        for n in slots:
            replays.append(replay(trace.ids, trace.experts, n, count))
    print(json.dumps(replay_facts(trace, replays)) if args.json else replay_text(trace, replays))
    return 0
