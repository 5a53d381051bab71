"""`calibrate`: runs a text through a model, has a predictor learned from it and keeps that as a hint beside the model.

Owns the recording and the decision whether the result is worth keeping. What a predictor is: router/predictor.py; how
it is learned: training.py.

Shape letters: N tokens, P pairs of a source and a target, d hidden_size, E experts of a layer, k experts per token.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import numpy.typing as npt

from smallthinker import _kernels
from smallthinker.arithmetic import Route
from smallthinker.calibration.tracing import run_observed, split
from smallthinker.calibration.training import Learned, held_out, learn
from smallthinker.engine import Engine
from smallthinker.errors import ConfigError, RequestError, StoreWriteError
from smallthinker.expert_store.format import PREDICTOR_FILE
from smallthinker.expert_store.progress import Progress, silent
from smallthinker.expert_store.store import Store
from smallthinker.files import is_there
from smallthinker.forward import Observers
from smallthinker.models.tensors import ROUTER_BIAS
from smallthinker.options import EngineOptions
from smallthinker.router.predictor import FINAL, QUANT, Pair, Predictor, Predictors, possible_pairs, save_predictor

Floats = npt.NDArray[np.float32]

FEWEST_TOKENS = 256
MOST_TOKENS = 8192  # more make little better and take P * d * 2 bytes of disk each, and each layer's logits

_ZEROS = 1 << 20  # written at once


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
    """Recorded: of each pair, what its source's states were, float16 [P, N, d], each of mean square 1, and their root
    mean squares [P, N]; of each layer, where it has a router, its logits [N, E] and ids [N, k]; ends bool [N]: the last
    token of a sequence."""

    pairs: list[Pair]
    x: npt.NDArray[np.float16]
    rms: Floats
    logits: dict[int, Floats]
    ids: dict[int, npt.NDArray[np.int32]]
    ends: npt.NDArray[np.bool_]


class _Router:
    """How a layer with a router chooses: `weights` [E, d] as it reads its input, `of_states` as states have it.
    is_scaled: its logits grow with the state, since there is no norm between."""

    def __init__(self, engine: Engine, layer: int) -> None:
        ffn = engine.config.layers[layer].ffn
        assert ffn is not None and ffn.router is not None
        self.how = ffn.router
        self.weights, self.of_states = engine.router_weights(layer), engine.router_of_states(layer)
        has_norm = self.how.norm or (self.how.reads == "ffn_input" and engine.config.layers[layer].norms.before_ffn)
        self.is_scaled = not has_norm
        self._bias = np.empty(0, np.float32)
        if self.how.bias != "none":
            self._bias = engine.store.dense(f"layers.{layer}.{ROUTER_BIAS}").astype(np.float32)

    def choose(self, logits: Floats) -> npt.NDArray[np.int32]:
        """[N, E] -> ids [N, k]."""
        how, ids = self.how, np.empty((len(logits), self.how.k), np.int32)
        _kernels.route(
            np.ascontiguousarray(logits * np.float32(how.logit_scale)),
            how.k,
            how.score,
            ids,
            np.empty(ids.shape, np.float32),
            bias=self._bias,
            bias_chooses=how.bias == "choice",
            groups=how.groups,
            kept_groups=how.kept_groups,
        )
        return ids


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
    """path: a store or a GGUF file. tokens: at most so many of the text (default: MOST_TOKENS). options: of the run
    that records.

    Raises RequestError: too little text; ConfigError: a dense model; StoreWriteError: there is a predictor and no
    `force`, disk full; and what an Engine raises.
    """
    if tokens is not None and tokens < FEWEST_TOKENS:
        raise RequestError(f"tokens: expected at least {FEWEST_TOKENS}, found {tokens}")
    with Engine(path, options, predictor=False) as engine:
        file = engine.store.hint_path(PREDICTOR_FILE)
        if is_there(file) and not force:
            raise StoreWriteError(f"{file}: exists already; `force` replaces it by a new one")
        if not engine.config.routed_layers:
            raise ConfigError("calibrate: this model is dense: no layer has a router, so there is nothing to guess")
        routers = {layer: _Router(engine, layer) for layer in engine.config.routed_layers}
        ids = engine.tokenizer.encode_prompt(text)[: MOST_TOKENS if tokens is None else tokens]
        if len(ids) < FEWEST_TOKENS:
            raise RequestError(f"text: expected at least {FEWEST_TOKENS} tokens, found {len(ids)}; give a longer one")
        states = _record(engine, routers, split(ids, engine.plan.context), recording or silent)
    predictors, right = _learn(states, routers, training or silent)
    shown = {name: (float(mean[0]), float(mean[1])) for name, of in right.items() for mean in [np.mean(of, axis=0)]}
    if not predictors:
        return Calibration(len(ids), held_out(len(ids)), shown, None, 0)
    with Store.open(path) as store:
        file = save_predictor(store, predictors)
    return Calibration(len(ids), held_out(len(ids)), shown, file, file.stat().st_size)


def _record(
    engine: Engine, routers: dict[int, _Router], sequences: Sequence[Sequence[int]], progress: Progress
) -> _States:
    """States at the points where decoding asks for guesses, and routes."""
    config, total, folder = engine.config, sum(map(len, sequences)), engine.store.hint_path(PREDICTOR_FILE).parent
    pairs = possible_pairs(config)
    states = _States(
        pairs,
        _spool(folder, np.dtype(np.float16), (len(pairs), total, config.hidden_size)),
        np.empty((len(pairs), total), np.float32),
        {layer: _spool(folder, np.dtype(np.float32), (total, routers[layer].how.experts)) for layer in routers},
        {layer: np.empty((total, routers[layer].how.k), np.int32) for layer in routers},
        np.zeros(total, np.bool_),
    )
    states.ends[np.cumsum([len(sequence) for sequence in sequences]) - 1] = True
    place = {pair: number for number, pair in enumerate(pairs)}
    at = 0

    def keep(source: int, target: int, x: Floats) -> None:
        if (source, target) not in place:
            return
        pair, rms = place[source, target], np.sqrt(np.mean(np.square(x), axis=1) + np.float32(1e-12))
        states.rms[pair, at : at + len(x)] = rms
        states.x[pair, at : at + len(x)] = x / rms[:, None]  # float16 may not reach as far as a state does

    def entered(layer: int, x: Floats) -> None:
        keep(layer, layer, x)

    def attended(layer: int, x: Floats) -> None:
        keep(layer, layer + 1, x)
        if layer in routers and routers[layer].how.reads == "mixed":
            rms = np.sqrt(np.mean(np.square(x), axis=1, keepdims=True) + np.float32(1e-12))
            read = x if routers[layer].is_scaled else x / rms
            states.logits[layer][at : at + len(x)] = read @ routers[layer].of_states.T

    def routed(layer: int, x: Floats, route: Route) -> None:
        if layer not in routers:
            return
        if routers[layer].how.reads != "mixed":
            states.logits[layer][at : at + len(x)] = x @ routers[layer].weights.T
        states.ids[layer][at : at + len(x)] = route.ids

    def final(x: Floats) -> None:
        nonlocal at
        keep(FINAL, 0, x)
        at += len(x)
        progress(at, total, "tokens")

    run_observed(engine, sequences, Observers(routed, attended, final, entered))
    return states


def _spool(folder: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """An array in a file without a name, so that memory stays free. Its room is taken now: a map that finds the disk
    full later would end the process."""
    nbytes = dtype.itemsize * int(np.prod(shape))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            if sys.platform == "linux":
                os.posix_fallocate(file.fileno(), 0, nbytes)
            else:  # they have none; what is written is there
                for at in range(0, nbytes, _ZEROS):
                    file.write(bytes(min(_ZEROS, nbytes - at)))
                file.flush()
            return np.memmap(file, dtype, "r+", 0, shape)
    except OSError as e:
        raise StoreWriteError(
            f"{folder}: cannot keep {nbytes:,} bytes of states here: {e.strerror or e}; make room "
            "there, the folder writable, or give fewer `tokens`"
        ) from e


def _learn(
    states: _States, routers: dict[int, _Router], progress: Progress
) -> tuple[Predictors, dict[str, list[tuple[float, float]]]]:
    """What is better than the routers themselves, and how right each pair's guesses are, by kind."""
    predictors: Predictors = {}
    right: dict[str, list[tuple[float, float]]] = {}
    for number, (source, target) in enumerate(states.pairs):
        learned = _learn_pair(states, number, routers[target])
        if learned.is_better:
            matrix = _kernels.pack(QUANT, "tiles", np.ascontiguousarray(learned.matrix, np.float32))
            predictors[source, target] = Predictor(matrix, np.ascontiguousarray(learned.offset, np.float32))
        right.setdefault(_kind(source, target), []).append((learned.before, learned.after))
        progress(number + 1, len(states.pairs), "pairs")
    return predictors, right


def _kind(source: int, target: int) -> str:
    if source == FINAL:
        return "the next token's first layer"
    return "a layer, before its attention" if source == target else "the next layer"


def _learn_pair(states: _States, number: int, router: _Router) -> Learned:
    source, target = states.pairs[number]
    rows = later = np.arange(len(states.ends))  # of states, and of what the router says when it is asked
    if source == FINAL:  # of the token before
        rows = np.flatnonzero(~states.ends)
        later = rows + 1
    said, chosen = states.logits[target][later], states.ids[target][later]
    if router.is_scaled:
        said = said / states.rms[number][rows][:, None]
    return learn(states.x[number][rows].astype(np.float32), said, chosen, router.of_states, router.choose)
