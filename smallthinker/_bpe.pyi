"""Byte pair encoding over a packed vocabulary (smallthinker/text/native/), for `text.packed_tokenizer`."""

import numpy as np
import numpy.typing as npt

class Bpe:
    """The merges that the tokenizers library's BPE makes, in its order."""

    def __init__(
        self,
        *,
        ends: npt.NDArray[np.uint32],
        texts: npt.NDArray[np.uint8],
        sorted: npt.NDArray[np.uint32],
        pairs: npt.NDArray[np.uint64],
        ranks: npt.NDArray[np.uint32],
        merged: npt.NDArray[np.uint32],
        byte_fallback: bool,
        unknown: int | None,
        fuses_unknown: bool,
        ignores_merges: bool,
    ) -> None:
        """ends: of each id's text in `texts`, UTF-8; an id of an empty one is no token. sorted: ids of those that words
        can become, by their bytes. pairs: left << 32 | right, ascending, with the rank and the result of each. unknown:
        of a character that is no token; byte_fallback: but for those that bytes stand for. ignores_merges: a word that
        is a token is that one. The arrays are kept. Raises ValueError where they contradict each other."""

    def text(self, id: int) -> str | None:
        """None for an id that is no token's."""

    def find(self, word: str) -> int | None: ...
    def encode(self, word: str) -> list[tuple[int, int, int]]:
        """(id, start, end) of each token, in bytes of the word."""
