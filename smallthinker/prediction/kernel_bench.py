"""Measures what one layer of a model costs on this machine, by running a few with random weights for about a second.

Owns the measuring. What is run is the engine's own: kernels, layers, expert cache, and what is between them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from smallthinker import _kernels, host
from smallthinker.arithmetic import Arithmetic, Floats, Span, Step
from smallthinker.cache.expert_cache import ExpertCache
from smallthinker.cache.kv_ring import KvKind
from smallthinker.cache.policies import DEFAULT_POLICY
from smallthinker.cache.sequence_state import SequenceShape, SequenceState
from smallthinker.expert_store.format import Formats
from smallthinker.forward import ForwardPass
from smallthinker.measures.profile import KernelTime, kernel_times
from smallthinker.models.description import Model
from smallthinker.prediction.bench_model import RandomModel, WaitingQueue
from smallthinker.prediction.compute_costs import ComputeCosts
from smallthinker.prediction.single_calls import attention_sec, ceiling, compression
from smallthinker.router.look_ahead import LookAhead
from smallthinker.router.trial import Trial

_TOKENS_SEC = 0.3  # of decoding with all experts resident; half of it for each other measurement
_LEAST_READ_SEC = 300e-6  # long enough for the pool's threads to fall asleep
_MOST_READ_SEC = 10e-3  # after longer waits, too, nothing is left in the processor's caches
_CHUNKS = (16, 128)
_EXPERTS = ("experts", "combine")
_BESIDE = ("embed", "rope_angles", "rmsnorm", "linear")  # of a token, not of a layer


def measure(
    config: Model, formats: Formats, kv: KvKind = "f16", threads: int | None = None, read_sec: float = 0.0
) -> ComputeCosts:
    """Takes one to three seconds, and at most half of the memory that is free, at most 600 MB. read_sec: what the disk
    takes for a record: the longer a wait, the slower is what comes after it."""
    threads = threads or host.physical_cores()
    pool = _kernels.ThreadPool(threads)
    model = RandomModel(config, formats, host.available_memory_bytes())
    resident = _decode(model, pool, kv, None)
    missing = _decode(model, pool, kv, min(max(read_sec, _LEAST_READ_SEC), _MOST_READ_SEC))
    chunks = [_chunk(model, pool, kv, min(tokens, config.context)) for tokens in _CHUNKS]
    tokens, pairs, experts = ([chunk[key] for chunk in chunks] for key in ("tokens", "pairs", "experts"))
    fixed, each = _line(tokens, [chunk["attend"] for chunk in chunks])
    expert_sec, pair_sec = _two_terms(experts, pairs, [chunk["experts_sec"] for chunk in chunks])
    key_sec, chunk_key_sec = attention_sec(config, pool, kv)
    stored_share, decompress_sec = compression(config, formats)
    landed = max(missing["python"] - resident["python"], 0.0) / missing["calls"]
    return ComputeCosts(
        threads=threads,
        isa=pool.isa,
        experts_per_token=config.experts_per_token,
        route_sec=resident["router"],
        attend_sec=resident["attend"],
        key_sec=key_sec,
        one_expert_sec=missing["experts_sec"] / missing["calls"],
        all_experts_sec=resident["experts_sec"],
        hit_python_sec=resident["python"],
        miss_python_sec=resident["python"],
        landed_python_sec=landed,
        guess_sec=missing["guess"],
        # the head of the bench may have fewer words
        head_sec=resident["beside"] + resident["head"] * (1 / model.head_share - 1),
        chunk_sec=fixed,
        chunk_token_sec=each,
        chunk_key_sec=chunk_key_sec,
        chunk_expert_sec=expert_sec,
        chunk_pair_sec=pair_sec,
        stored_share=stored_share,
        decompress_sec=decompress_sec / threads,
        memory_bytes_per_sec=ceiling(
            lambda: (_kernels.read_memory(pool, model.slots.reshape(-1)), model.slots.nbytes)[1]
        ),
        int8_ops_per_sec=ceiling(lambda: 2 * _kernels.multiply_add(pool, 1 << 25, True)),
    )


class _AlwaysOn(Trial):
    """Guesses are made for every token, whether they pay or not."""

    def __init__(self) -> None:
        super().__init__()
        self.on = True

    def token(self, seconds: float, waited_sec: float = 0.0, records: int = 0) -> None:
        pass


class _TimedArithmetic(Arithmetic):
    """Adds up the seconds between a step's embedding and its head: of its layers, whatever they wait for included."""

    layers_sec = _began = 0.0

    def begin(self, spans: Sequence[Span]) -> Step:
        step = super().begin(spans)
        self._began = time.perf_counter()
        return step

    def logits(self, step: Step, rows: npt.NDArray[np.intp] | None) -> Floats:
        self.layers_sec += time.perf_counter() - self._began
        return super().logits(step, rows)


class _Bench:
    """One sequence's engine of a random model."""

    def __init__(
        self, model: RandomModel, pool: _kernels.ThreadPool, kv: KvKind, tokens: int, read_sec: float | None
    ) -> None:
        """read_sec: of each record that a layer wants; None: all are in memory."""
        config = model.config
        k, misses = config.experts_per_token, read_sec is not None
        slots = model.slots[: min(2 * k, len(model.slots))] if misses else model.slots
        queue = WaitingQueue(read_sec or 0.0)
        of_layers = model.experts_of_all  # what it takes to choose a victim grows with all experts
        policy = DEFAULT_POLICY(of_layers, model.used_of_all)
        self.experts = ExpertCache(slots, queue, policy, of_layers)
        self.arithmetic = _TimedArithmetic(model, pool, slots)
        certain, own = config.certain_layers, config.layers_that_mix_first
        look = LookAhead(config.num_layers, k, certain=certain, own=own) if misses else None
        if look is not None:
            look.trials = _AlwaysOn(), _AlwaysOn()
        self.forward = ForwardPass(self.arithmetic, self.experts, config.num_layers, look_ahead=look)
        self.state = SequenceState(SequenceShape.of(config, tokens, tokens, kv))

    def run(self, tokens: Sequence[int]) -> None:
        self.forward.step([(self.state, tokens)])


def _decode(model: RandomModel, pool: _kernels.ThreadPool, kv: KvKind, read_sec: float | None) -> Mapping[str, float]:
    """Seconds of a layer and a token, by part; `beside` and `head` of a token, `calls` of experts of a layer."""
    most, misses = 256, read_sec is not None
    bench = _Bench(model, pool, kv, most, read_sec)
    rng = np.random.default_rng(0)
    if not misses:
        for layer in range(model.config.num_layers):  # all resident from the start
            with bench.experts.request(layer, range(model.config.experts_of_layers[layer])) as ticket:
                for _ in ticket:
                    pass
    for _ in range(2):
        bench.run([0])
    bench.arithmetic.layers_sec, guess_sec = 0.0, bench.forward.guess_sec
    before, waited = kernel_times(_kernels.timings(), pool.timings()), bench.experts.counters().stall_sec
    tokens, seconds = 0, 0.0
    while not tokens or (tokens < most - 2 and seconds < (_TOKENS_SEC / 2 if misses else _TOKENS_SEC)):
        model.spoil_cache(pool)
        began = time.perf_counter()
        bench.run([int(rng.integers(model.config.vocab_size))])
        seconds += time.perf_counter() - began
        tokens += 1
    waited = bench.experts.counters().stall_sec - waited
    guess_sec = bench.forward.guess_sec - guess_sec
    kernels = _difference(kernel_times(_kernels.timings(), pool.timings()), before)
    each = tokens * model.config.num_layers
    of_layers = sum(kernel.sec for name, kernel in kernels.items() if name not in _BESIDE)
    experts, router = sum(kernels[name].sec for name in _EXPERTS), kernels["router"]
    routes = tokens * len(model.config.routed_layers)
    guessing = router.sec * (1 - routes / router.calls) if routes else 0.0  # the same product as an exact route's
    rest = bench.arithmetic.layers_sec - of_layers - waited - (guess_sec - guessing)
    return {
        "router": router.sec / max(router.calls, 1),
        "experts_sec": experts / each,
        "attend": (of_layers - experts - router.sec) / each,
        "python": max(rest, 0.0) / each,
        "guess": guess_sec / each,
        "calls": kernels["experts"].calls / each,
        "beside": (seconds - bench.arithmetic.layers_sec) / tokens,
        "head": kernels["linear"].sec / tokens,
    }


def _chunk(model: RandomModel, pool: _kernels.ThreadPool, kv: KvKind, tokens: int) -> Mapping[str, float]:
    """Seconds of a layer and a chunk of that many tokens: `attend` is all but the experts'."""
    rng = np.random.default_rng(0)
    bench = _Bench(model, pool, kv, tokens, None)
    for again in range(2):
        bench.state.rewind(0)
        before, bench.arithmetic.layers_sec = kernel_times(_kernels.timings(), pool.timings()), 0.0
        bench.run(rng.integers(model.config.vocab_size, size=tokens).tolist())
        if again:
            break
    kernels = _difference(kernel_times(_kernels.timings(), pool.timings()), before)
    layers, config = model.config.num_layers, model.config
    of_layers = [*zip(config.used_of_layers, config.experts_of_layers, strict=True)]
    experts = sum(kernels[name].sec for name in _EXPERTS) / layers
    return {
        "tokens": tokens,
        "pairs": tokens * sum(config.used_of_layers) / layers,
        "experts": sum(e * (1 - (1 - k / e) ** tokens) for k, e in of_layers if e) / layers,
        "experts_sec": experts,
        "attend": bench.arithmetic.layers_sec / layers - experts,
    }


def _difference(after: dict[str, KernelTime], before: dict[str, KernelTime]) -> dict[str, KernelTime]:
    nothing = KernelTime(0, 0.0)
    names = ("router", "linear", *_EXPERTS, *after)
    pairs = ((name, after.get(name, nothing), before.get(name, nothing)) for name in names)
    return {name: KernelTime(now.calls - then.calls, now.sec - then.sec) for name, now, then in pairs}


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """a, b of y = a + b x through two points, neither below 0."""
    slope = max((y[1] - y[0]) / max(x[1] - x[0], 1e-9), 0.0)
    return max(y[0] - slope * x[0], 0.0), slope


def _two_terms(x: Sequence[float], z: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """a, b of y = a x + b z, neither below 0."""
    (a, b), *_ = np.linalg.lstsq(np.array([x, z]).T, np.array(y), rcond=None)
    if a < 0 or b < 0:
        a, b = (0.0, float(np.dot(z, y) / np.dot(z, z))) if a < 0 else (float(np.dot(x, y) / np.dot(x, x)), 0.0)
    return float(a), float(b)
