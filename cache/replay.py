"""Replays a recorded routing: what each policy would have hit with so many slots, and what no policy could exceed.

Pure functions over arrays. The model of a cache is that of decoding: each layer's experts are needed at once, so a miss
never evicts what the same layer asked for; nothing is read ahead.

Shape letters: T tokens, L layers, E experts of a layer, k experts per token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from smallthinker.cache.policies import POLICIES, EvictionPolicy

_NEVER = 1 << 62


class Replay(NamedTuple):
    """Of one number of slots: hit rates by policy from 0 to 1, and that of Belady's optimum."""

    slots: int
    hit_rates: dict[str, float]
    optimum: float

    def recovered(self, policy: str) -> float | None:
        """The share of the gap between LRU and the optimum that a policy closes; None where there is none."""
        lru = self.hit_rates["lru"]
        return (self.hit_rates[policy] - lru) / (self.optimum - lru) if self.optimum > lru else None


def replay(ids: npt.NDArray[Any], experts: int, slots: int, done: Callable[[], None] | None = None) -> Replay:
    """Every policy of POLICIES and the optimum, from an empty cache. ids [T, L, k]; experts: E.

    `done` is called after each of the len(POLICIES) + 1 of them. Raises ValueError when the slots are fewer than k.
    """
    _, layers, k = ids.shape
    rates = {}
    for name, policy in POLICIES.items():
        rates[name] = hits(policy([experts] * layers, [k] * layers), ids, experts, slots) / ids.size
        if done is not None:
            done()
    best = optimal_hits(ids, experts, slots) / ids.size
    if done is not None:
        done()
    return Replay(slots, rates, best)


def hits(policy: EvictionPolicy, ids: npt.NDArray[Any], experts: int, slots: int) -> int:
    """Of T * L * k requests, those that found their expert resident."""
    tokens, layers, k = ids.shape
    _check_slots(slots, k)
    keys = (ids.astype(np.int64) + experts * np.arange(layers)[:, None]).tolist()
    resident: set[int] = set()
    found = 0
    for t in range(tokens):
        for layer, wanted in enumerate(keys[t]):
            policy.use(layer, wanted)
            missing = [key for key in wanted if key not in resident]
            found += k - len(missing)
            for key in missing:
                if len(resident) >= slots:
                    victim = policy.victim(wanted, layer)
                    assert victim is not None and victim in resident and victim not in wanted
                    policy.remove(victim)
                    resident.remove(victim)
                policy.insert(key)
                resident.add(key)
        policy.step()
    return found


def optimal_hits(ids: npt.NDArray[Any], experts: int, slots: int) -> int:
    """As `hits`, of Belady's optimum (MIN): evict what is used again last, of what the layer doesn't need itself.

    Nothing that reads on demand hits more. A test holds it against all possible choices.
    """
    _, layers, k = ids.shape
    _check_slots(slots, k)
    keys = (ids.astype(np.int64) + experts * np.arange(layers)[:, None]).reshape(-1, k)
    requests = len(keys)
    next_use = np.full((requests, k), _NEVER)
    upcoming = np.full(layers * experts, _NEVER)
    for at in range(requests - 1, -1, -1):
        next_use[at] = upcoming[keys[at]]
        upcoming[keys[at]] = at
    late = np.full(layers * experts, -1)  # when a resident is used next; -1 for the others
    free, found = slots, 0
    for at in range(requests):
        wanted = keys[at]
        missing = int(np.count_nonzero(late[wanted] < 0))
        found += k - missing
        late[wanted] = -1  # not to be evicted now
        for _ in range(missing - min(free, missing)):
            late[late.argmax()] = -1
        free -= min(free, missing)
        late[wanted] = next_use[at]
    return found


def _check_slots(slots: int, k: int) -> None:
    if slots < k:
        raise ValueError(f"slots: expected at least {k}, the experts of one token in one layer, found {slots}")
