"""The arithmetic of `cache.policies.Frequency` (cache/native/): asked between two kernels, where a numpy operation on a
thousand numbers costs ten times what it does elsewhere. A key is layer * experts + expert; IndexError for any other.
"""

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

class Frequency:
    def __init__(
        self,
        layers: int,
        experts: int,
        *,
        even_chance: float,
        memory_tokens: Sequence[float],
        prior_tokens: float,
        judged_tokens: float,
        trust: float,
        least_chance: float,
    ) -> None:
        """even_chance: of each key's use per token, before anything is known. memory_tokens: what each average is over.
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
