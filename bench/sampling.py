"""What does it cost to draw a token, at a published vocabulary's size, whatever the settings?

python bench/sampling.py [--vocab 151936] [--threads N] [--repeats 200]

Logits as a model's (normal, of standard deviation 4.5: perplexity about 10), nearly equal ones, and equal ones, the
worst case: where little stands out, much has to be looked at. Read once by as many threads, the logits themselves are
the ceiling. Median and fastest of the repeats. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from smallthinker import _kernels, host
from smallthinker.benchmark.environment import machine
from smallthinker.generation.sampling import Sampler
from smallthinker.generation.sampling_params import SamplingParams

SETTINGS = {
    "default": SamplingParams(seed=0),
    "OpenAI's: no filter": SamplingParams(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=0),
    "top_p 0.95": SamplingParams(temperature=1.0, top_k=0, top_p=0.95, min_p=0.0, seed=0),
    "top_p 0.95, min_p 0.05": SamplingParams(temperature=1.0, top_k=0, top_p=0.95, min_p=0.05, seed=0),
    "temperature 100, all filters": SamplingParams(temperature=100.0, top_k=70_000, top_p=0.9, min_p=0.01, seed=0),
    "repeat_penalty 1.1": SamplingParams(repeat_penalty=1.1, repeat_last_n=4096, seed=0),
    "greedy": SamplingParams(temperature=0.0),
}


def times_ms(call: Callable[[], object], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - began))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--threads", type=int, default=host.physical_cores())
    parser.add_argument("--repeats", type=int, default=200)
    args = parser.parse_args()
    pool, rng = _kernels.ThreadPool(args.threads), np.random.default_rng(0)
    normal = rng.standard_normal(args.vocab).astype(np.float32)
    kinds = {
        "model-like": normal * np.float32(4.5),
        "nearly equal": normal * np.float32(0.01),
        "equal": np.ones_like(normal),
    }
    prompt = rng.integers(0, args.vocab, 4096).tolist()
    whole = normal[: args.vocab // 64 * 64].view(np.uint8)
    ceiling = statistics.median(times_ms(lambda: _kernels.read_memory(pool, whole), args.repeats))
    print(f"{host.cpu_name()}, {pool.isa}, {args.threads} threads; reading the logits: {ceiling:.3f} ms")
    found = {}
    for name, params in SETTINGS.items():
        for kind, logits in kinds.items():
            sampler = Sampler(params, prompt, pool)
            times = times_ms(partial(sampler.sample, logits), args.repeats)
            found[f"{name}, {kind}"] = statistics.median(times)
            print(f"{name:30} {kind:13} {statistics.median(times):6.3f} ms, fastest {min(times):.3f}", flush=True)
    facts = {"vocab": args.vocab, "isa": pool.isa, "threads": args.threads, "ceiling_ms": ceiling, "median_ms": found}
    print(json.dumps(machine() | facts))


if __name__ == "__main__":
    main()
