"""How well a store predicts a text, and how far it is from another store of the same model, as numbers.

Owns the runs and the sums; evaluation_results.py says what they are called. The engine computes the states, `scoring`
what follows from them. Two models are never in memory together: each runs over the text with the whole budget, its last
states wait in a file, and their heads alone are compared in the end.

Shape letters: N scored tokens, T tokens of a chunk, d hidden_size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import IO

import numpy as np

from smallthinker import _kernels, host
from smallthinker.calibration.tracing import run_observed
from smallthinker.engine import Engine
from smallthinker.errors import RequestError, StoreWriteError
from smallthinker.evaluation.results import Comparison, Perplexity
from smallthinker.evaluation.scoring import (
    F64,
    STRIP_TOKENS,
    Differences,
    Floats,
    Ids,
    ScoringHead,
    differences,
    head_format,
    head_matrix,
    joined,
    likelihoods,
)
from smallthinker.evaluation.windows import Windows, text_windows
from smallthinker.expert_store.progress import Progress, silent
from smallthinker.expert_store.store import Store
from smallthinker.forward import Observers
from smallthinker.lossy_head import HeadPredictor, LossyHead
from smallthinker.memory_plan import choose_context
from smallthinker.options import EngineOptions
from smallthinker.text.tokenizer import Tokenizer

DEFAULTS = EngineOptions()


def perplexity(
    path: Path,
    text: str,
    options: EngineOptions = DEFAULTS,
    *,
    stride: int | None = None,
    tokens: int | None = None,
    progress: Progress = silent,
) -> Perplexity:
    """How well a store predicts a text. stride, tokens: what of it is scored, as `text_windows` takes them.

    Raises RequestError (too little text, a stride that doesn't fit), and what an Engine raises.
    """
    with Store.open(path) as store:
        windows = _windows([store], text, options.context, stride, tokens)
    parts: list[F64] = []
    with _open(path, windows, options) as engine:
        head = ScoringHead(engine.store, engine.pool, engine.lossy_head)

        def score(x: Floats, targets: Ids) -> None:
            parts.append(likelihoods(head, x, targets))

        _run(engine, windows, score, progress)
    return _perplexity(windows, np.concatenate(parts))


def compare(
    path: Path,
    reference: Path,
    text: str,
    options: EngineOptions = DEFAULTS,
    *,
    stride: int | None = None,
    tokens: int | None = None,
    progress: Progress = silent,
) -> Comparison:
    """How far a store is from a reference, usually a store of the same model in f16.

    kv and what is lossy hold for the store alone. The reference runs exactly, so `path` may be both, to see
    what they cost.
    Raises what `perplexity` does and StoreWriteError: no room among temporary files for 4 d bytes a token and model.
    """
    with Store.open(path) as store, Store.open(reference) as exact:
        windows = _windows([store, exact], text, options.context, stride, tokens)
    total = 2 * len(windows.targets) + len(windows.scored)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total, "tokens")

    with ExitStack() as files:
        states, exact_states = (files.enter_context(_spool()) for _ in range(2))
        # the store first: what is wrong with the options is found before anything has been computed
        _write_states(path, windows, options, states, advance)
        _write_states(reference, windows, options.exact(), exact_states, advance)
        found = _compare_states(path, states, reference, exact_states, windows, options, advance)
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
    return Tokenizer(store.small_files, store.config.vocab_size, store)


def _open(path: Path, windows: Windows, options: EngineOptions) -> Engine:
    # one token at a time, as answers are written: what is lossy depends on what is in memory then
    chunk = 1 if options.lossy_routing else options.chunk
    return Engine(path, options, context=windows.context, chunk=chunk)


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

    run_observed(engine, windows.sequences, Observers(final=final))


def _spool() -> IO[bytes]:
    try:
        return TemporaryFile(buffering=0)  # a full disk is found by the write that meets it
    except OSError as e:
        raise _cannot_keep(e) from e


def _cannot_keep(e: OSError) -> StoreWriteError:
    return StoreWriteError(
        f"{gettempdir()}: cannot keep the states of the text here: {e.strerror or e}; make room, set TMPDIR to another "
        "folder, or give fewer `tokens`"
    )


def _write_states(
    path: Path, windows: Windows, options: EngineOptions, file: IO[bytes], advance: Callable[[int], None]
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

    with _open(path, windows, options) as engine:
        _run(engine, windows, take, progress)
    file.seek(0)


def _compare_states(
    path: Path,
    states: IO[bytes],
    reference: Path,
    exact_states: IO[bytes],
    windows: Windows,
    options: EngineOptions,
    advance: Callable[[int], None],
) -> Differences:
    """Both heads are mapped from their files: the system can drop their pages at any time."""
    targets = windows.scored
    parts = []
    with Store.open(path) as store, Store.open(reference) as exact:
        pool = _kernels.ThreadPool(options.threads or host.physical_cores())
        head, exact_head = ScoringHead(store, pool, _lossy_head(store, pool, options)), ScoringHead(exact, pool)
        for at in range(0, len(targets), STRIP_TOKENS):
            here = targets[at : at + STRIP_TOKENS]
            x, exact_x = (
                np.frombuffer(file.read(4 * len(here) * config.hidden_size), np.float32).reshape(len(here), -1)
                for file, config in ((states, store.config), (exact_states, exact.config))
            )
            parts.append(differences(head, x, exact_head, exact_x, here))
            advance(len(here))
    return joined(parts)


def _lossy_head(store: Store, pool: _kernels.ThreadPool, options: EngineOptions) -> LossyHead | None:
    if options.lossy_head is None:
        return None
    predictor = HeadPredictor(options.lossy_head, store.config)
    try:
        return LossyHead(predictor, pool, store.config, head_format(store), head_matrix(store), options.lossy_threshold)
    finally:
        predictor.close()


def _perplexity(windows: Windows, nats: F64) -> Perplexity:
    """Raises RequestError where the model's logits are no numbers."""
    if np.isnan(nats).any():
        raise RequestError(
            f"the model's logits are no numbers at {int(np.isnan(nats).sum())} of {len(nats)} places; "
            "see whether the store is whole: smallthinker verify STORE"
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
