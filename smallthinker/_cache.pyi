"""The books of `cache.expert_cache.ExpertCache` and the arithmetic of `cache.policies.Frequency` (cache/native/): asked
between two kernels, where what Python does costs ten times what it does elsewhere. Keys and records count experts layer
after layer; IndexError for any other.
"""

from collections.abc import Callable, Collection, Sequence

import numpy as np
import numpy.typing as npt

from smallthinker.cache.policies import EvictionPolicy
from smallthinker.expert_store.read_queue import ReadQueue

class Frequency:
    def __init__(
        self,
        experts: Sequence[int],
        per_token: Sequence[float],
        *,
        memory_tokens: Sequence[float],
        prior_tokens: float,
        judged_tokens: float,
        trust: float,
        least_chance: float,
    ) -> None:
        """experts: of each layer; per_token: how many of them a token uses. memory_tokens: what each average is over.
        judged_tokens: what their weights follow. Raises ValueError."""

    def insert(self, key: int) -> None: ...
    def remove(self, key: int) -> None:
        """Raises KeyError for what isn't resident."""

    def use(self, layer: int, keys: Sequence[int], counts: Sequence[int] | None = None, tokens: int = 1) -> None: ...
    def step(self, tokens: int = 1) -> None: ...
    def victim(self, pinned: Collection[int], layer: int) -> int | None: ...
    def score(self, key: int) -> float: ...
    def state(self) -> npt.NDArray[np.float32]: ...
    def restore_chances(self, chances: npt.NDArray[np.float64], tokens: float) -> None:
        """Begin with these, float64 [keys], as if so many tokens had shown them. Raises ValueError."""

class Books:
    """Who is in which slot. A queue that has `lend` (`NativeQueue`) is asked without Python; so is a `Frequency`."""

    def __init__(
        self,
        policy: EvictionPolicy,
        queue: ReadQueue,
        experts: Sequence[int],
        slots: int,
        slot_table: npt.NDArray[np.int32],
        *,
        clock: Callable[[], float] | None,
        took_free: Callable[[], object],
    ) -> None:
        """experts: of each layer. slot_table: [records], kept and written to. clock: seconds, for what waiting takes.
        took_free: called each time that a free slot is taken. Raises ValueError."""

    def find(
        self, layer: int, experts: Sequence[int], counts: Sequence[int] | None, tokens: int
    ) -> list[int] | None: ...
    def request(self, layer: int, experts: Sequence[int], counts: Sequence[int] | None, tokens: int) -> None:
        """Begins a layer's; one that is open ends."""

    def landed(self) -> list[tuple[int, int]]:
        """Places in the request and their slots, at least one; empty when all have been handed out. Those of the call
        before may leave. Raises StoreReadError."""

    def end_request(self) -> None: ...
    def prefetch(
        self, layer: int, experts: Sequence[int], likelihoods: Sequence[float], max_under_way: int
    ) -> list[int]: ...
    def preload(self, records: Sequence[int]) -> None: ...
    def step(self, tokens: int) -> None: ...
    def hold(self) -> None: ...
    def settle(self, tokens: Sequence[Sequence[tuple[int, Sequence[int]]]]) -> None: ...
    def lend(self) -> object:
        """A capsule, for `_kernels.Layers`, that is good as long as these books are there."""

    def tell_policy(self) -> None: ...
    def resize(self, limit: int) -> tuple[list[int], list[int]]:
        """Slots that are used again, and slots that no longer are."""

    def counts(self) -> tuple[int, int, int, int, int, int, int, int, float]:
        """As `read_counters.counted` takes them."""

    def uses(self) -> npt.NDArray[np.uint32]: ...
    @property
    def free_slots(self) -> list[int]: ...
    @property
    def released_slots(self) -> list[int]: ...
    @property
    def taken(self) -> int: ...
    @property
    def limit(self) -> int: ...
    @property
    def reading(self) -> list[tuple[int, int]]:
        """Records under way, and their slots."""

    @property
    def withdrawn(self) -> int:
        """How many of those nobody wants any more."""
