"""Who may call: the key, and the Host and Origin of a request.

A page of another site can have its own name resolve to 127.0.0.1 (DNS rebinding) or simply send requests here. The
first shows in Host, which has that name; the second in Origin, which is not this server's.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smallthinker.server.errors import ApiError
from smallthinker.server.settings import Settings

# A browser can't show a key when it opens the page; the page asks for one. /health tells nothing.
_OPEN_PATHS = frozenset({"/", "/health"})


class Safety:
    """ASGI middleware around everything. Refuses with 401 and 403 before a body is read."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings
        self._hosts = {"localhost", settings.host.lower(), *(host.lower() for host in settings.allowed_hosts)}
        self._origins = {origin.lower() for origin in settings.cors}
        self._key_digest = None if settings.api_key is None else _digest(settings.api_key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = self._refusal(Headers(scope=scope), scope["path"], scope["method"])
        if refused is not None:
            await refused.response(scope["path"])(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
            await send(message)

        await self._app(scope, receive, with_headers)

    def _refusal(self, headers: Headers, path: str, method: str) -> ApiError | None:
        host = headers.get("host", "")
        if not self._is_own_name(host):
            message = "Host: this server is not known by this name; smallthinker serve --allow-host NAME lets it be"
            return ApiError(403, message, type="permission_error", code="host_not_allowed")
        origin = headers.get("origin")
        allowed = origin is not None and origin.lower() in self._origins
        if origin is not None and not allowed and not _same_host(origin, host):
            message = "Origin: pages of other sites may not call this server; smallthinker serve --cors ORIGIN lets one"
            return ApiError(403, message, type="permission_error", code="origin_not_allowed")
        preflight = method == "OPTIONS" and allowed  # browsers send these without the key
        if self._key_digest is None or path in _OPEN_PATHS or preflight:
            return None
        scheme, _, key = headers.get("authorization", "").partition(" ")
        # digests have one length, so that not even the key's own can be measured
        if scheme.lower() == "bearer" and hmac.compare_digest(_digest(key.strip()), self._key_digest):
            return None
        message = "this server wants an API key: Authorization: Bearer KEY"
        return ApiError(
            401,
            message,
            type="authentication_error",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )

    def _is_own_name(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        try:
            ipaddress.ip_address(name)
            return True  # there is no name to be resolved to something else
        except ValueError:
            return name in self._hosts


def _same_host(origin: str, host: str) -> bool:
    scheme, _, rest = origin.partition("://")
    return scheme in ("http", "https") and rest.lower() == host.lower()


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
