"""`calibrate`: runs a text through a store's model, has a predictor learned from it and puts that into the store.

Owns the recording and the decision whether the result is worth keeping. What a predictor is: router/predictor.py; how
it is learned: predictor_training.py.

Shape letters: N tokens, L layers, d hidden_size, E experts of a layer, k experts per token.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import numpy.typing as npt

from smallthinker import _kernels
from smallthinker.arithmetic import Route
from smallthinker.calibration.tracing import run_observed, split
from smallthinker.engine import Engine
from smallthinker.errors import ConfigError, RequestError, StoreWriteError
from smallthinker.expert_store.format import PREDICTOR_FILE
from smallthinker.expert_store.progress import Progress, silent
from smallthinker.expert_store.store import Store
from smallthinker.files import is_there
from smallthinker.forward import Observers
from smallthinker.options import EngineOptions
from smallthinker.router.predictor import FINAL, QUANT, Matrices, pairs, save_predictor

Floats = npt.NDArray[np.float32]

FEWEST_TOKENS = 256
MOST_TOKENS = 8192  # more make little better and take (L + 1) * d * 2 bytes of disk each


@dataclass(frozen=True)
class Calibration:
    """right: (before, after) shares of guesses that were right on held-out tokens, by what was guessed."""

    tokens: int
    held_out: int
    right: dict[str, tuple[float, float]]
    file: Path | None
    file_bytes: int

    def text(self) -> str:
        """For people."""
        lines = [f"{self.tokens} tokens, {self.held_out} of them held out; guesses that were right on those:"]
        for name, (before, after) in self.right.items():
            lines.append(f"  {name:<28} {before:>6.1%} by the layer's own router, {after:>6.1%} by the predictor")
        if self.file is None:
            lines.append("no better than the routers: nothing was written; give more or other text")
        else:
            lines.append(f"{self.file}: {self.file_bytes:,} bytes")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        right = {name: {"before": before, "after": after} for name, (before, after) in self.right.items()}
        file = None if self.file is None else str(self.file)
        return {"tokens": self.tokens, "held_out": self.held_out, "right": right} | {
            "file": file,
            "file_bytes": self.file_bytes,
        }


@dataclass
class _States:
    """Recorded: states after each layer's attention, float16 [L + 1, N, d], each of mean square 1, the last being what
    goes into the head; their root mean squares [L + 1, N]; the routers' logits [L, N, E] and ids [L, N, k]; ends bool
    [N]: the last token of a sequence."""

    x: npt.NDArray[np.float16]
    rms: Floats
    logits: Floats
    ids: npt.NDArray[np.uint16]
    ends: npt.NDArray[np.bool_]


def calibrate(
    path: Path,
    text: str,
    options: EngineOptions | None = None,
    *,
    tokens: int | None = None,
    force: bool = False,
    recording: Progress | None = None,
    training: Progress | None = None,
) -> Calibration:
    """tokens: at most so many of the text (default: MOST_TOKENS). options: of the run that records.

    Raises RequestError: no torch, too little text; StoreWriteError: there is a predictor and no `force`, disk full; and
    what an Engine raises.
    """
    if find_spec("torch") is None:
        raise RequestError("calibrate: expected torch to learn with, found none; pip install 'smallthinker[torch]'")
    if tokens is not None and tokens < FEWEST_TOKENS:
        raise RequestError(f"--tokens: expected at least {FEWEST_TOKENS}, found {tokens}")
    if is_there(path / PREDICTOR_FILE) and not force:
        raise StoreWriteError(f"{path / PREDICTOR_FILE}: exists already; --force replaces it by a new one")
    with Engine(path, options, predictor=False) as engine:
        engine.config.check_routers("calibrate")
        if engine.config.layers_that_mix_first:
            raise ConfigError(
                f"calibrate: layer {engine.config.layers_that_mix_first[0]}: expected a router before attention, found "
                "one behind it; of such a layer nothing is learned yet"
            )
        routers = [engine.router_weights(layer) for layer in range(engine.config.num_layers)]
        ids = engine.tokenizer.encode_prompt(text)[: MOST_TOKENS if tokens is None else tokens]
        if len(ids) < FEWEST_TOKENS:
            raise RequestError(
                f"text: expected at least {FEWEST_TOKENS} tokens, found {len(ids)}; give a longer --text"
            )
        states = _record(engine, routers, split(ids, engine.plan.context), recording or silent)
        threads = engine.threads
    matrices, right = _learn(states, routers, threads, training or silent)
    held_out = len(ids) - int(len(ids) * _validated())
    means = np.mean([pair for pairs_right in right.values() for pair in pairs_right], axis=0)
    shown = {name: (float(m[0]), float(m[1])) for name, values in right.items() for m in [np.mean(values, axis=0)]}
    if means[1] <= means[0]:
        return Calibration(len(ids), held_out, shown, None, 0)
    with Store.open(path) as store:
        file = save_predictor(store, matrices)
    return Calibration(len(ids), held_out, shown, file, file.stat().st_size)


def _validated() -> float:
    from smallthinker.calibration.training import VALIDATED

    return VALIDATED


def _record(
    engine: Engine, routers: Sequence[Floats], sequences: Sequence[Sequence[int]], progress: Progress
) -> _States:
    """States at the points where decoding asks for guesses, and routes."""
    config, total, folder = engine.config, sum(map(len, sequences)), engine.store.path
    layers, d, experts = config.num_layers, config.hidden_size, config.experts_per_layer
    states = _States(
        _spool(folder, np.dtype(np.float16), (layers + 1, total, d)),
        np.empty((layers + 1, total), np.float32),
        _spool(folder, np.dtype(np.float32), (layers, total, experts)),
        np.empty((layers, total, config.experts_per_token), np.uint16),
        np.zeros(total, np.bool_),
    )
    states.ends[np.cumsum([len(sequence) for sequence in sequences]) - 1] = True
    at = 0

    def keep(layer: int, x: Floats) -> None:
        rms = np.sqrt(np.mean(np.square(x), axis=1) + np.float32(1e-12))
        states.rms[layer, at : at + len(x)] = rms
        states.x[layer, at : at + len(x)] = x / rms[:, None]  # float16 may not reach as far as a state does

    def routed(layer: int, x: Floats, route: Route) -> None:
        states.logits[layer, at : at + len(x)] = x @ routers[layer].T
        states.ids[layer, at : at + len(x)] = route.ids

    def final(x: Floats) -> None:
        nonlocal at
        keep(layers, x)
        at += len(x)
        progress(at, total, "tokens")

    run_observed(engine, sequences, Observers(routed, keep, final))
    return states


def _spool(folder: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """An array in a file without a name, so that memory stays free. Its room is taken now: a map that finds the disk
    full later would end the process."""
    nbytes = dtype.itemsize * int(np.prod(shape))
    try:
        with TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, nbytes)
            return np.memmap(file, dtype, "r+", 0, shape)
    except OSError as e:
        raise StoreWriteError(
            f"{folder}: cannot keep {nbytes:,} bytes of states here: {e.strerror or e}; make room "
            "there, the folder writable, or give fewer --tokens"
        ) from e


def _learn(
    states: _States, routers: Sequence[Floats], threads: int, progress: Progress
) -> tuple[Matrices, dict[str, list[tuple[float, float]]]]:
    from smallthinker.calibration.training import Source

    todo = pairs(len(routers))
    matrices: Matrices = {}
    right: dict[str, list[tuple[float, float]]] = {}
    for from_layer, target in todo:
        change, chosen = None, states.ids[target]
        if from_layer == FINAL:  # of the token before
            rows = np.flatnonzero(~states.ends)
            source, chosen = Source(states.x[-1][rows], threads), chosen[rows + 1]
            name = "the next token's first layer"
        else:
            source = Source(states.x[from_layer], threads)
            change = _change(states, routers[target], from_layer, target)
            name = "the next layer"
        learned = source.learn(routers[target], chosen, change, seed=len(matrices))
        matrices[from_layer, target] = _kernels.pack(QUANT, "tiles", learned.matrix)
        right.setdefault(name, []).append((learned.before, learned.after))
        progress(len(matrices), len(todo), "pairs")
    return matrices, right


def _change(states: _States, router: Floats, source: int, target: int) -> Floats:
    """The logits of `target` [N, E] less what its router says of the states within `source`, in units of the latter."""
    then: Floats = states.logits[target] / states.rms[source][:, None]
    then -= states.x[source].astype(np.float32) @ router.T
    return then
