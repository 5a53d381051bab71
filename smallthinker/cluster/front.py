"""The server's face before replicas: it listens, keeps its bounds and hands each request on, a message at a time.

What an endpoint means is the replicas' affair, which have the whole application; where a request goes is Ray's.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from math import inf
from typing import Any

import anyio
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, RequestCancelledError
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from smallthinker.cluster.conversations import conversation_of
from smallthinker.cluster.replicas import Replicas
from smallthinker.server.answers import ClientGoneError, unless_gone
from smallthinker.server.app import guarded
from smallthinker.server.body import Bodies
from smallthinker.server.errors import ApiError, shutting_down, timed_out
from smallthinker.server.settings import Settings
from smallthinker.server.sse import EVENTS, event, line

_TRIES = 3  # of a request whose replica ends before it has said anything
_SENT = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "root_path", "query_string", "headers",
         "client", "server")  # fmt: skip


def create_front(replicas: Replicas, settings: Settings) -> Starlette:
    """An ASGI application that answers as these replicas do."""

    async def health(request: Request) -> JSONResponse:
        if not await asyncio.to_thread(replicas.running):
            raise ApiError(503, "no replica answers; Ray starts one where there is room", type="server_error")
        return JSONResponse({"status": "ok"})

    forward = _Forward(replicas.handle, settings)
    app = guarded([Route("/health", health), Route("/{path:path}", forward)], settings)
    app.state.cancel = forward.cancel
    return app


class _Forward:
    def __init__(self, handle: Any, settings: Settings) -> None:
        self._handle, self._settings = handle.options(method_name="answer", stream=True), settings
        self._bodies = Bodies(settings.limits)
        self._under_way: set[Any] = set()

    def cancel(self) -> None:
        """Every answer that is being written or waits."""
        for answer in self._under_way:
            answer.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        async with self._bodies.received(request) as body:
            with suppress(ClientGoneError):  # perhaps within an answer: nobody is there to be told
                await unless_gone(request, self._answer(scope, bytes(body), send))

    async def _answer(self, scope: Scope, body: bytes, send: Send) -> None:
        conversation = conversation_of(scope["path"], body)
        handle = self._handle.options(multiplexed_model_id=conversation) if conversation else self._handle
        asked = {name: scope[name] for name in _SENT}
        for left in reversed(range(_TRIES)):
            begun = ""
            answer = handle.remote(asked, body)
            self._under_way.add(answer)
            try:
                with anyio.fail_after(self._settings.timeout_sec) as patience:
                    async for message in answer:
                        patience.deadline = inf  # from here on the replica counts
                        begun = begun or Headers(raw=message["headers"]).get("content-type", "none")
                        await send(message)
                        if message["type"] == "http.response.body" and not message.get("more_body"):
                            return  # without a pause: a server tells of the end as of a client that has left
                return
            except TimeoutError:
                raise timed_out(self._settings.timeout_sec) from None
            except BackPressureError:
                raise _busy() from None
            except RequestCancelledError:
                if not begun:
                    raise shutting_down() from None
                await send(_last(begun, shutting_down()))
                return
            except RayActorError:
                if begun:
                    await send(_last(begun, _ended()))
                    return
                if not left:
                    raise _ended() from None
            finally:
                self._under_way.discard(answer)
                answer.cancel()


def _last(kind: str, error: ApiError) -> Message:
    """What a client is told within an answer that has begun."""
    told = event(error.body) if kind.startswith(EVENTS) else line({"error": str(error)})
    return {"type": "http.response.body", "body": told, "more_body": False}


def _busy() -> ApiError:
    said = "as many requests wait as these replicas take; try again in a second"
    headers = {"retry-after": "1"}
    return ApiError(429, said, type="rate_limit_error", code="rate_limit_exceeded", headers=headers)


def _ended() -> ApiError:
    return ApiError(503, "the replica that wrote this answer has ended; ask again", type="server_error")
