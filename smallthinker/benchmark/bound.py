"""What no cache could exceed: the most hits that decode steps could have had, with the routing known in advance.

Pure functions over a recorded routing. Shape letters: T tokens, L layers, E experts of a layer, k experts per token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from smallthinker.cache.replay import optimal_hits
from smallthinker.router.trace import Trace, expert_use


def decode_ids(trace: Trace, answer: int, prompt_tokens: int) -> npt.NDArray[Any]:
    """The experts [T, L, k] of the decode steps of the trace's n-th sequence."""
    ends = [*trace.starts[1:].tolist(), trace.tokens]
    return trace.ids[int(trace.starts[answer]) + prompt_tokens : ends[answer]]


def best_hit_rate(trace: Trace, answer: int, prompt_tokens: int, slots: int) -> float:
    """Belady's bound for the decode steps of one answer, from 0 to 1.

    Decoding begins with whatever the tokens before it brought in. So its bound is that of an empty cache (MIN), which
    counts each expert's first read as a miss, plus a hit for each expert that was used before and could have been kept
    until its first use here: at most as many as there are slots.
    """
    ids = decode_ids(trace, answer, prompt_tokens)
    layers, experts = trace.layers, trace.experts
    first = int(trace.starts[answer]) + prompt_tokens
    before, wanted = (_keys(part, experts) for part in (trace.ids[:first], ids))
    kept = min(slots, int(np.intersect1d(before, wanted).size))
    hits = optimal_hits(ids, experts, min(slots, layers * experts)) + kept
    return min(1.0, hits / ids.size)


def decode_use(trace: Trace, prompt_tokens: int) -> npt.NDArray[np.float64]:
    """The share of all answers' decoded tokens that use each expert, [L, E]."""
    parts = [decode_ids(trace, answer, prompt_tokens) for answer in range(len(trace.starts))]
    return expert_use(np.concatenate(parts), trace.experts)


def _keys(ids: npt.NDArray[Any], experts: int) -> npt.NDArray[np.int64]:
    layers = ids.shape[1]
    keys: npt.NDArray[np.int64] = ids.astype(np.int64) + experts * np.arange(layers)[:, None]
    return np.unique(keys)
