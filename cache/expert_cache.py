"""The expert cache: slots in memory, filled by background reads, each holding one expert's record.

Owns the slots' memory and what each call means; who is in which slot, who may not leave and what was read for whom is
kept by the native books (native/books.h), which every call asks once. Knows nothing about arithmetic or files: it is
handed a read queue and asked by layer and expert; which experts a later layer may want, it is told.

A layer's misses are served by an ExpertRequest, which yields resident experts first, then the others as they land, and
lets an expert go once the caller comes back for the next ones. So a layer may need more experts than there are slots:
it then goes through them in waves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from smallthinker import _cache
from smallthinker.cache.policies import EvictionPolicy
from smallthinker.cache.read_counters import CacheCounters, counted
from smallthinker.expert_store.read_queue import ReadQueue
from smallthinker.host import pages

# Guessed records under way beyond which nothing is guessed: enough to keep the disk busy until the next layer is
# certain. Certain ones don't count: the disk is through with them before their last expert is computed, and idle then.
MAX_UNDER_WAY = 6


class ExpertRequest:
    """The experts of one layer's request. Iterate for lists of (place in the request, slot that holds the record): each
    expert exactly once, to be computed before the next list is asked for. Raises StoreReadError."""

    def __init__(self, books: _cache.Books) -> None:
        self._books = books

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self._books.landed, [])

    def __enter__(self) -> ExpertRequest:
        return self

    def __exit__(self, *_: object) -> None:
        """Withdraw the reads that are not over, unpin everything."""
        self._books.end_request()


class ExpertCache:
    """`slots` is uint8 [number of slots, record_bytes], page-aligned. Not thread-safe: one caller at a time.

    Ctrl-C between two calls leaves books that are right: a request that was left open ends with the next one.
    """

    def __init__(
        self,
        slots: npt.NDArray[np.uint8],
        queue: ReadQueue,
        policy: EvictionPolicy,
        experts_of_layers: Sequence[int],
        clock: Callable[[], float] | None = None,
    ) -> None:
        """slots: those that `queue` reads into (see `allocate_slots`). experts_of_layers: whose records are counted
        layer after layer. clock: seconds, for what waiting takes; None: the system's."""
        self.slots, self._queue, self._policy = slots, queue, policy
        self._record_bytes = slots.shape[1]
        # int32 [records]: the slot of a record that is whole, -1 for the others; not to be written to by others
        self.slot_table = np.full(sum(experts_of_layers), -1, np.int32)
        self.took_free = threading.Event()  # set each time that a free slot is taken; whoever waits clears it
        self._books = _cache.Books(
            policy, queue, experts_of_layers, len(slots), self.slot_table, clock=clock, took_free=self.took_free.set
        )

    @property
    def books(self) -> _cache.Books:
        """For whoever asks without Python between (`_kernels.Layers`)."""
        return self._books

    def uses(self) -> npt.NDArray[np.uint32]:
        """How often a token has used each record since the cache was made, [records]; a copy. From
        any thread."""
        return self._books.uses()

    def counters(self) -> CacheCounters:
        """Valid after `free`, too."""
        return counted(self._books.counts(), self._record_bytes, self._queue.counters())

    @property
    def wanted(self) -> int:
        """Records that were asked for and hadn't been kept, guessed or not, so far."""
        _, in_time, late, misses, *_ = self._books.counts()
        return in_time + late + misses

    @property
    def stall_sec(self) -> float:
        """As `CacheCounters.stall_sec`, for less than all of them cost."""
        return self._books.counts()[-1]

    @property
    def limit(self) -> int:
        """Slots that may be used now."""
        return self._books.limit

    @property
    def taken(self) -> int:
        """Slots that hold a record, or will soon; the first ones in their order. May be asked from any thread."""
        return self._books.taken

    def is_released(self, slot: int) -> bool:
        """The system has this slot's memory. May be asked from any thread."""
        return slot in self._books.released_slots

    def resident_slots(
        self, layer: int, experts: Sequence[int], counts: Sequence[int] | None = None, tokens: int = 1
    ) -> list[int] | None:
        """The slots of a layer's experts if all are resident, counted as hits; None, and nothing counted, if not.

        They stay until the next layer is asked for. counts, tokens: see `request`.
        """
        return self._books.find(layer, experts, counts, tokens)

    def request(
        self, layer: int, experts: Sequence[int], counts: Sequence[int] | None = None, tokens: int = 1
    ) -> ExpertRequest:
        """Ask for distinct experts of a layer: for `tokens` tokens, `counts` of them for each expert (None: all).

        Reads start before this returns, as many as slots can be had for: what most tokens want first, which gives the
        longest arithmetic to hide the next read behind, else in the given order. Use it as a context manager: leaving
        it takes back what was not read yet and unpins the rest. One at a time.
        """
        self._books.request(layer, experts, counts, tokens)
        return ExpertRequest(self._books)

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
        return self._books.prefetch(layer, experts, likelihoods, max_under_way)

    def preload(self, records: Sequence[int]) -> None:
        """Read these records while nothing else is read, into slots that are free
        now; as many as there are slots for. Returns at once."""
        self._books.preload(records)

    def step(self, tokens: int) -> None:
        """A decode step, or a chunk of `tokens` of a prompt, has been computed."""
        self._books.step(tokens)

    def hold(self) -> None:
        """What is used from now on may turn out not to have been wanted: the policy hears of it in `settle`."""
        self._books.hold()

    def settle(self, tokens: Iterable[Sequence[tuple[int, list[int]]]]) -> None:
        """Of what was used since `hold`, these tokens were wanted: of each its layers and their experts, best first.
        The policy hears of them as if they had been computed one after another."""
        self._books.settle(list(tokens))

    def resize(self, limit: int) -> None:
        """Use at most `limit` slots from now on and give the others' memory to the system, or take it back, up to all.

        Between requests. What a guess needs stays, so the limit may be reached only at a later call."""
        regained, released = self._books.resize(limit)
        for slot in regained:
            pages.allow_huge(self.slots[slot].ctypes.data, self._record_bytes)
        for slot in released:
            pages.discard(self.slots[slot].ctypes.data, self._record_bytes)

    def free(self) -> None:
        """Give the slots' memory back; the queue is closed by then. Counters stay readable."""
        self.slots = np.empty((0, 0), np.uint8)

    def hot_experts(self) -> npt.NDArray[np.float32]:
        """What the policy has learned, [records]; see `EvictionPolicy.state`."""
        self._books.tell_policy()
        return self._policy.state()


def allocate_slots(count: int, record_bytes: int) -> npt.NDArray[np.uint8]:
    """Memory for `count` records: uint8 [count, record_bytes], page-aligned; costs nothing until written."""
    if count < 1:
        raise ValueError(f"slots: expected at least 1, found {count}")
    return np.frombuffer(pages.weights_buffer(count * record_bytes), np.uint8, count * record_bytes).reshape(
        count, record_bytes
    )
