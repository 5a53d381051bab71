"""Connections that nobody needs: silent ones, half a request, more than there may be, clients that never read. They end
by themselves, and others are served meanwhile."""

from __future__ import annotations

import contextlib
import json
import logging
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from running import NAME, PATIENCE_SEC, Gate, eventually, in_background, is_idle, serving

from smallthinker import LLM
from smallthinker.server.runner import News
from smallthinker.server.settings import Limits, Settings

HALF_A_HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: local"
PAGE = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"


def connect(url: str) -> socket.socket:
    at = urlsplit(url)
    assert at.hostname is not None
    return socket.create_connection((at.hostname, at.port or 0), PATIENCE_SEC)


def read_to_the_end(connection: socket.socket) -> int:
    """How many bytes came before the server closed it."""
    count = 0
    with contextlib.suppress(ConnectionError):
        while received := connection.recv(1 << 16):
            count += len(received)
    return count


def test_who_asks_nothing_is_not_waited_for(demo: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(demo, Settings(limits=Limits(idle_sec=0.1))) as running, contextlib.ExitStack() as stack:
        gate = Gate(monkeypatch, running)
        thread, answered = in_background(running.post, "/v1/completions", model=NAME, prompt="x", max_tokens=5)
        gate.wait_until_one_is_held()
        silent, half, again, drop = (stack.enter_context(connect(running.url)) for _ in range(4))
        half.sendall(HALF_A_HEAD)
        again.sendall(PAGE + HALF_A_HEAD)
        assert read_to_the_end(silent) == read_to_the_end(half) == 0
        assert read_to_the_end(again) > 1000
        with contextlib.suppress(ConnectionError):
            for byte in b"GET / HTTP/1.1\r\nx: " + b"x" * 10_000_000:  # a byte at a time is no request either
                drop.send(bytes([byte]))
        gate.open()  # meanwhile somebody has waited for longer than that, for an answer
        thread.join(PATIENCE_SEC)
        assert answered[0].status_code == 200


def test_the_longest_idle_connection_makes_room_for_a_new_one(demo: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(demo, Settings(limits=Limits(connections=4))) as running, contextlib.ExitStack() as stack:
        gate = Gate(monkeypatch, running)
        thread, answered = in_background(running.post, "/v1/completions", model=NAME, prompt="x", max_tokens=5)
        gate.wait_until_one_is_held()
        idle = [stack.enter_context(connect(running.url)) for _ in range(20)]
        for connection in idle[:-3]:
            assert read_to_the_end(connection) == 0
        idle[-1].sendall(PAGE)
        assert idle[-1].recv(100).startswith(b"HTTP/1.1 200")
        assert httpx.get(f"{running.url}/health").status_code == 200
        gate.open()
        thread.join(PATIENCE_SEC)
        assert answered[0].status_code == 200


@pytest.mark.parametrize("how", ["is still there", "says no more", "leaves"])
def test_a_client_that_reads_nothing_holds_nothing(demo: LLM, how: str) -> None:
    limits = Limits(stalled_sec=0.1 if how == "is still there" else 1000)
    with serving(demo, Settings(limits=limits)) as running, connect(running.url) as connection:
        page = len(httpx.get(running.url).content)
        connection.sendall(PAGE * 200)
        eventually(lambda: any(c.flow.write_paused for c in running.server.server_state.connections))
        if how == "says no more":
            connection.shutdown(socket.SHUT_WR)
        elif how == "leaves":
            connection.close()
        eventually(lambda: is_idle(running))
        if how != "leaves":
            assert read_to_the_end(connection) < 200 * page


def test_the_kernel_asks_whether_a_silent_client_is_still_there(demo: LLM) -> None:
    with serving(demo) as running, connect(running.url):
        connections = running.server.server_state.connections
        eventually(lambda: connections)
        (connection,) = connections
        sock = connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_KEEPIDLE"):
            assert 0 < sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 60


@contextlib.contextmanager
def served(files: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """In a process that may open so many files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("needs 2048 open files of its own")
    command = [sys.executable, "-m", "smallthinker", "serve", "--port", "0", "--json", "--memory", "400MiB"]
    limited = ["sh", "-c", f'ulimit -n {files} && exec "$@"', "sh", *command]
    process = subprocess.Popen(limited, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    resource.setrlimit(resource.RLIMIT_NOFILE, (2048, hard))
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())["url"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        process.kill()
        process.wait()


def assert_served(url: str) -> None:
    body = {"prompt": "x", "max_tokens": 2}
    assert httpx.post(f"{url}/v1/completions", json=body, timeout=PATIENCE_SEC).status_code == 200


def log_of(process: subprocess.Popen[str]) -> list[str]:
    process.terminate()
    _, errors = process.communicate(timeout=PATIENCE_SEC)
    assert process.returncode == 0
    return errors.splitlines()


def test_beside_more_idle_connections_than_it_may_open_files_others_are_served() -> None:
    with served(1024) as (process, url), contextlib.ExitStack() as stack:
        for number in range(1100):
            connection = stack.enter_context(connect(url))
            if number % 2:
                with contextlib.suppress(ConnectionError):
                    connection.sendall(HALF_A_HEAD)
            if number % 100 == 99:
                assert_served(url)
        assert_served(url)
        assert log_of(process) == []


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux")
def test_without_a_descriptor_left_it_says_so_once_and_makes_room() -> None:
    with served(1024) as (process, url), contextlib.ExitStack() as stack:
        assert_served(url)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (64, 1024))  # what isn't its own doing
        for _ in range(100):
            stack.enter_context(connect(url))
        assert_served(url)
        assert log_of(process) == ["WARNING:  no connection can be taken for a second: Too many open files"]


def test_what_anyone_can_cause_fills_no_log() -> None:
    now = 0.0
    is_news = News(lambda: now)
    fault = logging.LogRecord("uvicorn.error", logging.WARNING, "", 0, "Invalid HTTP request received.", (), None)
    other = logging.LogRecord("uvicorn.error", logging.WARNING, "", 0, "no connection: %s", ("x",), None)
    assert [is_news(fault), is_news(other), is_news(fault), is_news(other)] == [True, True, False, False]
    now = 59.0
    assert not is_news(fault)
    now = 61.0
    assert [is_news(fault), is_news(fault)] == [True, False]
