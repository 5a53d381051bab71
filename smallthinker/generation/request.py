"""One request to a scheduler, seen from outside: its events, for a thread or for asyncio, and its cancellation.

Owns the hand-over from the thread that computes to the one that waits. Knows nothing about models.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Literal

from smallthinker.forks import Home, StaysHere
from smallthinker.generation.answer import Completion, Finished, FinishReason, Token

if TYPE_CHECKING:  # 50 ms that a program without an event loop needn't wait
    import asyncio

Event = Token | Finished
State = Literal["waiting", "running", "finished"]


class Request(StaysHere):
    """Iterate, with `for` in any thread or `async for` in any event loop, for a Token each and one Finished at the end.

    One consumer at a time. Nothing is lost while nobody consumes; at most `max_tokens` events wait. Iterating raises
    what broke the answer (StoreReadError, whatever a logits processor raised), and ForkedError in a forked process.
    """

    def __init__(self, id: int, deadline: float | None) -> None:
        """deadline: of `time.monotonic`; the answer ends then, with reason 'timeout'."""
        self.id = id
        self.state: State = "waiting"
        self.completion: Completion | None = None  # set before Finished can be had
        self._deadline = deadline
        self._home = Home()
        self._owner: object = None
        self._ending: FinishReason | None = None
        self._error: BaseException | None = None
        self._events: deque[Event] = deque()
        self._arrived = threading.Condition()
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

    def cancel(self) -> None:
        """End the answer with reason 'cancelled': within a step, or within a layer while its prompt is computed. From
        any thread, any number of times; takes no lock, so that a signal handler or a destructor may call it."""
        if self._ending is None:
            self._ending = "cancelled"

    @property
    def ending(self) -> FinishReason | None:
        """Why it should end, if somebody wants that or its time is over."""
        if self._ending is None and self._deadline is not None and time.monotonic() >= self._deadline:
            self._ending = "timeout"
        return self._ending

    def hold(self, owner: object) -> None:
        """Keep the owner of what computes the answer alive until the answer has ended."""
        with self._arrived:
            if self.state != "finished":
                self._owner = owner

    def result(self) -> Completion:
        """Wait for the end. Raises what broke the answer."""
        for _ in self:
            pass
        assert self.completion is not None
        return self.completion

    async def aresult(self) -> Completion:
        """The same in an event loop. When its task is cancelled, so is the answer."""
        async for _ in self:
            pass
        assert self.completion is not None
        return self.completion

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        self._home.check()
        with self._arrived:
            while not self._has_news():
                self._arrived.wait()
            event = self._take()
        if event is None:
            raise StopIteration
        return event

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        import asyncio

        self._home.check()
        while True:
            with self._arrived:
                if self._has_news():
                    event = self._take()
                    break
                loop = asyncio.get_running_loop()
                future: asyncio.Future[None] = loop.create_future()
                self._waiter = loop, future
            try:
                await future
            except asyncio.CancelledError:
                self.cancel()
                raise
        if event is None:
            raise StopAsyncIteration
        return event

    def put(self, event: Event) -> None:
        """The scheduler's: hand over an event; Finished is the last."""
        owner = None
        with self._arrived:
            if isinstance(event, Finished):
                self.completion, self.state = event.completion, "finished"
                owner, self._owner = self._owner, None
            self._events.append(event)
            self._notify()
        del owner  # without the lock: it may be the last that anybody has of it

    def fail(self, error: BaseException) -> None:
        """The scheduler's: the answer is broken."""
        with self._arrived:
            self._error, self.state = error, "finished"
            owner, self._owner = self._owner, None
            self._notify()
        del owner

    def _has_news(self) -> bool:
        return bool(self._events) or self.state == "finished"

    def _take(self) -> Event | None:
        if self._events:
            return self._events.popleft()
        if self._error is not None:
            raise self._error
        return None

    def _notify(self) -> None:
        self._arrived.notify_all()
        if self._waiter is not None:
            (loop, future), self._waiter = self._waiter, None
            if not loop.is_closed():
                loop.call_soon_threadsafe(_resolve, future)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
