"""The answers to one request: submitted together, merged as they come, cancelled together.

An answer that nobody waits for is cancelled at once: when the client leaves, when its task is cancelled, on an error.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from smallthinker.generation.answer import Completion, Finished, GenerationParams, LogitsProcessor, Token
from smallthinker.generation.embedding import Pooling
from smallthinker.generation.request import Request
from smallthinker.server.errors import shutting_down, timed_out
from smallthinker.server.service import Service
from smallthinker.server.sse import EVENTS, EventStream
from smallthinker.text.chat_prompt import AnswerFormat

Result = TypeVar("Result")
# Some clients give up on a connection that says nothing while a long prompt is computed.
PING_SEC = 10.0
_TOLD_SEC = 0.25  # between two words of a prompt's progress


@dataclass(frozen=True)
class WantedAnswer:
    """One answer to be computed. make_processor: called once for each answer, since processors keep a state. chat: how
    a chat's answer is read. pooling: nothing is written, the completion has the prompt's embedding."""

    prompt: Sequence[int]
    params: GenerationParams
    logprobs: int | None = None
    make_processor: Callable[[], LogitsProcessor | None] = lambda: None
    chat: AnswerFormat | None = None
    pooling: Pooling | None = None


@dataclass(frozen=True)
class PromptRead:
    """How many of the tokens of an answer's prompt have been computed."""

    number: int
    done: int
    total: int

    def to_dict(self) -> dict[str, int]:
        """As llama.cpp's server has it, but that an answer's number is told, too."""
        return {"index": self.number, "processed": self.done, "total": self.total}


class Answers:
    """Iterate for (number of the answer, Token or Finished), PromptRead, and None when nothing has come for a while."""

    def __init__(
        self,
        service: Service,
        asked: Sequence[WantedAnswer],
        timeout_sec: float,
        client: str,
        *,
        tells_progress: bool = False,
    ) -> None:
        """Queue them, as one request of this client's. tells_progress: of the prompts.

        Raises QueueFullError, ContextLengthError and RequestError; then none of them runs."""
        self._service, self._timeout_sec = service, timeout_sec
        self._closed = False
        service.hold()
        self.requests: list[Request] = []
        self._stopped: set[int] = set()
        self._hear: Callable[[PromptRead], object] = lambda read: None
        self._told = 0.0
        try:
            for number, one in enumerate(asked):
                self.requests.append(
                    service.llm.scheduler.submit(
                        one.prompt,
                        one.params,
                        logits_processor=one.make_processor(),
                        logprobs=one.logprobs,
                        on_prefill=partial(self._prefilled, number) if tells_progress else None,
                        timeout_sec=timeout_sec,
                        client=client,
                        batch=id(self),
                        chat=one.chat,
                        pooling=one.pooling,
                    )
                )
        except BaseException:
            self.close()
            raise

    def _prefilled(self, number: int, done: int, total: int) -> None:
        """On the thread that computes."""
        now = time.monotonic()
        if done == total or now - self._told >= _TOLD_SEC:
            self._told = now
            with suppress(RuntimeError):  # the loop has ended
                self._hear(PromptRead(number, done, total))

    def close(self) -> None:
        """Cancel what isn't finished."""
        for request in self.requests:
            if request.completion is None:
                request.cancel()
        if not self._closed:
            self._closed = True
            self._service.release()

    def stop(self, number: int) -> None:
        """This answer has said all that is wanted: it ends, and that is no failure."""
        self._stopped.add(number)
        self.requests[number].cancel()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Token | Finished] | PromptRead | None]:
        """Raises ApiError when time is over or the server shuts down, and whatever broke an answer."""
        arrived: asyncio.Queue[tuple[int, Token | Finished | Exception] | PromptRead | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self._hear = lambda read: loop.call_soon_threadsafe(arrived.put_nowait, read)

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
                # not wait_for: before Python 3.12 it swallows a cancellation that comes together with a token
                silence = loop.call_later(PING_SEC, arrived.put_nowait, None)
                try:
                    news = await arrived.get()
                finally:
                    silence.cancel()
                if not isinstance(news, tuple):
                    yield news
                    continue
                number, event = news
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


def with_seeds(asked: WantedAnswer, n: int) -> list[WantedAnswer]:
    """`n` answers to the same prompt, each with a seed of its own that follows from the first."""
    seed = asked.params.seed
    if seed is None or n == 1:
        return [asked] * n
    return [replace(asked, params=replace(asked.params, seed=(seed + i) % 2**64)) for i in range(n)]


class ClientGoneError(Exception):
    """Nobody is there to be answered."""


class Form(Protocol):
    """One kind of request, ready to be answered."""

    async def whole(self, answers: Answers) -> dict[str, Any]: ...

    def stream(self, answers: Answers) -> AsyncIterator[bytes]: ...


async def respond(
    request: HttpRequest, answers: Answers, form: Form, *, stream: bool, media_type: str = EVENTS
) -> Response:
    """The answers in this form, as a stream or in one piece. However that ends, none of them is computed any longer."""
    if stream:
        return EventStream(form.stream(answers), answers.close, media_type)
    try:
        return JSONResponse(await unless_gone(request, form.whole(answers)))
    finally:
        answers.close()  # a task that is cancelled before its first step has never heard of them


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
            await asyncio.wait({task})  # raises nothing that it raised; a second cancellation of this one gets through
            if not task.cancelled():
                task.exception()  # nobody is left to be told


async def _gone(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
