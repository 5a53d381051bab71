"""How many requests may be under way at once. Knows nothing about what they ask for, nor about waiting in line."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from smallthinker.server.access.clients import Shares, client_of
from smallthinker.server.errors import ApiError
from smallthinker.server.settings import Limits

_ALWAYS_ANSWERED = "/health"  # or whoever looks after the server would take a busy one for a broken one


class RequestLimit:
    """ASGI middleware. Refuses with 503 before a body is read; idle connections take nobody's place.

    Uvicorn's `limit_concurrency` counts those too, and says so in plain text, which the official clients can't read.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._places = app, Shares(limits.requests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == _ALWAYS_ANSWERED:
            await self._app(scope, receive, send)
            return
        client = client_of(scope)
        if not self._places.take(client):
            await _too_many(self._places).response(scope["path"])(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._places.give_back(client)


def _too_many(places: Shares) -> ApiError:
    most = f"{places.places}, {places.share} from one client" if places.share < places.places else f"{places.places}"
    message = f"as many requests are under way as this server takes at once, {most}; try again in a second"
    headers = {"retry-after": "1"}
    return ApiError(503, message, type="server_error", code="server_overloaded", headers=headers)
