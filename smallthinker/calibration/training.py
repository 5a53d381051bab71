"""Learns, from recorded states and what routers said later, to say it earlier: least squares, and nothing but numpy.

For each pair of layers a matrix and an offset, beginning at the router itself: what it says of the earlier state is
wrong by what lies between, most of which is the same for every token (the offset) or linear in the state. A descent on
the cross-entropy of the chosen experts after that ranked worse on other text (0.86 of the guesses right, 0.91 before
it). A part of the tokens decides how much is learned, nothing being the first choice; another part, seen by none of it,
says how good it is.

Shape letters: N tokens, d hidden_size, E experts of a layer, k experts per token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[Any]

TRAINED, VALIDATED = 0.7, 0.8  # of the tokens: up to where they are learned from, and up to where chosen by
RIDGES = (0.01, 0.1, 1.0, 10.0)  # of the mean square of a feature


class Learned(NamedTuple):
    """`matrix` [E, d], `offset` [E]; shares, from 0 to 1, of k guesses that are right on tokens held out: of the router
    asked with the same state, and of these. is_better: than the router, on tokens that chose."""

    matrix: Floats
    offset: Floats
    before: float
    after: float
    is_better: bool


def held_out(tokens: int) -> int:
    """How many of them nothing is learned from or chosen by."""
    return tokens - int(tokens * VALIDATED)


def learn(states: Floats, said: Floats, chosen: Ids, router: Floats, choose: Callable[[Floats], Ids]) -> Learned:
    """states [N, d], each of mean square 1, in the order of the text; said [N, E]: what the router said later, and
    chosen [N, k]. router [E, d]: as it would be asked with these states. choose: logits [N, E] -> ids [N, k]."""
    train, valid = int(len(states) * TRAINED), int(len(states) * VALIDATED)

    def right(matrix: Floats, offset: Floats, rows: slice) -> float:
        guessed = choose(states[rows] @ matrix.T + offset)
        return float((guessed[:, :, None] == chosen[rows][:, None, :]).any(2).mean())

    def fits() -> Iterator[tuple[Floats, Floats]]:
        x, ids = states[:train], chosen[:train]
        solve = _solver(x)
        for ridge in RIDGES:
            change, offset = solve(said[:train] - x @ router.T, ridge)
            yield router + change, offset
        # Where the states have little to do with each other, what is likely is not what the mean logits say.
        is_chosen = np.zeros((train, len(router)), np.float32)
        np.put_along_axis(is_chosen, ids.astype(np.int64), 1.0, 1)
        for ridge in RIDGES:
            yield solve(is_chosen, ridge)

    nothing = np.zeros(len(router), np.float32)
    best, best_right = (router, nothing), right(router, nothing, slice(train, valid))
    at_router = best_right
    for matrix, offset in fits():
        found = right(matrix, offset, slice(train, valid)) if np.isfinite(matrix).all() else 0.0
        if found > best_right:
            best, best_right = (matrix, offset), found
    rest = slice(valid, None)
    return Learned(*best, right(router, nothing, rest), right(*best, rest), best_right > at_router)


def _solver(x: Floats) -> Callable[[Floats, float], tuple[Floats, Floats]]:
    """For x [N, d]: (wanted [N, E], ridge) -> a matrix [E, d] and an offset [E] that say nearly `wanted` of x."""
    mean = x.mean(0)
    centred = x - mean
    gram = centred.T @ centred
    scale = max(float(gram.trace()) / len(gram), 1e-6)

    def solve(wanted: Floats, ridge: float) -> tuple[Floats, Floats]:
        offset, diagonal = wanted.mean(0), np.eye(len(gram), dtype=np.float32) * np.float32(ridge * scale)
        matrix: Floats = np.linalg.solve(gram + diagonal, centred.T @ (wanted - offset)).T
        return matrix, offset - matrix @ mean

    return solve
