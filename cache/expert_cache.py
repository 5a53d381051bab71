"""The expert cache: slots in memory, filled by background reads, each holding one expert's record.

Owns the slots, who is in them, who may not leave, and what was read for whom. Knows nothing about arithmetic or files:
it is handed a read queue and asked by layer and expert; which experts a later layer may want, it is told.

A layer's misses are served by an ExpertRequest, which yields resident experts first, then the others as they land, and
takes an expert's pin away once the caller comes back for the next ones. So a layer may need more experts than there
are slots: it then goes through them in waves.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from smallthinker.cache.expert_request import ABSENT, LATER, NO_SLOT, READING, ExpertRequest
from smallthinker.cache.policies import EvictionPolicy
from smallthinker.cache.read_counters import CacheCounters, CacheStats
from smallthinker.expert_store.read_queue import FinishedRead, ReadQueue
from smallthinker.host import pages

# Guessed records under way beyond which nothing is guessed: enough to keep the disk busy until the next layer is
# certain. Certain ones don't count: the disk is through with them before their last expert is computed, and idle then.
MAX_UNDER_WAY = 6
# Of the wait for a record, what a right guess saves. It would have been read anyway, into the same slot; so only a
# wrong one costs what it evicts.
_SAVED = 0.5


_Use = tuple[int, list[int], Sequence[int] | None, int]  # layer, records, counts, tokens: see `ExpertCache.request`


class _Guess(NamedTuple):
    """What a layer may want: `expected` may not leave before the layer has been served, `read` is read for it alone."""

    expected: set[int]
    read: set[int]


class ExpertCache:
    """`slots` is uint8 [number of slots, record_bytes], page-aligned. Not thread-safe: one caller at a time."""

    def __init__(
        self,
        slots: npt.NDArray[np.uint8],
        queue: ReadQueue,
        policy: EvictionPolicy,
        experts_of_layers: Sequence[int],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """slots: those that `queue` reads into (see `allocate_slots`). experts_of_layers: whose records are counted
        layer after layer. clock: seconds, for what waiting takes."""
        self._clock = clock
        self.slots, self._queue, self._policy = slots, queue, policy
        self._first_of = list(accumulate(experts_of_layers, initial=0))  # record of each layer
        self._record_bytes = slots.shape[1]
        # int32 [records]: the slot of a record that is whole, -1 for the others; not to be written to by others
        self.slot_table = np.full(len(policy.state()), -1, np.int32)
        self._slot_of = memoryview(self.slot_table)  # type: ignore[arg-type]  # numpy takes three times as long for a number
        self._reading: dict[int, int] = {}  # record -> slot, for reads under way
        self._preloading: list[int] = []  # of `_reading`: in the order in which they were asked for
        self._withdrawn: set[int] = set()  # of `_reading`: nobody wants them any more
        self._pinned: set[int] = set()  # records that the open request or a guess needs
        self._active: list[int] = []  # records that were found by `resident_slots`, and are computed now
        self._guesses: dict[int, _Guess] = {}  # by layer
        self._free = list(range(len(slots) - 1, -1, -1))
        self._released: list[int] = []  # slots whose memory the system has now
        self.took_free = threading.Event()  # set each time that a free slot is taken; whoever waits clears it
        self._in_use = False
        # what the policy hasn't heard of yet, in order; and what it has, in this step
        self._used: list[_Use] = []
        self._told: list[_Use] = []
        self._is_held = False
        self._stats = CacheStats(self._record_bytes)
        self._uses: npt.NDArray[np.uint32] = np.zeros(len(policy.state()), np.uint32)

    def uses(self) -> npt.NDArray[np.uint32]:
        """How often a token has used each record since the cache was made, [records]; a copy. From
        any thread."""
        uses: npt.NDArray[np.uint32] = self._uses.copy()
        return uses

    def counters(self) -> CacheCounters:
        """Valid after `free`, too."""
        return self._stats.counters(self._queue.counters())

    @property
    def wanted(self) -> int:
        """Records that were asked for and hadn't been kept, guessed or not, so far."""
        return self._stats.in_time + self._stats.late + self._stats.misses

    @property
    def stall_sec(self) -> float:
        """As `CacheCounters.stall_sec`, for less than all of them cost."""
        return self._stats.stall_sec

    @property
    def limit(self) -> int:
        """Slots that may be used now."""
        return len(self.slots) - len(self._released)

    @property
    def taken(self) -> int:
        """Slots that hold a record, or will soon; the first ones in their order. May be asked from any thread."""
        return len(self.slots) - len(self._free) - len(self._released)

    def is_released(self, slot: int) -> bool:
        """The system has this slot's memory. May be asked from any thread."""
        return slot in self._released

    def is_resident(self, layer: int, expert: int) -> bool:
        return self._slot_of[self._first_of[layer] + expert] >= 0

    def resident_slots(
        self, layer: int, experts: Sequence[int], counts: Sequence[int] | None = None, tokens: int = 1
    ) -> list[int] | None:
        """The slots of a layer's experts if all are resident, counted as hits; None, and nothing counted, if not.

        They stay until the next layer is asked for. A request takes three times as long, which a step without a miss
        feels. counts, tokens: see `request`.
        """
        if self._in_use:  # an interrupt struck while the books were being changed: the next request starts over
            return None
        if self._reading:
            self._in_use = True
            self._handle_completions(self._queue.poll())
            self._in_use = False
        first = self._first_of[layer]
        records = [first + expert for expert in experts]
        slots = [self._slot_of[record] for record in records]
        if -1 in slots:
            return None
        self._stats.hits += len(slots)
        if layer in self._guesses:
            self._in_use = True
            self._resolve_prefetch(layer, records)
            self._in_use = False
        self._used.append((layer, records, counts, tokens))
        self._active = records
        return slots

    def layers_in_table(self, layer: int, layers: int) -> int:
        """From `layer` on, the first of `layers` whose experts must be asked for although `slot_table` has them: reads
        were guessed for it, which end with it; `layers` where there is none. Nothing is to be had from the table while
        the books may be wrong."""
        return layer if self._in_use else min((at for at in self._guesses if at >= layer), default=layers)

    def used_from_table(self, layer: int, used: Sequence[tuple[list[int], list[int], list[int]]], tokens: int) -> None:
        """Some tokens found their experts of this layer, and of those that follow it, in `slot_table`: each layer's
        experts, how many tokens wanted each, and which."""
        for experts, counts, _ in used:
            first = self.first_record(layer)
            self._active = [first + expert for expert in experts]
            self._stats.hits += len(experts)
            self._used.append((layer, self._active, counts if tokens > 1 else None, tokens))
            layer += 1

    def first_record(self, layer: int) -> int:
        """Of the layer's experts in `slot_table`."""
        return self._first_of[layer]

    def request(
        self, layer: int, experts: Sequence[int], counts: Sequence[int] | None = None, tokens: int = 1
    ) -> ExpertRequest:
        """Ask for distinct experts of a layer, in the order in which their reads should start: for `tokens` tokens,
        `counts` of them for each expert (None: all).

        Reads start before this returns, as many as slots can be had for. Use it as a context manager: leaving
        it takes back what was not read yet and unpins the rest. One at a time.
        """
        if self._in_use:  # an interrupt struck while the books were being changed
            self._recover()
        self._in_use = True
        self._active = []
        self._handle_completions(self._queue.poll())
        first = self._first_of[layer]
        records = [first + expert for expert in experts]
        self._used.append((layer, records, counts, tokens))
        self._tell_policy()
        if layer in self._guesses:
            self._resolve_prefetch(layer, records)
        return ExpertRequest(self, layer, records)

    def claim(self, record: int) -> int:
        """For ExpertRequest: its slot, where it stays now; READING for a guess that came late; ABSENT."""
        slot = self._slot_of[record]
        if slot < 0 and (record not in self._reading or record in self._withdrawn):
            self._stats.misses += 1
            return ABSENT
        self._pinned.add(record)
        if slot >= 0:
            self._stats.hits += 1
            return slot
        self._queue.promote(record)
        if record in self._preloading:
            self._preloading.remove(record)
            self._stats.guessed(in_time=False)
        return READING

    def read(self, layer: int, record: int) -> int:
        """For ExpertRequest, of a record that was ABSENT: READING from now on; NO_SLOT to be had for it; LATER, while
        an earlier read of it is being stopped; or its slot, where that turned out to be too late to stop."""
        slot = self._slot_of[record]
        if slot >= 0:
            self._pinned.add(record)
            self._stats.regained()
            return slot
        if record in self._reading:
            return LATER
        taken = self._take_slot(layer)
        if taken is None and self._guesses:  # what is certain goes before what is guessed
            self._withdraw_guesses()
            taken = self._take_slot(layer)
        if taken is None:
            taken = self._take_preloading()
        if taken is None:
            return NO_SLOT
        self._start_read(record, taken, speculative=False)
        return READING

    def wait(self) -> list[FinishedRead]:
        """For ExpertRequest: the reads that have ended, after waiting for one if none has."""
        finished = self._queue.poll()
        if not finished:
            began = self._clock()
            finished = self._queue.wait()
            self._stats.stall_sec += self._clock() - began
        self._handle_completions(finished)
        return finished

    def unpin(self, records: Iterable[int]) -> None:
        """For ExpertRequest: these have been computed."""
        self._pinned.difference_update(records)

    def end_request(self, records: list[int], pending: Iterable[int], interrupted: bool) -> None:
        """For ExpertRequest, whose reads under way, `pending`, nobody waits for any more."""
        if interrupted:
            self._recover()
            return
        self.unpin(records)
        for record in pending:
            if record in self._reading:
                self._withdraw(record)
        self._in_use = False

    def prefetch(
        self, layer: int, experts: Sequence[int], likelihoods: Sequence[float], max_under_way: int = MAX_UNDER_WAY
    ) -> list[int]:
        """A later layer may want these experts, each with the likelihood beside it. Where some are missing, those that
        are resident stay until the layer has been served, the others are read in time in which no certain read is
        waiting, while fewer than `max_under_way` of such records are being read and slots can be had from experts that
        are less likely to be wanted.

        A later call for the same layer knows better: what is still being read for an earlier one alone is withdrawn. A
        likelihood of 0 is not read. Returns the places, in `experts`, of those that weren't resident.
        """
        first = self._first_of[layer]
        records = [first + expert for expert in experts]
        missing = [place for place, record in enumerate(records) if self._slot_of[record] < 0]
        guess = self._guesses.get(layer)
        if guess is None and not missing:
            return missing
        in_request, self._in_use = self._in_use, True
        if guess is None:
            guess = self._guesses[layer] = _Guess(set(), set())
        else:
            for record in guess.read.difference(records) & self._reading.keys():
                guess.read.discard(record)
                guess.expected.discard(record)
                self._withdraw(record)
        kept = {record for record in records if self._slot_of[record] >= 0} - self._pinned
        self._pinned |= kept  # so that they aren't evicted for the others
        guess.expected.update(kept)
        under_way = sum(len(other.read & self._reading.keys()) for other in self._guesses.values())
        for place in missing:
            record, likelihood = records[place], likelihoods[place]
            if record in self._reading or not likelihood or under_way >= max_under_way:
                continue
            slot = self._take_slot(layer, likelihood)
            if slot is not None:
                self._start_read(record, slot, speculative=True)
                guess.expected.add(record)
                guess.read.add(record)
                under_way += 1
        self._in_use = in_request
        return missing

    def preload(self, records: Sequence[int]) -> None:
        """Read these records while nothing else is read, into slots that are free
        now; as many as there are slots for. Returns at once."""
        if self._in_use:
            self._recover()
        self._in_use = True
        for record in records:
            if not self._free:
                break
            if self._slot_of[record] < 0 and record not in self._reading:
                self._start_read(record, self._pop_free(), speculative=True)
                self._preloading.append(record)
        self._in_use = False

    def step(self, tokens: int) -> None:
        """A decode step, or a chunk of `tokens` of a prompt, has been computed."""
        self._tell_policy()
        self._policy.step(tokens)
        records = [record for _, records, _, _ in self._told for record in records]
        counts = [n for _, records, counts, tokens in self._told for n in counts or [tokens] * len(records)]
        # a step may have a record twice, once for each of its tokens; np.add.at takes twice as long
        uses = np.bincount(records, counts, minlength=len(self._uses))
        np.add(self._uses, uses, out=self._uses, casting="unsafe")
        self._told.clear()

    def hold(self) -> None:
        """What is used from now on may turn out not to have been wanted: the policy hears of it in `settle`."""
        self._tell_policy()
        self._is_held = True

    def settle(self, tokens: Iterable[Sequence[tuple[int, list[int]]]]) -> None:
        """Of what was used since `hold`, these tokens were wanted: of each its layers and their experts, best first.
        The policy hears of them as if they had been computed one after another."""
        self._is_held = False
        self._used.clear()
        for layers in tokens:
            for layer, experts in layers:
                first = self._first_of[layer]
                self._used.append((layer, [first + expert for expert in experts], None, 1))
            self.step(1)

    def resize(self, limit: int) -> None:
        """Use at most `limit` slots from now on and give the others' memory to the system, or take it back, up to all.

        Between requests. What a guess needs stays, so the limit may be reached only at a later call."""
        if self._in_use:
            self._recover()
        self._in_use = True
        self._active = []
        limit = min(max(limit, 1), len(self.slots))
        while self.limit < limit:
            regained = self._released.pop()
            pages.allow_huge(self.slots[regained].ctypes.data, self._record_bytes)
            self._free.append(regained)
        while self.limit > limit:
            slot = self._free.pop(0) if self._free else self._take_slot(0)  # those that would be filled last
            if slot is None:
                slot = self._take_preloading()
            if slot is None:
                break
            self._released.append(slot)
            pages.discard(self.slots[slot].ctypes.data, self._record_bytes)
        self._in_use = False

    def free(self) -> None:
        """Give the slots' memory back; the queue is closed by then. Counters stay readable."""
        self.slots = np.empty((0, 0), np.uint8)

    def hot_experts(self) -> npt.NDArray[np.float32]:
        """What the policy has learned, [records]; see `EvictionPolicy.state`."""
        self._tell_policy()
        return self._policy.state()

    def _tell_policy(self) -> None:
        """Hand over what was used, all at once: one by one, between kernels that sweep the processor's caches, each
        costs ten times as much."""
        if self._is_held:
            return
        for layer, records, counts, tokens in self._used:
            self._policy.use(layer, records, counts, tokens)
        self._told += self._used
        self._used.clear()

    def _handle_completions(self, finished: list[FinishedRead]) -> None:
        for record, error in finished:
            slot = self._reading.pop(record)
            withdrawn = record in self._withdrawn
            self._withdrawn.discard(record)
            if record in self._preloading:
                self._preloading.remove(record)
                self._pinned.discard(record)
                self._stats.preloaded += error is None
            if error is None:
                self._slot_of[record] = slot
                self._stats.landed(record)
                if withdrawn:  # it was whole before it could be stopped
                    self._policy.insert(record)
                    self._stats.wasted += 1
                continue
            if not withdrawn:  # broken; whoever needs it will ask again and be told
                self._policy.remove(record)
                self._pinned.discard(record)
                for guess in self._guesses.values():
                    guess.read.discard(record)
            self._free.append(slot)

    def _resolve_prefetch(self, layer: int, records: Sequence[int]) -> None:
        """The layer's experts are known: what was expected in vain may go, reads for nothing end."""
        guess = self._guesses.pop(layer)
        self._pinned -= guess.expected
        for record in guess.read:
            under_way = record in self._reading
            if record in records:
                self._stats.guessed(in_time=not under_way)
            elif under_way:
                self._withdraw(record)
            else:
                self._stats.wasted += 1

    def _withdraw(self, record: int) -> None:
        self._policy.remove(record)
        self._pinned.discard(record)
        if self._queue.cancel(record):
            self._free.append(self._reading.pop(record))
        else:
            self._withdrawn.add(record)

    def _withdraw_guesses(self) -> None:
        """Nothing is expected any more, in any layer."""
        for guess in self._guesses.values():
            self._pinned -= guess.expected
            for record in guess.read & self._reading.keys():
                self._withdraw(record)
        self._guesses.clear()

    def _take_preloading(self) -> int | None:
        """The slot of what is preloaded last, if its read can still be taken back."""
        while self._preloading:
            record = self._preloading.pop()
            free = len(self._free)
            self._withdraw(record)
            if len(self._free) > free:
                return self._free.pop()
        return None

    def _start_read(self, record: int, slot: int, speculative: bool) -> None:
        self._queue.submit(record, slot, speculative)
        self._reading[record] = slot
        self._pinned.add(record)
        # The policy hears of it now, not when it lands: what is evicted must not depend on the disk's timing.
        self._policy.insert(record)

    def _take_slot(self, layer: int, likelihood: float = 1.0) -> int | None:
        """A free slot, or one taken from the policy's victim, for a record that is wanted with this likelihood in
        `layer`; None when every record is pinned, being read, or more of a loss than a guess is worth."""
        if self._free:
            return self._pop_free()
        victim = self._policy.victim(self._pinned.union(self._active), layer)
        if victim is None:
            return None
        if likelihood < 1.0 and (1 - likelihood) * self._policy.score(victim) >= likelihood * _SAVED:
            return None
        self._policy.remove(victim)
        self._stats.evicted(victim)
        slot, self._slot_of[victim] = self._slot_of[victim], -1
        return slot

    def _pop_free(self) -> int:
        self.took_free.set()
        return self._free.pop()

    def _recover(self) -> None:
        """Start over with nothing resident. Ctrl-C can strike between any two lines of this file: what the books say
        then is not to be trusted, and reading some experts again is cheaper than guarding each line."""
        self._queue.drain()
        self._policy.clear()
        self._used.clear()
        self._told.clear()
        self._active = []
        self.slot_table.fill(-1)
        self._reading.clear()
        self._preloading.clear()
        self._withdrawn.clear()
        self._pinned.clear()
        self._guesses.clear()
        released = set(self._released)
        self._free = [slot for slot in range(len(self.slots)) if slot not in released]
        self._in_use = False


def allocate_slots(count: int, record_bytes: int) -> npt.NDArray[np.uint8]:
    """Memory for `count` records: uint8 [count, record_bytes], page-aligned; costs nothing until written."""
    if count < 1:
        raise ValueError(f"slots: expected at least 1, found {count}")
    return np.frombuffer(pages.weights_buffer(count * record_bytes), np.uint8, count * record_bytes).reshape(
        count, record_bytes
    )
