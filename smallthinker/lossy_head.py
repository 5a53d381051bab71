"""An LM head that computes only the rows a predictor deems likely. LOSSY: a token that it misses can't be sampled.

The predictor is the one published beside the models (`model_lm_head.pt`): two matrices with nothing between, scores =
fc2 @ (fc1 @ h), and a row of the head counts where its score is above a threshold. As in PowerInfer's
smallthinker/powerinfer/powerinfer-cpu/src/sparse_lmhead.cpp (SJTU-IPADS/PowerInfer, commit d3ebd7c): both matrices in
q4_0, threshold 0, no clamp. Unlike there, skipped logits are -inf, not 0, and the best FEWEST_ROWS rows always count,
so that there is something to sample from.

Shape letters: T tokens, d hidden_size, H the predictor's width, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from smallthinker import _kernels
from smallthinker.errors import CheckpointError, RequestError
from smallthinker.measures.profile import Stopwatch
from smallthinker.models.description import Head, Model

DEFAULT_THRESHOLD = 0.0
FEWEST_ROWS = 64
CHECK_EVERY = 16  # tokens; of these the exact head is computed too, only to count how often the answers agree
QUANT: _kernels.Quant = "q4_0"

_STRIP_ROWS = 1024  # packed at a time, a multiple of a tile's rows: the file is larger than what is kept of it

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class HeadCounters:
    """Since the head was made. rows_computed are in groups of 16 rows, of which one was chosen; check_sec is what the
    exact head cost for the checked tokens."""

    tokens: int = 0
    rows_chosen: int = 0
    rows_computed: int = 0
    rows_total: int = 0
    checked: int = 0
    agreed: int = 0
    check_sec: float = 0.0

    def __sub__(self, earlier: HeadCounters) -> HeadCounters:
        return HeadCounters(*(a - b for a, b in zip(astuple(self), astuple(earlier), strict=True)))

    def line(self) -> str:
        """For people."""
        rows = max(1, self.rows_total)
        return (
            f"lossy head: {self.rows_computed / rows:.1%} of its rows computed ({self.rows_chosen / rows:.1%} chosen), "
            f"the likeliest token is the exact head's in {self.agreed} of {self.checked} checked "
            f"(checks: {1000 * self.check_sec / max(1, self.tokens):.3f} ms a token)"
        )


class HeadPredictor:
    """A predictor's file, checked against the model. width: H; `packed_bytes` is what `load` will take."""

    def __init__(self, path: str | Path, config: Model) -> None:
        """Raises CheckpointError: not a torch file of two matrices fc1 [H, d] and fc2 [V, H]."""
        from smallthinker.expert_store.sources.torch_file import (
            TorchFile,  # zip files and pickles: nobody else needs them
        )

        self._file = TorchFile(path)
        try:
            self._names = self._check(config)
        except BaseException:
            self._file.close()
            raise

    def _check(self, config: Model) -> tuple[str, str]:
        d, vocab, found = config.hidden_size, config.vocab_size, self._file.matrices
        if config.head != Head(config.head.tied):
            raise CheckpointError(
                f"{self._file.path}: expected a model whose logits are plain products, found one that adds a bias to "
                "them, scales or caps them; leave `lossy_head` out"
            )
        names = next((n for n in (("fc1.weight", "fc2.weight"), ("fc1", "fc2")) if set(n) == set(found)), None)
        if names is None:
            raise CheckpointError(
                f"{self._file.path}: expected the tensors fc1.weight and fc2.weight of an LM-head predictor and no "
                f"others, found {', '.join(sorted(found))[:120] or 'none'}"
            )
        fc1, fc2 = (found[name].shape for name in names)
        width = fc1[0]
        # a predictor as wide as the model costs more than the head that it saves
        if fc1 != (width, d) or fc2 != (vocab, width) or not 0 < width <= d or width % 32:
            raise CheckpointError(
                f"{self._file.path}: expected fc1 [H, {d}] and fc2 [{vocab}, H] for this model, H a multiple of 32 up "
                f"to {d}, found {list(fc1)} and {list(fc2)}; take the model_lm_head.pt that was published with it"
            )
        self.width = fc1[0]
        self._shapes = fc1, fc2
        return names

    @property
    def packed_bytes(self) -> int:
        return sum(_kernels.packed_bytes(QUANT, "tiles", *shape) for shape in self._shapes)

    def load(self) -> tuple[Bytes, Bytes]:
        """fc1 and fc2 in tiles. Raises CheckpointError when the file is damaged."""
        fc1, fc2 = (self._pack(name, rows, cols) for name, (rows, cols) in zip(self._names, self._shapes, strict=True))
        return fc1, fc2

    def _pack(self, name: str, rows: int, cols: int) -> Bytes:
        tiles = np.empty(_kernels.packed_bytes(QUANT, "tiles", rows, cols), np.uint8)
        at = 0
        for strip in self._file.strips(name, _STRIP_ROWS):
            packed = _kernels.pack(QUANT, "tiles", strip)
            tiles[at : at + len(packed)] = packed
            at += len(packed)
        return tiles

    def close(self) -> None:
        self._file.close()


class LossyHead:
    """Logits of the rows that count, -inf elsewhere; a token's are the same whatever it shares a call with."""

    def __init__(
        self,
        predictor: HeadPredictor,
        pool: _kernels.ThreadPool,
        config: Model,
        quant: _kernels.Quant,
        head: Bytes,
        threshold: float = DEFAULT_THRESHOLD,
    ) -> None:
        """head: the exact one, [V, d] in tiles of `quant`. Raises CheckpointError when the predictor's file is damaged,
        RequestError for a threshold that is not a number."""
        if not math.isfinite(threshold):
            raise RequestError(f"lossy_threshold: expected a finite number, found {threshold}")
        self._pool, self._quant, self._head, self._threshold = pool, quant, head, np.float32(threshold)
        self._d, self._vocab = config.hidden_size, config.vocab_size
        self._width = predictor.width
        self._fc1, self._fc2 = predictor.load()
        groups = -(-self._vocab // _kernels.TILE_ROWS)
        self._chosen = np.zeros(groups * _kernels.TILE_ROWS, np.bool_)
        self._tokens = self._rows_chosen = self._rows_computed = self._checked = self._agreed = 0
        self._checking = Stopwatch()

    def logits(self, h: Floats) -> Floats:
        """h [T, d], normed -> [T, V]."""
        out = np.full((len(h), self._vocab), -np.inf, np.float32)
        for t in range(len(h)):
            self._one_token(h[t : t + 1], out[t : t + 1])
        return out

    def _one_token(self, h: Floats, out: Floats) -> None:
        groups = self._choose(h)
        _kernels.linear_groups(self._pool, self._quant, self._head, self._vocab, self._d, groups, h, out)
        if self._tokens % CHECK_EVERY == 0:
            with self._checking:
                exact = self._linear(self._quant, self._head, self._vocab, h)
                self._agreed += int(exact.argmax() == out.argmax())
                self._checked += 1
        self._tokens += 1

    def _choose(self, h: Floats) -> npt.NDArray[np.int32]:
        """The groups of 16 rows with a row above the threshold or among the best FEWEST_ROWS."""
        scores = self._linear(QUANT, self._fc2, self._vocab, self._linear(QUANT, self._fc1, self._width, h))[0]
        chosen = self._chosen[: self._vocab]
        np.greater(scores, self._threshold, out=chosen)
        fewest = min(FEWEST_ROWS, self._vocab)
        if np.count_nonzero(chosen) < fewest:
            best = np.empty(fewest, np.int32)
            _kernels.top_ids(self._pool, scores, best)
            chosen[best] = True
        # a group's 16 flags as two words: 20 us for 151,936 rows where any() over 16 takes 500
        words = self._chosen.view(np.uint64)
        groups = np.flatnonzero(words[0::2] | words[1::2]).astype(np.int32)
        self._rows_chosen += int(np.count_nonzero(chosen))
        self._rows_computed += min(len(groups) * _kernels.TILE_ROWS, self._vocab)
        return groups

    def _linear(self, quant: _kernels.Quant, data: Bytes, rows: int, x: Floats) -> Floats:
        out = np.empty((1, rows), np.float32)
        _kernels.linear(self._pool, quant, data, rows, x.shape[1], x, out)
        return out

    def counters(self) -> HeadCounters:
        return HeadCounters(
            self._tokens,
            self._rows_chosen,
            self._rows_computed,
            self._tokens * self._vocab,
            self._checked,
            self._agreed,
            self._checking.sec,
        )
