"""The arithmetic of `cache.policies.Frequency` (cache/native/): asked between two kernels, where a numpy operation on a
thousand numbers costs ten times what it does elsewhere. Keys count experts layer after layer; IndexError for any other.
"""

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

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

    def clear(self) -> None: ...
    def use(self, layer: int, keys: Sequence[int], counts: Sequence[int] | None = None, tokens: int = 1) -> None: ...
    def step(self, tokens: int = 1) -> None: ...
    def victim(self, pinned: Collection[int], layer: int) -> int | None: ...
    def score(self, key: int) -> float: ...
    def state(self) -> npt.NDArray[np.float32]: ...
    def restore_chances(self, chances: npt.NDArray[np.float64], tokens: float) -> None:
        """Begin with these, float64 [keys], as if so many tokens had shown them. Raises ValueError."""
