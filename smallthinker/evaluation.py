"""How well a store predicts a text, and how far it is from another store of the same model, as numbers.

Owns the runs, the sums and what they are called. The engine computes the states, `scoring` what follows from them. Two
models are never in memory together: each runs over the text with the whole budget, its last states wait in a file, and
their heads alone are compared in the end.

Shape letters: N scored tokens, T tokens of a chunk, d hidden_size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import IO, Any

import numpy as np

from smallthinker import _kernels
from smallthinker.cache.kv_cache import KvKind
from smallthinker.engine import Engine
from smallthinker.errors import RequestError, StoreWriteError
from smallthinker.expert_store import host
from smallthinker.expert_store.progress import Progress, silent
from smallthinker.expert_store.queues import QueueKind
from smallthinker.expert_store.store import Store
from smallthinker.lossy_head import DEFAULT_THRESHOLD, HeadPredictor, LossyHead
from smallthinker.memory_plan import choose_context
from smallthinker.scoring import (
    F64,
    STRIP_TOKENS,
    Differences,
    Floats,
    Head,
    Ids,
    differences,
    head_matrix,
    joined,
    likelihoods,
)
from smallthinker.tokenizer import Tokenizer
from smallthinker.tracing import run_observed
from smallthinker.windows import Windows, text_windows

_MOST_NATS = 709  # whose exponential is a float64


@dataclass(frozen=True)
class Running:
    """How an engine runs, as `Engine` takes it; no figure depends on it."""

    memory: str | int | None = None
    threads: int | None = None
    reader: QueueKind = "auto"


@dataclass(frozen=True)
class Switches:
    """What makes an engine inexact, as `Engine` takes it."""

    kv: KvKind = "f16"
    lossy_head: str | Path | None = None
    lossy_threshold: float = DEFAULT_THRESHOLD


@dataclass(frozen=True)
class Perplexity:
    """Of one model over one text. text_bytes: of the scored tokens, in UTF-8. nats: the sum of their negative
    log-likelihoods. missed: tokens to which a lossy head gave no logit; with any, nats is infinite, since the model
    can't say the text. nats_error: the standard error of a token's mean nats, as if tokens were independent."""

    tokens: int
    text_bytes: int
    context: int
    stride: int
    nats: float
    nats_error: float
    missed: int = 0

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """Infinite beyond what a float64 can be, too."""
        return math.exp(self.nats_per_token) if self.nats_per_token < _MOST_NATS else math.inf

    @property
    def bits_per_byte(self) -> float:
        return self.nats / self.text_bytes / math.log(2)

    def to_dict(self) -> dict[str, Any]:
        """For `--json`: null stands for infinite."""
        figures = {
            "nats": self.nats,
            "nats_error": self.nats_error,
            "nats_per_token": self.nats_per_token,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
        }
        return asdict(self) | {name: figure if math.isfinite(figure) else None for name, figure in figures.items()}

    def text(self) -> str:
        """For people."""
        if self.missed:
            return (
                f"perplexity infinite: the lossy head gave no logit to {self.missed:,} of {self.tokens:,} tokens "
                f"({self.missed / self.tokens:.2%})"
            )
        return (
            f"perplexity {self.perplexity:.4g} +- {self.perplexity * self.nats_error:.2g}, {self.bits_per_byte:.4f} "
            f"bits per byte, {self.nats_per_token:.4f} nats a token"
        )

    def scope(self) -> str:
        """What was scored, for people."""
        least = self.context - self.stride + 1
        return (
            f"{self.tokens:,} tokens, {self.text_bytes:,} bytes; windows of {self.context} tokens: after the first, "
            f"each token has at least {least} before it"
        )


@dataclass(frozen=True)
class Comparison:
    """A store against a reference over one text. kl_*: KL(reference || store) in nats a token, see
    `scoring.Differences`. top1_agreement: share of places where both expect the same token most. lost: what the
    reference gives, on average, to tokens for which a lossy head has no logit. nats_difference: the store's nats a
    token less the reference's, and its standard error, smaller than that of either; infinite with missed tokens."""

    store: Perplexity
    reference: Perplexity
    kl_mean: float
    kl_median: float
    kl_p99: float
    kl_max: float
    top1_agreement: float
    lost: float
    nats_difference: float
    nats_difference_error: float

    def to_dict(self) -> dict[str, Any]:
        """For `--json`: null stands for infinite."""
        figures = asdict(self) | {"store": self.store.to_dict(), "reference": self.reference.to_dict()}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in figures.items()}

    def text(self) -> str:
        """For people."""
        lines = [f"reference  {self.reference.text()}", f"store      {self.store.text()}"]
        if not self.store.missed:
            lines.append(
                f"difference {self.nats_difference:+.5f} +- {self.nats_difference_error:.5f} nats a token "
                f"({self.store.bits_per_byte - self.reference.bits_per_byte:+.5f} bits per byte)"
            )
        lines += [
            f"KL(reference || store)  mean {self.kl_mean:.3g}, median {self.kl_median:.3g}, "
            f"99 % {self.kl_p99:.3g}, largest {self.kl_max:.3g} nats a token",
            f"likeliest token the same  {self.top1_agreement:.2%}",
        ]
        if self.lost:
            lines.append(f"probability that the lossy head loses  {self.lost:.2%}; KL is among the tokens it keeps")
        return "\n".join([*lines, self.store.scope()])


def perplexity(
    path: Path,
    text: str,
    *,
    context: int | None = None,
    stride: int | None = None,
    tokens: int | None = None,
    running: Running | None = None,
    switches: Switches | None = None,
    progress: Progress | None = None,
) -> Perplexity:
    """How well a store predicts a text. context (default: the model's, at most 4096), stride, tokens: as
    `text_windows`.

    Raises RequestError (too little text, a stride that doesn't fit), and what an Engine raises.
    """
    with Store.open(path) as store:
        windows = _windows([store], text, context, stride, tokens)
    parts: list[F64] = []
    with _open(path, windows.context, running or Running(), switches or Switches()) as engine:
        head = Head(engine.store, engine.pool, engine.lossy_head)

        def score(x: Floats, targets: Ids) -> None:
            parts.append(likelihoods(head, x, targets))

        _run(engine, windows, score, progress or silent)
    return _perplexity(windows, np.concatenate(parts))


def compare(
    path: Path,
    reference: Path,
    text: str,
    *,
    context: int | None = None,
    stride: int | None = None,
    tokens: int | None = None,
    running: Running | None = None,
    switches: Switches | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """How far a store is from a reference, usually a store of the same model in f16; the rest as `perplexity`.

    switches: of the store alone. The reference runs exactly, so `path` may be both, to see what a switch costs.
    Raises StoreWriteError as well: no room for the states, 4 d bytes a token and model, among temporary files.
    """
    progress, running, switches = progress or silent, running or Running(), switches or Switches()
    with Store.open(path) as store, Store.open(reference) as exact:
        windows = _windows([store, exact], text, context, stride, tokens)
    total = 2 * len(windows.targets) + len(windows.scored)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total, "tokens")

    with ExitStack() as files:
        states, exact_states = (files.enter_context(_spool()) for _ in range(2))
        # the store first: what is wrong with the switches is found before anything has been computed
        _write_states(path, windows, running, switches, states, advance)
        _write_states(reference, windows, running, Switches(), exact_states, advance)
        found = _compare_states(path, states, reference, exact_states, windows, running, switches, advance)
    gaps = found.nats - found.reference_nats
    return Comparison(
        _perplexity(windows, found.nats),
        _perplexity(windows, found.reference_nats),
        float(found.kl.mean()),
        float(np.median(found.kl)),
        float(np.quantile(found.kl, 0.99)),
        float(found.kl.max()),
        float(found.agrees.mean()),
        float(found.lost.mean()),
        float(gaps.mean()),
        _standard_error(gaps),
    )


def _windows(
    stores: Sequence[Store], text: str, context: int | None, stride: int | None, tokens: int | None
) -> Windows:
    """Raises RequestError, also where the stores don't make the same tokens of the text; ContextLengthError."""
    width = min(choose_context(store.config, context) for store in stores)
    first, *others = (text_windows(_tokenizer(store), text, width, stride, tokens) for store in stores)
    for store, windows in zip(stores[1:], others, strict=True):
        same_size = store.config.vocab_size == stores[0].config.vocab_size
        if not same_size or windows.sequences != first.sequences:
            raise RequestError(
                f"{store.path}: expected a store with the vocabulary of {stores[0].path}, found one that makes other "
                "tokens of the text; give two stores of one model"
            )
    host.trim_heap()  # an engine measures what is left for it
    return first


def _tokenizer(store: Store) -> Tokenizer:
    return Tokenizer(store.path, store.config.vocab_size)


def _open(path: Path, context: int, running: Running, switches: Switches) -> Engine:
    return Engine(
        path,
        context=context,
        memory=running.memory,
        threads=running.threads,
        reader=running.reader,
        kv=switches.kv,
        lossy_head=switches.lossy_head,
        lossy_threshold=switches.lossy_threshold,
    )


def _run(engine: Engine, windows: Windows, take: Callable[[Floats, Ids], None], progress: Progress) -> None:
    """Hand over the states that go into the head, where something is to be predicted, and what it is."""
    at = 0

    def final(x: Floats) -> None:
        nonlocal at
        targets = windows.targets[at : at + len(x)]
        wanted = targets >= 0
        if wanted.any():
            take(x[wanted], targets[wanted])
        at += len(x)
        progress(at, len(windows.targets), "tokens")

    run_observed(engine, windows.sequences, final=final)


def _spool() -> IO[bytes]:
    try:
        return TemporaryFile(buffering=0)  # a full disk is found by the write that meets it
    except OSError as e:
        raise _cannot_keep(e) from e


def _cannot_keep(e: OSError) -> StoreWriteError:
    return StoreWriteError(
        f"{gettempdir()}: cannot keep the states of the text here: {e.strerror or e}; make room, set TMPDIR to another "
        "folder, or give fewer --tokens"
    )


def _write_states(
    path: Path, windows: Windows, running: Running, switches: Switches, file: IO[bytes], advance: Callable[[int], None]
) -> None:
    before = 0

    def take(x: Floats, targets: Ids) -> None:
        rest = memoryview(x.tobytes())
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as e:
            raise _cannot_keep(e) from e

    def progress(done: int, total: int, what: str) -> None:
        nonlocal before
        advance(done - before)
        before = done

    with _open(path, windows.context, running, switches) as engine:
        _run(engine, windows, take, progress)
    file.seek(0)


def _compare_states(
    path: Path,
    states: IO[bytes],
    reference: Path,
    exact_states: IO[bytes],
    windows: Windows,
    running: Running,
    switches: Switches,
    advance: Callable[[int], None],
) -> Differences:
    """Both heads are mapped from their files: the system can drop their pages at any time."""
    targets = windows.scored
    parts = []
    with Store.open(path) as store, Store.open(reference) as exact:
        pool = _kernels.ThreadPool(running.threads or host.physical_cores())
        head, exact_head = Head(store, pool, _lossy_head(store, pool, switches)), Head(exact, pool)
        for at in range(0, len(targets), STRIP_TOKENS):
            here = targets[at : at + STRIP_TOKENS]
            x, exact_x = (
                np.frombuffer(file.read(4 * len(here) * config.hidden_size), np.float32).reshape(len(here), -1)
                for file, config in ((states, store.config), (exact_states, exact.config))
            )
            parts.append(differences(head, x, exact_head, exact_x, here))
            advance(len(here))
    return joined(parts)


def _lossy_head(store: Store, pool: _kernels.ThreadPool, switches: Switches) -> LossyHead | None:
    if switches.lossy_head is None:
        return None
    predictor = HeadPredictor(switches.lossy_head, store.config)
    try:
        return LossyHead(predictor, pool, store.config, store.quant, head_matrix(store), switches.lossy_threshold)
    finally:
        predictor.close()


def _perplexity(windows: Windows, nats: F64) -> Perplexity:
    """Raises RequestError where the model's logits are no numbers."""
    if np.isnan(nats).any():
        raise RequestError(
            f"the model's logits are no numbers at {int(np.isnan(nats).sum())} of {len(nats)} places; "
            "see whether the store is whole: smallthinker inspect STORE --verify"
        )
    return Perplexity(
        len(nats),
        windows.text_bytes,
        windows.context,
        windows.stride,
        float(nats.sum()),
        _standard_error(nats),
        int(np.isinf(nats).sum()),
    )


def _standard_error(values: F64) -> float:
    if len(values) < 2 or np.isinf(values).any():
        return math.inf
    return float(values.std(ddof=1) / math.sqrt(len(values)))
