"""A text as the windows in which a model is to predict it, each token once, and how many bytes they are.

Knows nothing about models beyond their tokenizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from smallthinker.errors import RequestError
from smallthinker.text.tokenizer import Tokenizer

Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Windows:
    """sequences of ids, each for an empty context. targets: for every id of every sequence, one after the other, the
    token that follows, or -1 where that is scored in another window or not at all. text_bytes: of the targets."""

    sequences: list[list[int]]
    targets: npt.NDArray[np.int64]
    text_bytes: int
    context: int
    stride: int

    @property
    def scored(self) -> npt.NDArray[np.int64]:
        return self.targets[self.targets >= 0]


def text_windows(tokenizer: Tokenizer, text: str, context: int, stride: int | None, tokens: int | None) -> Windows:
    """Each token but the first is predicted once. The first window holds `context` tokens; each further one moves on by
    `stride` (default: half of the context) and predicts only what is new to it, from context - stride + 1 tokens or
    more. tokens: only so many of the text's, or up to three fewer where they would end inside a character.

    A window begins with what the model's texts begin with (`<s>`, or nothing), as a prompt does. Raises RequestError:
    fewer than two tokens, a stride that doesn't fit.
    """
    if tokens is not None and tokens < 2:
        raise RequestError(f"tokens: expected at least 2, found {tokens}")
    beginning = tokenizer.beginning
    room = context - len(beginning)
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= room:
        raise RequestError(f"stride: expected 1 to {room}, the context, found {stride}")
    ids, spans = tokenizer.encode_with_spans(text)
    first, last = 1, min(tokens or len(ids), len(ids))
    while first < last and _is_inside_character(spans, first):  # bytes of a text cut there can't be counted
        first += 1
    while first < last and _is_inside_character(spans, last):
        last -= 1
    if first >= last:
        raise RequestError(f"text: expected at least 2 tokens, found {len(ids)}; give a longer one")
    begin = spans[first][0]
    end = spans[last][0] if last < len(ids) else len(text)
    sequences, targets, done = [], [], first
    for window_end in (*range(min(room, last - 1), last - 1, stride), last - 1):
        window_begin = max(0, window_end - room)
        follow = np.array(ids[window_begin + 1 : window_end + 1], np.int64)
        follow[: done - 1 - window_begin] = -1
        sequences.append(beginning + ids[window_begin:window_end])
        targets += [np.full(len(beginning), -1, np.int64), follow]
        done = max(done, window_end + 1)
    return Windows(sequences, np.concatenate(targets), len(text[begin:end].encode()), context, stride)


def _is_inside_character(spans: Spans, token: int) -> bool:
    """Whether a token begins with bytes of the character with which the one before it ended."""
    return token < len(spans) and spans[token][0] < spans[token - 1][1]
