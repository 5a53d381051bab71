"""From rows to answers: as many at once as pay, each kept as soon as it is there, whatever ends the job.

Owns the order of work and when to give up. Knows nothing about formats, nor how an answer is made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from itertools import islice
from typing import Protocol

from smallthinker.batch.journal import Answered, Journal
from smallthinker.batch.rows import Row
from smallthinker.errors import RequestError
from smallthinker.expert_store.progress import Progress

# Rows that are held and sorted at once, so that those that begin alike are neighbours.
_WINDOW_ROWS, _WINDOW_CHARACTERS = 1024, 16 << 20
MAX_ERRORS = 50


SortKey = Callable[[Row], str]
"""What rows that share the beginning of their prompts have in common at theirs. Never raises."""


class Answerer(Protocol):
    """How a row is answered."""

    async def answer(self, index: int, row: Row) -> Answered:
        """Raises what is no fault of the row's: the job ends there."""


def row_seed(seed: int, index: int) -> int:
    """A row's own, whatever is computed beside it or was before."""
    return int.from_bytes(sha256(f"{seed} {index}".encode()).digest()[:8], "little")


def run(
    rows: Iterator[Row],
    journal: Journal,
    answerer: Answerer,
    sort_key: SortKey,
    *,
    at_once: int,
    left: int,
    max_errors: int,
    progress: Progress,
) -> None:
    """Answer every row that the journal lacks. left: how many that are, for `progress`. max_errors: so many one after
    another end the job, none of which is kept; 0 for never.

    Raises RequestError then, and whatever else ended it; what has been answered by then is in the journal."""
    todo = in_order(rows, journal, sort_key)
    asyncio.run(_run(todo, journal, answerer, at_once, left, Errors(max_errors), progress))


def in_order(rows: Iterator[Row], journal: Journal, sort_key: SortKey) -> Iterator[tuple[int, Row]]:
    """What the journal lacks, those that begin alike side by side."""
    window: list[tuple[str, int, Row]] = []
    characters = 0
    for index, row in enumerate(rows):
        if index in journal:
            continue
        key = sort_key(row)
        window.append((key, index, row))
        characters += len(key)
        if len(window) == _WINDOW_ROWS or characters > _WINDOW_CHARACTERS:
            yield from _sorted(window)
            window, characters = [], 0
    yield from _sorted(window)


def _sorted(window: list[tuple[str, int, Row]]) -> Iterator[tuple[int, Row]]:
    window.sort(key=lambda one: one[:2])
    return ((index, row) for _, index, row in window)


async def _run(
    rows: Iterator[tuple[int, Row]],
    journal: Journal,
    answerer: Answerer,
    at_once: int,
    left: int,
    errors: Errors,
    progress: Progress,
) -> None:
    running: set[asyncio.Task[Answered]] = set()
    done = 0
    try:
        while True:
            running |= {asyncio.create_task(answerer.answer(*one)) for one in islice(rows, at_once - len(running))}
            if not running:
                break
            ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            faults = [task.exception() for task in ended]
            answered = [task.result() for task, fault in zip(ended, faults, strict=True) if fault is None]
            journal.keep(errors.sift(answered))
            for fault in faults:
                if fault is not None:
                    raise fault
            done += len(answered)
            progress(done, left, "rows")
        journal.keep(errors.held)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


class Errors:
    """Errors are held until a row has an answer: what goes wrong for every row is a fault of the job."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.held: list[Answered] = []

    def sift(self, answered: Sequence[Answered]) -> list[Answered]:
        """What may be kept by now. Raises RequestError where it goes on and on."""
        if not self._most:
            return list(answered)
        if all(one.error is not None for one in answered):
            self.held += answered
            if len(self.held) < self._most:
                return []
            first = self.held[0]
            raise RequestError(
                f"{len(self.held)} rows one after another failed, and the job ends; none of them counts as done. Row "
                f"{first.index}: {first.error}. Where that is right, --max-errors 0 goes on"
            )
        kept, self.held = [*self.held, *answered], []
        return kept
