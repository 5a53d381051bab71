"""The answers to one request: submitted together, merged as they come, cancelled together.

An answer that nobody waits for is cancelled at once: when the client leaves, when its task is cancelled, on an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from starlette.requests import Request as HttpRequest

from smallthinker.generation import Completion, Finished, GenerationParams, LogitsProcessor, Token
from smallthinker.request import Request
from smallthinker.server.errors import ApiError, shutting_down, timed_out
from smallthinker.server.service import Service

Result = TypeVar("Result")
# Some clients give up on a connection that says nothing while a long prompt is computed.
PING_SEC = 10.0


@dataclass(frozen=True)
class Asked:
    """One answer to be computed. make_processor: called once for each answer, since processors keep a state."""

    prompt: Sequence[int]
    params: GenerationParams
    logprobs: int | None = None
    make_processor: Callable[[], LogitsProcessor | None] = lambda: None


class Answers:
    """Iterate for (number of the answer, Token or Finished), and None when nothing has come for a while."""

    def __init__(self, service: Service, asked: Sequence[Asked], timeout_sec: float) -> None:
        """Queue them. Raises QueueFullError, ContextLengthError and RequestError; then none of them runs."""
        self._service, self._timeout_sec = service, timeout_sec
        self.requests: list[Request] = []
        self._stopped: set[int] = set()
        try:
            for one in asked:
                self.requests.append(
                    service.llm.scheduler.submit(
                        one.prompt,
                        one.params,
                        logits_processor=one.make_processor(),
                        logprobs=one.logprobs,
                        timeout_sec=timeout_sec,
                    )
                )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Cancel what isn't finished."""
        for request in self.requests:
            if request.completion is None:
                request.cancel()

    def stop(self, number: int) -> None:
        """This answer has said all that is wanted: it ends, and that is no failure."""
        self._stopped.add(number)
        self.requests[number].cancel()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Token | Finished] | None]:
        """Raises ApiError when time is over or the server shuts down, and whatever broke an answer."""
        arrived: asyncio.Queue[tuple[int, Token | Finished | Exception]] = asyncio.Queue()

        async def pump(number: int, request: Request) -> None:
            try:
                async for event in request:
                    arrived.put_nowait((number, event))
            except Exception as error:
                arrived.put_nowait((number, error))

        pumps = [asyncio.create_task(pump(n, request)) for n, request in enumerate(self.requests)]
        left = len(pumps)
        try:
            while left:
                try:
                    number, event = await asyncio.wait_for(arrived.get(), PING_SEC)
                except asyncio.TimeoutError:
                    yield None
                    continue
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, Finished):
                    left -= 1
                    self._finished(number, event.completion)
                else:
                    self._service.activity.token()
                yield number, event
        finally:
            self.close()
            for task in pumps:
                task.cancel()

    def _finished(self, number: int, completion: Completion) -> None:
        self._service.metrics.answered(completion.stats)
        if completion.finish_reason == "timeout":
            raise timed_out(self._timeout_sec)
        if completion.finish_reason == "cancelled" and number not in self._stopped:
            raise shutting_down()


def with_seeds(asked: Asked, n: int) -> list[Asked]:
    """`n` answers to the same prompt, each with a seed of its own that follows from the first."""
    seed = asked.params.seed
    if seed is None or n == 1:
        return [asked] * n
    return [replace(asked, params=replace(asked.params, seed=(seed + i) % 2**64)) for i in range(n)]


class ClientGoneError(Exception):
    """Nobody is there to be answered."""


async def unless_gone(request: HttpRequest, work: Coroutine[Any, Any, Result]) -> Result:
    """Do the work unless the client closes the connection first. The request's body must have been read."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError, ApiError):
                await task


async def _gone(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
