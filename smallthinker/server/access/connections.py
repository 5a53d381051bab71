"""How many connections there may be, and how long each may keep the server waiting.

Uvicorn waits without end for a request's first bytes, and for a client that reads nothing of its answer; and where it
refuses a request that is still being sent, it closes at once, and the client gets a reset for an answer. Knows nothing
about what is asked; a body's time is `body`'s, an answer's `scheduler`'s.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from smallthinker.server.settings import Limits

# For stores, saved conversations and libraries, and for connections that were accepted before others were closed.
_OTHER_FILES = 128
# So long a client that was refused within its request may go on sending, unheard, until it comes to read the refusal.
_LINGER_SEC = 5.0


class Connections:
    """All of one server. Where one too many comes, the one on which nothing has been asked for longest makes room."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.max_open = limits, max_connections(limits.connections)
        self._open: set[Connection] = set()
        self._idle: dict[Connection, None] = {}  # in the order in which they fell idle

    def opened(self, connection: Connection) -> None:
        self._open.add(connection)
        if len(self._open) > self.max_open and not self.make_room():
            self._close(connection)

    def make_room(self) -> bool:
        """Whether there was one that could be closed."""
        for connection in self._idle:
            self._close(connection)
            return True
        return False

    def _close(self, connection: Connection) -> None:
        self.closed(connection)
        connection.transport.abort()

    def idle(self, connection: Connection) -> bool:
        """Whether it wasn't idle before."""
        if connection in self._idle or connection not in self._open:
            return False
        self._idle[connection] = None
        return True

    def busy(self, connection: Connection) -> None:
        self._idle.pop(connection, None)

    def closed(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._idle.pop(connection, None)


class _Transport:
    """A connection's transport, closed as the connection says."""

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        self._transport, self._connection = transport, connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        if not self._connection.linger():
            self._transport.close()

    def is_closing(self) -> bool:
        return self._connection.lingers or self._transport.is_closing()


class Connection(H11Protocol):
    """One connection. Idle: no request is under way on it; then one has to come within `Limits.idle_sec`, whole."""

    lingers = False

    def __init__(self, *args: Any, connections: Connections, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._all, self._limits = connections, connections.limits
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._unsent = 0
        self._ahead = bytearray()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        _ask_whether_it_is_there(transport.get_extra_info("socket"))
        super().connection_made(_Transport(transport, self))  # type: ignore[arg-type]  # it has all that is used
        transport.set_write_buffer_limits(high=0)  # so that pause_writing tells of anything that isn't taken
        self._all.opened(self)
        self._note_state()

    def data_received(self, data: bytes) -> None:
        if self.lingers:
            return
        if self._is_asked():
            self._ahead += data  # the next request, too early
            if len(self._ahead) > self._limits.body_bytes:
                self.transport.abort()
            return
        super().data_received(data)
        self._note_state()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note_state()
        if self._ahead and not self.transport.is_closing():
            data, self._ahead = bytes(self._ahead), bytearray()
            self.data_received(data)

    def linger(self) -> bool:
        """Instead of closing: end what is sent, and let the client end. Not where its request has come whole, and not
        twice; closing with bytes unread would reset the connection, and destroy an answer that hasn't been read."""
        if self.lingers or self.conn.their_state not in (h11.SEND_BODY, h11.ERROR):
            return False
        self.lingers = True
        self.flow.resume_reading()
        self.transport.write_eof()
        self._timers["lingering"] = self.loop.call_later(_LINGER_SEC, self.transport.close)
        return True

    def eof_received(self) -> None:
        """A client that has said its last word waits for no answer; what it has been given, it may still read."""
        if self._is_under_way():
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.closed(self)
        for timer in self._timers.values():
            timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop("stalled")

    def _is_under_way(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _is_asked(self) -> bool:
        """A request has come whole, and isn't answered yet."""
        return self._is_under_way() and not self.cycle.more_body

    def _note_state(self) -> None:
        if self._is_asked():
            self.flow.resume_reading()  # which uvicorn stops where more has come, and so misses that the client leaves
        if self._is_under_way():
            self._all.busy(self)
            self._stop("idle")
        elif self._all.idle(self):
            self._timers["idle"] = self.loop.call_later(self._limits.idle_sec, self.transport.close)

    def _wait_for_reader(self) -> None:
        self._unsent = self.transport.get_write_buffer_size()
        self._timers["stalled"] = self.loop.call_later(self._limits.stalled_sec, self._check_reader)

    def _check_reader(self) -> None:
        if self.transport.get_write_buffer_size() >= self._unsent:
            self.transport.abort()
        else:
            self._wait_for_reader()

    def _stop(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()


def _ask_whether_it_is_there(sock: socket.socket) -> None:
    """The kernel does, so that a machine that vanished without a word is missed within a minute."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def max_connections(wanted: int) -> int:
    """So many, or what the process may open beside its other files; its own limit is raised as far as may be."""
    if sys.platform == "win32":  # it counts no descriptors
        return wanted
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    needed = wanted + _open_files() + _OTHER_FILES
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(1, min(wanted, wanted - (needed - soft)))


def _open_files() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        if Path(folder).is_dir():
            return sum(1 for _ in Path(folder).iterdir())
    return 0
