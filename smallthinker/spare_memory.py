"""What a budget set aside for a start and the start didn't need: measured while tokens are decoded, lent to experts.

Owns when it is measured and how much is lent. A plan can't know what libraries and Python will take, so it reserves
what was seen at worst (`memory_plan.STARTING_BYTES`); most of that stays unused, and an expert more in memory is one
less to read. Knows nothing of what the slots hold.
"""

from __future__ import annotations

from smallthinker import host
from smallthinker.memory_plan import MIB, STARTING_BYTES

KEPT_BYTES = 8 * MIB  # free of the budget, whatever is lent
USUAL_BYTES = 8 * MIB  # lent: seen 8 to 10 MiB under a kernel's limit
FIRST_TOKENS, _MOST_TOKENS = 8, 256  # decoded before it is measured for the first time, and between two times
_MOST_SHARE = 4  # of the planned slots, one in so many


class SpareMemory:
    """`slots`: how many more than planned may be used. From the first measurement on; fewer again where others take the
    memory after all. `usual`: what it mostly comes to."""

    def __init__(self, budget_bytes: int, record_bytes: int, planned: int, most: int) -> None:
        """planned: slots at most; most: slots that the model needs in all."""
        self.slots = 0
        self._budget_bytes, self._record_bytes = budget_bytes, record_bytes
        self.most = max(0, min(STARTING_BYTES // record_bytes, planned // _MOST_SHARE, most - planned))
        self.usual = min(USUAL_BYTES // record_bytes, self.most)
        self._next_tokens, self._step = FIRST_TOKENS, FIRST_TOKENS

    def look(self, decoded_tokens: int, taken: int, planned: int) -> bool:
        """After so many tokens, with `taken` slots in use of the `planned` ones beside what contexts and scratch take
        now. Whether `slots` has changed."""
        if not self.most or decoded_tokens < self._next_tokens or taken < planned:
            return False
        self._step = min(2 * self._step, _MOST_TOKENS)
        self._next_tokens = decoded_tokens + self._step
        before = self.slots
        room = min(self._budget_bytes - host.resident_bytes(), host.uncharged_bytes(default=self._budget_bytes))
        spare = room - KEPT_BYTES + (taken - planned) * self._record_bytes
        self.slots = min(max(spare // self._record_bytes, 0), self.most)
        return self.slots != before
