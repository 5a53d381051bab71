"""How much more do several clients get when their answers are written in the same steps than one after the other?

python bench/batch.py STORE --memory 1GiB [--clients 4] [--tokens 48] [--repeats 3]

Through the scheduler, as a server uses it: every client has a short random prompt of its own and samples at temperature
1. Both ways run in turns, round by round, on one engine with the same memory plan; a round's ratio is worth more than
either speed. The time is from the first submission to the last token, prompts included. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from smallthinker import GenerationParams
from smallthinker.benchmark.environment import machine
from smallthinker.engine import Engine
from smallthinker.generation.scheduler import Scheduler


def run(engine: Engine, prompts: list[list[int]], tokens: int, together: bool) -> dict[str, Any]:
    """All answers, side by side or one after the other -> tokens/s and where a step's time went."""
    scheduler = Scheduler(engine)
    params = [
        GenerationParams(temperature=1.0, max_tokens=tokens, seed=i, ignore_eos=True) for i in range(len(prompts))
    ]
    clocks, experts, began = engine.clocks(), engine.experts.counters(), time.perf_counter()
    if together:
        requests = [scheduler.submit(prompt, p) for prompt, p in zip(prompts, params, strict=True)]
        answers = [request.result() for request in requests]
    else:
        answers = [scheduler.submit(prompt, p).result() for prompt, p in zip(prompts, params, strict=True)]
    sec = time.perf_counter() - began
    scheduler.close()
    clocks, experts = engine.clocks() - clocks, engine.experts.counters() - experts
    new_tokens = sum(len(answer.token_ids) for answer in answers)
    return {
        "tok_per_sec": new_tokens / sec,
        "ids": [answer.token_ids for answer in answers],
        "ms_per_token": {name: 1000 * part / new_tokens for name, part in clocks.parts().items()},
        "bytes_read_per_token": experts.bytes_read / new_tokens,
        "experts_per_token": experts.requests / new_tokens,
        "hit_rate": experts.hit_rate,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--memory", help="as for `smallthinker run`")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    parser.add_argument("--prompt", type=int, default=8, help="tokens of each prompt")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    rounds: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    with Engine(
        args.store, memory=args.memory, context=args.context, threads=args.threads, sequences=args.clients
    ) as engine:
        plan = engine.plan
        print(f"{plan.slots} of {plan.num_experts} experts, {args.clients} KV caches of {plan.context} tokens")

        def prompts() -> list[list[int]]:
            ids: list[list[int]] = rng.integers(0, engine.config.vocab_size, (args.clients, args.prompt)).tolist()
            return ids

        run(engine, prompts(), args.tokens // 2, together=True)  # fills the cache
        for i in range(args.repeats):
            asked = prompts()
            for together in (i % 2 == 0, i % 2 != 0):
                engine.forget()
                rounds[together].append(run(engine, asked, args.tokens, together))
            alone, batched = rounds[False][-1], rounds[True][-1]
            assert alone.pop("ids") == batched.pop("ids"), "an answer depends on what was computed beside it"
            ratio = batched["tok_per_sec"] / alone["tok_per_sec"]
            print(f"round {i + 1}: alone {alone['tok_per_sec']:6.2f}, together {batched['tok_per_sec']:6.2f} tokens/s, "
                  f"ratio {ratio:.2f}", flush=True)  # fmt: skip
        slots = engine.plan.most_slots
    for together, name in ((False, "alone"), (True, "together")):
        last = rounds[together][-1]
        parts = ", ".join(f"{part} {ms:.2f}" for part, ms in list(last["ms_per_token"].items())[:8])
        rest = {part: last["ms_per_token"][part] for part in ("waiting for the disk", "Python")}
        print(f"{name}: ms a token: {parts}; {rest}")
        mib, asked_for = last["bytes_read_per_token"] / 2**20, last["experts_per_token"]
        print(f"  {mib:.1f} MiB read, {asked_for:.1f} experts asked for, hit rate {last['hit_rate']:.0%}")
    speeds = {name: [r["tok_per_sec"] for r in rounds[b]] for b, name in ((False, "alone"), (True, "together"))}
    ratio = statistics.median(b / a for a, b in zip(*speeds.values(), strict=True))
    facts = {"clients": args.clients, "tokens": args.tokens, "most_slots": slots, "ratio": ratio, "tok_per_sec": speeds}
    print(json.dumps(machine() | facts))


if __name__ == "__main__":
    main()
