"""A small model that proposes what a large one with the same vocabulary may write.

Owns its engine, how much of a text it has read, and what its tokens take. Knows nothing about the large model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from smallthinker import _kernels, host
from smallthinker.engine import MOST_VERIFIED, Engine
from smallthinker.errors import MemoryBudgetError, RequestError, shown_or_nothing
from smallthinker.generation.speculation.offer import Offer
from smallthinker.memory_plan import MIB
from smallthinker.options import EngineOptions
from smallthinker.text.tokenizer import Tokenizer

# That the first proposal is right, before any was seen; and how likely one must seem to the draft itself to be made.
_FIRST_CHANCE, _LEAST_LIKELY = 0.6, 0.4
# Of a text that the account doesn't bear reading whole, at least so many tokens at its end say enough.
_FEWEST_READ = 16
# What reading a token of a long text is thought to take beside writing one, until it was seen.
_READING = 0.4
_FEW_UNREAD = 4  # tokens that were written without it since: no reason to begin elsewhere
_WEIGHT = 0.3  # of the last time, in averages
_MEASURED_TOKENS = 8


class DraftModel:
    """A `Source`."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.perf_counter) -> None:
        self._engine, self._clock = engine, clock
        self._prompt: Sequence[int] = ()
        self._ids: Sequence[int] = ()
        self._first, self._read = 0, 0  # of the text: where what was read begins, and where it ends
        self._sec_each = self._measure()
        self._sec_read = _READING * self._sec_each

    @classmethod
    def load(cls, options: EngineOptions) -> DraftModel:
        """The one that the options of the large model name, in its memory. Raises MemoryBudgetError where it doesn't
        fit whole, and what Engine raises."""
        assert options.draft is not None
        path = Path(options.draft)
        try:
            engine = Engine(path, memory=options.memory, threads=options.threads, reader=options.reader, hot_set=False,
                        reserved=options.reserved, speculation="off", progress=options.progress)  # fmt: skip
        except MemoryBudgetError as e:
            raise MemoryBudgetError(f"draft: {path}: of this model alone: {e}", e.floor_bytes) from None
        try:
            plan, record_bytes = engine.plan, engine.store.record_bytes
            if plan.slots < plan.num_experts:
                lacking = (plan.num_experts - plan.slots) * record_bytes
                raise MemoryBudgetError(
                    f"draft: {path}: expected a model that fits in memory whole, which lacks {lacking // MIB + 1} MiB; "
                    "give a larger `memory` or a smaller model as `draft`",
                    plan.budget_bytes + lacking,
                )
            for layer, experts in enumerate(engine.config.experts_of_layers):
                with engine.experts.request(layer, range(experts)) as request:
                    for _ in request:
                        pass
            return cls(engine)
        except BaseException:
            engine.close()
            raise

    @property
    def reserved_bytes(self) -> int:
        """What it will take beside what it holds already."""
        plan = self._engine.plan
        return plan.kv_bytes + plan.scratch_bytes

    def check_same_words(self, tokenizer: Tokenizer) -> None:
        """Raises RequestError where a token of the large model is another text here. Where none is, the two share what
        they know of them."""
        found = self._engine.tokenizer.first_difference(tokenizer)
        if found is not None:
            id, ours, theirs = found
            raise RequestError(
                f"draft: expected the model's own vocabulary, found token {id} to be {shown_or_nothing(ours)} instead "
                f"of {shown_or_nothing(theirs)}; give a smaller model of the same family as `draft`"
            )
        self._engine.tokenizer = tokenizer
        host.trim_heap()

    def begin(self) -> None:
        self._first = self._read = 0

    def offer(self, prompt: Sequence[int], ids: Sequence[int], affords_sec: float) -> Offer | None:
        """Where reading the whole text is more than is afforded, it begins at a later place, as long as it must."""
        self._prompt, self._ids = prompt, ids
        length, room = len(prompt) + len(ids), self._engine.plan.context - MOST_VERIFIED
        unread = length - self._read
        afforded = length if math.isinf(affords_sec) else int(affords_sec / 2 / self._sec_read)
        afresh = min(length, afforded, room if length <= room else room // 2)
        is_behind = unread > _FEW_UNREAD and unread > afforded
        goes_on = self._read > self._first and length - self._first <= room and not is_behind
        if not goes_on or (self._first and afresh == length):
            if afresh < min(_FEWEST_READ, length):
                return None
            self._first = self._read = length - afresh
        return Offer("draft", _FIRST_CHANCE, self._sec_each, (length - self._read - 1) * self._sec_read)

    def propose(self, most: int) -> list[int]:
        text = [*self._prompt, *self._ids][self._first :]
        new, began = self._first + len(text) - self._read, self._clock()
        logits, _ = self._engine.prefill(text)
        self._read = self._first + len(text)
        if new >= _MEASURED_TOKENS:
            self._sec_read += _WEIGHT * ((self._clock() - began) / new - self._sec_read)
        began, found = self._clock(), [int(np.argmax(logits))]
        while len(found) < most:
            logits = self._engine.decode(found[-1])
            token = int(np.argmax(logits))
            if math.exp(logits[token] - _kernels.log_sum_exp(self._engine.pool, logits)) < _LEAST_LIKELY:
                break
            found.append(token)
        if len(found) > 1:
            self._sec_each += _WEIGHT * ((self._clock() - began) / (len(found) - 1) - self._sec_each)
        return found

    def close(self) -> None:
        self._engine.close()

    def _measure(self) -> float:
        """Seconds of a token, warm."""
        self._engine.prefill([0])
        times = []
        for _ in range(3):
            began = self._clock()
            self._engine.decode(0)
            times.append(self._clock() - began)
        return max(min(times), 1e-9)
