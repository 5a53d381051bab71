"""`smallthinker cache-sim`: a trace replayed with every eviction policy."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from smallthinker.commands.options import Commands, ProgressBar, add_command, renamed, whole
from smallthinker.commands.output import add_output, check_plot, print_found, save_plot

if TYPE_CHECKING:
    from smallthinker.cache.replay import Replay
    from smallthinker.charts.style import Chart
    from smallthinker.router.trace import Trace


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
    add_output(parser, rows="one line for each size and policy", plot="hit rates over the memory of the experts")


def handle(args: argparse.Namespace) -> int:
    from smallthinker.cache.policies import POLICIES
    from smallthinker.cache.replay import replay
    from smallthinker.diagnosis.inspection import replay_facts, replay_rows, replay_text
    from smallthinker.errors import RequestError
    from smallthinker.memory_plan import parse_size
    from smallthinker.router.trace import load_trace

    check_plot(args.plot, [args.trace])
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
    save_plot(args.plot, lambda: _chart(trace, replays))
    print_found(
        args,
        lambda: replay_text(trace, replays),
        lambda: replay_facts(trace, replays),
        lambda: replay_rows(trace, replays),
    )
    return 0


def _chart(trace: Trace, replays: list[Replay]) -> Chart:
    from smallthinker.charts.routing import replay_chart
    from smallthinker.errors import printable

    return replay_chart(f"{trace.tokens} tokens of {printable(trace.model, 80)}", replays, trace.record_bytes)
