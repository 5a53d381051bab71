"""The prefetch planner: turns a layer's routes into work, one entry per expert, and into an order of reads.

Pure functions over ids. Handed what is resident; knows nothing about slots, files or threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class ExpertWork(NamedTuple):
    """One expert and the tokens that chose it. `pairs`: indices into the flattened [T, k] route, ascending."""

    expert: int
    pairs: list[int]


def group_by_expert(ids: npt.NDArray[np.int32]) -> list[ExpertWork]:
    """ids [T, k] -> one entry per distinct expert: each is read and computed once, however many tokens chose it."""
    flat = ids.ravel()
    if ids.shape[0] == 1:  # a decode step: k distinct experts, one token each, in the router's order
        return [ExpertWork(expert, [pair]) for pair, expert in enumerate(flat.tolist())]
    order = np.argsort(flat, kind="stable")
    experts, starts = np.unique(flat[order], return_index=True)
    ends = [*starts[1:].tolist(), len(flat)]
    pairs = order.tolist()
    return [
        ExpertWork(expert, pairs[start:end])
        for expert, start, end in zip(experts.tolist(), starts.tolist(), ends, strict=True)
    ]


def plan_reads(work: list[ExpertWork], is_resident: Callable[[int], bool]) -> list[ExpertWork]:
    """Resident experts first, so that they compute while the others are read; then the misses, most tokens first.

    A miss with many tokens gives the longest arithmetic to hide the next read behind. In a decode step all have one
    token and the router's order, best first, stays.
    """
    return sorted(work, key=lambda entry: (not is_resident(entry.expert), -len(entry.pairs)))
