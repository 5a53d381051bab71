"""Learns a predictor from recorded states and routes. The one file of the installed program that imports torch.

For each pair of layers: a least-squares fit of what the target's router will say, beginning at the router itself, then
a descent on the cross-entropy of the chosen experts, which ranks better where the state changes much (the first layer:
0.62 of the guesses right after the fit, 0.78 after the descent). A part of the tokens decides which step of that way is
kept, the router itself being the first; another part, seen by none of it, says how good it is.

Shape letters: N tokens, d hidden_size, E experts of a layer, k experts per token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

Floats = npt.NDArray[np.float32]

TRAINED, VALIDATED = 0.7, 0.8  # of the tokens: up to where they are learned from, and up to where chosen by
RIDGES = (0.3, 3.0)  # of the mean square of a feature
STEPS, BATCH, RATE = 400, 512, 0.003
_LOOK_EVERY = 100  # steps between two candidates
_OFFSET_RATE = 0.02


class Learned(NamedTuple):
    """`matrix` [E, d]; shares, from 0 to 1, of k guesses that are right on tokens held out: of the router asked with
    the same state, and of the matrix."""

    matrix: Floats
    before: float
    after: float


class Source:
    """The states within one layer, and what has to be found out from them only once."""

    def __init__(self, states: npt.NDArray[np.float16], threads: int) -> None:
        """states [N, d], each of mean square 1, in the order of the text."""
        torch.set_num_threads(threads)
        self._x = torch.from_numpy(np.asarray(states, np.float32))
        n = len(states)
        self._train, self._valid = int(n * TRAINED), int(n * VALIDATED)
        x = self._x[: self._train]
        gram = x.T @ x
        self._factors = [self._factor(gram, ridge) for ridge in RIDGES]

    @staticmethod
    def _factor(gram: torch.Tensor, ridge: float) -> torch.Tensor:
        added = gram.clone()
        added.diagonal().add_(ridge * gram.diagonal().mean().clamp_min(1e-6))
        lower: torch.Tensor = torch.linalg.cholesky(added)
        return lower

    def learn(self, router: Floats, chosen: npt.NDArray[Any], change: Floats | None, seed: int) -> Learned:
        """What chooses as the router [E, d] of a target will. chosen [N, k]: the experts it chose. change [N, E]: its
        logits then, less those for the states here; None where the states have nothing to do with each other."""
        start = torch.from_numpy(router)
        y = torch.zeros(len(self._x), len(router)).scatter_(1, torch.from_numpy(chosen.astype(np.int64)), 1.0)
        best, best_right = start, self._right(start, y, self._train, self._valid)
        for factor in self._factors:
            fitted = self._fit(factor, start, y, change)
            right = self._right(fitted, y, self._train, self._valid)
            if right > best_right:
                best, best_right = fitted, right
        for matrix in self._descend(best, y, seed):
            right = self._right(matrix, y, self._train, self._valid)
            if right > best_right:
                best, best_right = matrix, right
        end = len(y)
        before, after = (self._right(matrix, y, self._valid, end) for matrix in (start, best))
        return Learned(np.ascontiguousarray(best.numpy()), before, after)

    def _right(self, matrix: torch.Tensor, y: torch.Tensor, start: int, stop: int) -> float:
        """The share of k guesses that are right, from token `start` to `stop`."""
        k = int(y[0].sum())
        guessed = (self._x[start:stop] @ matrix.T).topk(k, 1).indices
        return float(y[start:stop].gather(1, guessed).mean())

    def _fit(self, factor: torch.Tensor, start: torch.Tensor, y: torch.Tensor, change: Floats | None) -> torch.Tensor:
        x, n = self._x[: self._train], self._train
        wanted = y[:n] - y[:n].mean() if change is None else torch.from_numpy(change[:n])
        solved = torch.cholesky_solve(x.T @ wanted, factor).T
        return solved if change is None else start + solved

    def _descend(self, start: torch.Tensor, y: torch.Tensor, seed: int) -> Iterator[torch.Tensor]:
        """Matrices on the way down from `start`."""
        x, n = self._x[: self._train], self._train
        base = x @ start.T
        scale = 1 / base.std().clamp_min(1e-6)
        start, base = start * scale, base * scale
        learned = torch.zeros_like(start, requires_grad=True)
        # how sure to be and how many to choose: no part of the ranking, and so none of the matrix
        sure, offset = torch.ones((), requires_grad=True), torch.full((), -1.0, requires_grad=True)
        groups = [{"params": [learned], "lr": RATE}, {"params": [sure, offset], "lr": _OFFSET_RATE}]
        adam = torch.optim.Adam(groups)
        dice = torch.Generator().manual_seed(seed)
        for step in range(STEPS):
            adam.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
            batch = torch.randint(n, (min(BATCH, n),), generator=dice)
            logits = sure * (base[batch] + x[batch] @ learned.T) + offset
            loss = binary_cross_entropy_with_logits(logits, y[batch])
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            if (step + 1) % _LOOK_EVERY == 0:
                yield start + learned.detach()
