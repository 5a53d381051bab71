"""Runs the application: listens, serves until a signal, and lets running answers finish."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import socket

import uvicorn
from starlette.applications import Starlette

from smallthinker.errors import RequestError
from smallthinker.llm import LLM

# After the answers have been cancelled, until their last bytes must have gone out.
_LAST_BYTES_SEC = 5.0


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one. Raises RequestError in one line when it can't be had."""
    try:
        family = socket.AF_INET6 if ":" in host and ipaddress.ip_address(host).version == 6 else socket.AF_INET
        sock = socket.socket(family)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            sock.listen(128)
        except BaseException:
            sock.close()
            raise
    except (OSError, OverflowError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise RequestError(
                f"--port {port}: another program listens on {host}:{port}; give another --port, or 0 for a free one"
            ) from None
        why = error.strerror if isinstance(error, OSError) else error
        raise RequestError(f"--host {host} --port {port}: cannot listen there: {why}") from None
    return sock


class Server(uvicorn.Server):
    """Uvicorn's, which waits for open answers at a SIGTERM or Ctrl-C: after `grace_sec` they are cancelled, and say so.
    A second Ctrl-C waits for nothing."""

    def __init__(self, app: Starlette, llm: LLM, *, grace_sec: float, access_log: bool) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_level="info" if access_log else "warning",
                access_log=access_log,
                use_colors=False,  # standard error shows control characters instead of passing them on
                lifespan="off",
                ws="none",
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=round(grace_sec + _LAST_BYTES_SEC),
            )
        )
        self._llm, self._grace_sec = llm, grace_sec

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        logger = logging.getLogger("uvicorn.error")
        logger.addFilter(_is_news)
        try:
            super().run(sockets)
        finally:
            logger.removeFilter(_is_news)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        timer = asyncio.get_running_loop().call_later(self._grace_sec, self._llm.cancel)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


def _is_news(record: logging.LogRecord) -> bool:
    """Answers that end because the server does are none."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))
