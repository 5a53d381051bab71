"""The states of several conversations: which of them a new prompt continues, and which makes room.

Owns the tokens that each state holds. Knows nothing about what computes them. Not thread-safe: one caller at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from smallthinker.cache.sequence_state import SequenceState

if TYPE_CHECKING:  # 5 ms of hashing and writing that only `kv_dir` asks for
    from smallthinker.cache.saved_conversations import Saved, SavedConversations


def shared_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens they have in common at their beginning."""
    longest = min(len(a), len(b))
    if list(a[:longest]) == list(b[:longest]):
        return longest
    return int(np.argmax(np.asarray(a[:longest]) != np.asarray(b[:longest])))


class Conversation:
    """`tokens` are those that `state` holds. While it is `running`, nobody else may change it."""

    def __init__(self, state: SequenceState) -> None:
        self.state = state
        self.tokens: list[int] = []
        self.running = False
        self.last_used = 0

    def extend(self, tokens: Sequence[int]) -> None:
        """They have been computed."""
        self.tokens.extend(tokens)

    def reusable(self, prompt: Sequence[int]) -> int:
        """How many of the prompt's first tokens needn't be computed; never the last, whose logits are wanted."""
        same = shared_prefix(self.tokens, prompt[:-1])
        return same if self.state.can_rewind(same) else 0

    def rewind(self, length: int) -> None:
        self.state.rewind(length)
        del self.tokens[length:]


class Conversations:
    """At most `most` states, each made when it is first needed; the least recently used one makes room, and goes to
    `saved` if there is such a place."""

    def __init__(
        self, make_state: Callable[[], SequenceState], most: int, saved: SavedConversations | None = None
    ) -> None:
        self._make_state, self._most, self._saved = make_state, most, saved
        self._kept: list[Conversation] = []
        self._clock = itertools.count(1)

    def __iter__(self) -> itertools.chain[Conversation]:
        return itertools.chain(self._kept)

    def open(self, prompt: Sequence[int]) -> tuple[Conversation, int]:
        """A conversation that holds a beginning of the prompt, the longest to be had, and how long that is.

        What a state holds beyond the shared beginning is given up where that is the smaller part, as in a chat's next
        turn or an answer written again. Where it is the larger, as with a system prompt that several chats have, or
        while the other is running, the shared part is copied: a thousand times faster than computing it again. What was
        saved is read where it holds more.

        Raises RuntimeError when every state is in use.
        """
        best = max(self._kept, key=lambda c: (c.reusable(prompt), not c.running, c.last_used), default=None)
        shared = 0 if best is None else best.reusable(prompt)
        on_disk = None if self._saved is None else self._saved.longest(prompt, shared)
        if on_disk is not None:
            found, shared = self._load(*on_disk)
        elif best is None or not shared:
            found = self._take_state(None)
            found.rewind(0)
        elif not best.running and len(best.tokens) - shared <= shared:
            found = best
        else:
            found = self._take_state(best)
            if found is not best:
                found.state.copy_from(best.state)
                found.tokens = list(best.tokens)
        found.rewind(shared)
        found.running = True
        found.last_used = next(self._clock)
        return found, shared

    def keep(self, conversation: Conversation) -> None:
        """It runs no more; a later prompt may continue it, if its numbers are."""
        if conversation.state.overflow is not None:
            conversation.rewind(0)
        conversation.running = False
        conversation.last_used = next(self._clock)

    def forget(self) -> None:
        """Empty every state. None may be running."""
        for conversation in self._kept:
            conversation.rewind(0)

    def save(self) -> None:
        """Every conversation that is kept, where there is a place for it."""
        if self._saved is not None:
            for conversation in self._kept:
                if conversation.state.overflow is None:
                    self._saved.save(conversation.state, conversation.tokens)

    def free(self) -> None:
        """Give the memory back; nothing can be opened afterwards."""
        for conversation in self._kept:
            conversation.state.free()
        self._kept, self._most = [], 0

    def _take_state(self, source: Conversation | None) -> Conversation:
        """A new state, else the one that was used least recently; `source`, which is to be copied, only if no other."""
        if len(self._kept) < self._most:
            self._kept.append(Conversation(self._make_state()))
            return self._kept[-1]
        idle = [c for c in self._kept if not c.running]
        if not idle:
            raise RuntimeError("every sequence's state is in use")
        found = min(idle, key=lambda c: (c is source, c.last_used))
        if self._saved is not None and found is not source:
            self._saved.save(found.state, found.tokens)
        return found

    def _load(self, saved: Saved, shared: int) -> tuple[Conversation, int]:
        """What was saved, in a state; nothing of it where it turns out to be damaged."""
        assert self._saved is not None
        found = self._take_state(None)
        found.rewind(0)
        if not self._saved.load(saved, found.state):
            return found, 0
        found.tokens = list(saved.tokens)
        return found, shared
