"""Server-sent events, and lines of JSON, over Starlette's streaming response.

sse-starlette was turned down: importing it replaces a method of uvicorn's server for the whole process, and it ends
every stream at the first SIGTERM, where this server lets them finish.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

EVENTS, LINES = "text/event-stream", "application/x-ndjson"
DONE = b"data: [DONE]\n\n"
PING = b": still at work\n\n"  # a comment, which clients skip: some give up on a connection that says nothing


def event(payload: Any, name: str | None = None) -> bytes:
    """JSON has no line breaks of its own, so it is one line of data."""
    data = _json(payload)
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {data}\n\n".encode()


def line(payload: Any) -> bytes:
    return f"{_json(payload)}\n".encode()


def _json(payload: Any) -> str:
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


class EventStream(StreamingResponse):
    """Sends events until they end or the client is gone; then calls `close`, also when nothing was ever sent."""

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None], media_type: str = EVENTS) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(events, headers=headers, media_type=media_type)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # Starlette watches for the client's leaving only where the server names an older protocol
            await super().__call__({**scope, "asgi": {**scope["asgi"], "spec_version": "2.3"}}, receive, send)
        finally:
            self._close()
