"""Is this checkout as fast as another? Both hold the model in memory, or plan with --memory, and take turns of seconds.

python bench/two_checkouts.py STORE BEFORE AFTER [--prompts] [--memory 1GiB] [--tokens 512] [--pairs 14]

BEFORE and AFTER are checkouts, each with its own .venv. Whole runs in turns differ by a tenth on a machine that others
share, since its speed changes within minutes; from a turn to the next it hardly does. The order changes with each
pair. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np


def serve(store: str, prompts: bool, memory: str | None, tokens: int) -> None:
    """Tokens a second of one turn for each line that comes in."""
    from smallthinker.engine import Engine
    from smallthinker.errors import SmallThinkerError

    rng = np.random.default_rng(0)
    try:
        engine = Engine(Path(store), memory=memory, context=2 * tokens)
    except SmallThinkerError as e:
        sys.exit(str(e))
    with engine:

        def ids(n: int) -> list[int]:
            found: list[int] = rng.integers(0, engine.config.vocab_size, n).tolist()
            return found

        engine.prefill(ids(tokens))
        print("ready", flush=True)
        for _ in sys.stdin:
            turn = ids(tokens)
            if not prompts:
                engine.prefill(turn[:8])
            began = time.perf_counter()
            if prompts:
                engine.prefill(turn)
            else:
                for token in turn:
                    engine.decode(token)
            print(tokens / (time.perf_counter() - began), flush=True)


def start(checkout: Path, args: argparse.Namespace) -> subprocess.Popen[str]:
    if not (checkout / ".venv/bin/python").exists():
        sys.exit(f"{checkout}: expected a checkout with an environment, found no .venv/bin/python; install it there")
    command = [".venv/bin/python", Path(__file__).resolve(), args.store.resolve(), ".", ".", "--serve"]
    options = ["--tokens", args.tokens, *(["--prompts"] if args.prompts else [])]
    options += ["--memory", args.memory] if args.memory else []
    return subprocess.Popen(
        [str(part) for part in (*command, *options)],
        cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
    )  # fmt: skip


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    return line or sys.exit("a side ended; its words are above")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--prompts", action="store_true", help="prompts of --tokens, not answers of as many")
    parser.add_argument("--memory", help="of each side, as for `smallthinker run`; the disk's cache is theirs, too")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=14)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(str(args.store), args.prompts, args.memory, args.tokens)
        return
    sides = [start(checkout, args) for checkout in (args.before, args.after)]
    for side in sides:
        answer(side)
    turns: list[list[float]] = [[], []]
    for pair in range(args.pairs):
        for number in (0, 1) if pair % 2 == 0 else (1, 0):
            stdin = sides[number].stdin
            assert stdin is not None
            stdin.write("turn\n")
            turns[number].append(float(answer(sides[number])))
    for side in sides:
        side.communicate()
    ratios = [after / before for before, after in zip(*turns, strict=True)]
    print(f"before {statistics.median(turns[0]):.2f}, after {statistics.median(turns[1]):.2f} tokens/s")
    print(f"ratio of a pair: median {statistics.median(ratios):.3f}, {min(ratios):.2f} to {max(ratios):.2f}")
    print(json.dumps({"before": turns[0], "after": turns[1], "ratio": statistics.median(ratios)}))


if __name__ == "__main__":
    main()
