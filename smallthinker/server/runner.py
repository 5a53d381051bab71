"""Runs the application: listens, serves until a signal, and lets running answers finish."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import math
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.applications import Starlette
from uvicorn.config import LOGGING_CONFIG

from smallthinker.errors import RequestError
from smallthinker.log import NAME
from smallthinker.server.access.connections import Connection, Connections
from smallthinker.server.settings import Limits

# The project's own words beside uvicorn's, in the same form.
_OURS = {"handlers": ["default"], "level": "WARNING", "propagate": False}
_LOGS: dict[str, Any] = {**LOGGING_CONFIG, "loggers": {**LOGGING_CONFIG["loggers"], NAME: _OURS}}
# After the answers have been cancelled, until their last bytes must have gone out.
_LAST_BYTES_SEC = 5.0
# Connections that the kernel keeps until the server comes to them, and how many it then takes at a time: without a
# descriptor left, asyncio tries and reports so many times.
_BACKLOG, _AT_A_TIME = 512, 16
# A fault that anyone who can connect can cause is worth so much of the log.
_REPEATED_SEC = 60.0


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one. Raises RequestError in one line when it can't be had."""
    try:
        family = socket.AF_INET6 if ":" in host and ipaddress.ip_address(host).version == 6 else socket.AF_INET
        sock = socket.socket(family)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            sock.listen(_BACKLOG)
        except BaseException:
            sock.close()
            raise
    except (OSError, OverflowError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise RequestError(
                f"port: another program listens on {host}:{port}; give another, or 0 for a free one"
            ) from None
        why = error.strerror if isinstance(error, OSError) else error
        raise RequestError(f"host: cannot listen on {host}, port {port}: {why}") from None
    return sock


class Server(uvicorn.Server):
    """Uvicorn's, which waits for open answers at a SIGTERM or Ctrl-C: after `grace_sec` they are cancelled, and say so.
    A second Ctrl-C waits for nothing."""

    def __init__(
        self, app: Starlette, limits: Limits, cancel: Callable[[], None], *, grace_sec: float, access_log: bool
    ) -> None:
        """cancel: every answer that is under way."""
        self._cancel = cancel
        self.open_connections = Connections(limits)
        protocol = partial(Connection, connections=self.open_connections)
        super().__init__(
            uvicorn.Config(
                app,
                http=cast("type[asyncio.Protocol]", protocol),
                loop="asyncio",  # whose faults are known here; uvloop may be there with other packages
                backlog=_AT_A_TIME,
                timeout_keep_alive=math.ceil(limits.idle_sec),
                log_level="info" if access_log else "warning",
                access_log=access_log,
                log_config=_LOGS,
                use_colors=False,  # standard error shows control characters instead of passing them on
                lifespan="off",
                ws="none",
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=round(grace_sec + _LAST_BYTES_SEC),
            )
        )
        self._grace_sec = grace_sec

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        loggers, is_news = [logging.getLogger(name) for name in ("uvicorn.error", "asyncio", NAME)], News()
        for logger in loggers:
            logger.addFilter(is_news)
        try:
            super().run(sockets)
        finally:
            for logger in loggers:
                logger.removeFilter(is_news)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self._on_fault)
        await super().startup(sockets)
        for sock in sockets or []:
            sock.listen(_BACKLOG)  # again: asyncio has made it as short as it takes them at a time

    def _on_fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError) and "accept" in context["message"]:
            logging.getLogger(NAME).warning("no connection can be taken for a second: %s", error.strerror)
            self.open_connections.make_room()
        else:
            loop.default_exception_handler(context)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        timer = asyncio.get_running_loop().call_later(self._grace_sec, self._cancel)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


_CLIENT_HAS_LEFT = "socket.send() raised exception."  # asyncio's, at the fifth write after it


class News:
    """A log's filter. Answers that end because the server does are none, nor are clients that leave while they are
    written to, nor a warning that was there within the last minute: clients can cause as many of those as they like."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, float] = {}

    def __call__(self, record: logging.LogRecord) -> bool:
        if record.exc_info:
            return not isinstance(record.exc_info[1], asyncio.CancelledError)
        if record.levelno != logging.WARNING:
            return True
        if record.msg == _CLIENT_HAS_LEFT:
            return False
        now = self._clock()
        if now - self._last.get(record.msg, -_REPEATED_SEC) < _REPEATED_SEC:
            return False
        self._last[record.msg] = now
        return True
