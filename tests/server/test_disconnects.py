"""Clients that leave: however they do it, whatever they asked for, and wherever their request is by then, nothing goes
on for them and no place stays taken."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from running import MEMORY, NAME, PATIENCE_SEC, Running, eventually, is_idle, serving, with_processor

from smallthinker import LLM
from smallthinker.generation.answer import GenerationParams
from smallthinker.server.service import Service
from smallthinker.server.settings import Settings

How = Literal["close", "reset", "half-close"]
LONG = 10**6  # tokens: to the end of the context, unless somebody cancels
STORY = "Once upon a time there was a sea of many ships, and "
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": STORY}], "max_tokens": LONG},
    "/v1/completions": {"prompt": STORY, "max_tokens": LONG},
    "/v1/responses": {"input": STORY, "max_output_tokens": LONG},
}


class Client:
    """One connection, by hand."""

    def __init__(self, url: str) -> None:
        at = urlsplit(url)
        assert at.hostname is not None
        self._connection = socket.create_connection((at.hostname, at.port or 0), PATIENCE_SEC)

    def send(self, path: str, body: dict[str, Any], *, share: float = 1) -> None:
        """The request, or so much of its body."""
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n\r\n".encode()
        self._connection.sendall(head + content[: int(len(content) * share)])

    def read(self) -> bytes:
        received = self._connection.recv(1 << 16)
        assert received, "the server has closed it"
        return received

    def leave(self, how: How) -> None:
        if how == "half-close":
            self._connection.shutdown(socket.SHUT_WR)
            return  # the rest stays open, read by nobody
        if how == "reset":
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._connection.close()

    def close(self) -> None:
        self._connection.close()


class Progress:
    """Answers never end by themselves, and say when they have come so far."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, running: Running) -> None:
        self.reached, self.at = threading.Event(), 0
        self._eos = list(running.llm.config.tokens.eos)
        with_processor(monkeypatch, running, lambda: self._note)

    def _note(self, ids: Sequence[int], logits: npt.NDArray[np.float32]) -> None:
        logits[self._eos] = -np.inf
        if len(ids) >= self.at:
            self.reached.set()

    def from_token(self, at: int) -> None:
        self.at = at
        self.reached.clear()


@pytest.fixture(scope="module")
def small() -> Iterator[Running]:
    """A server of its own, whose queue holds what one request may ask for."""
    with LLM(memory=MEMORY, threads=1, sequences=2) as llm, serving(llm) as running:
        yield running


@contextlib.contextmanager
def occupied(llm: LLM) -> Iterator[None]:
    """The thread that computes is held, so that whoever comes has to wait."""
    held, let_go = threading.Event(), threading.Event()

    def hold(ids: Sequence[int], logits: npt.NDArray[np.float32]) -> None:
        held.set()
        assert let_go.wait(PATIENCE_SEC)

    submit = type(llm.scheduler).submit  # without what a test has put before it
    submit(llm.scheduler, [1, 2], GenerationParams(max_tokens=1), logits_processor=hold)
    assert held.wait(PATIENCE_SEC)
    try:
        yield
    finally:
        let_go.set()


@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
@pytest.mark.parametrize("path", ASKED)
def test_whoever_leaves_takes_the_work_along(
    small: Running, monkeypatch: pytest.MonkeyPatch, path: str, how: How
) -> None:
    progress, running = Progress(monkeypatch, small), small
    for stream, moment in itertools.product((False, True), ("body", "sent", "queue", "prompt", "first", "later")):
        running.requests.clear()
        body = ASKED[path] | {"stream": stream}
        if "responses" not in path and moment in ("queue", "later"):
            body["n"] = 16
        if moment == "prompt":
            body = json.loads(json.dumps(body).replace(STORY, STORY * 60))
        progress.from_token(1 if moment == "first" else 5)
        client = Client(running.url)
        eventually(lambda: running.server.server_state.connections)  # or it could leave before it has been seen
        if moment == "queue":
            with occupied(running.llm):
                client.send(path, body)
                eventually(lambda: len(running.requests) == body.get("n", 1))  # noqa: B023
                client.leave(how)
                eventually(lambda: all(request.ending == "cancelled" for request in running.requests))
        else:
            client.send(path, body, share=0.5 if moment == "body" else 1)
            if moment == "prompt":
                eventually(lambda: running.requests and running.requests[0].state == "running")
            elif moment in ("first", "later"):
                assert progress.reached.wait(PATIENCE_SEC)
            client.leave(how)
        eventually(lambda: is_idle(running))
        endings = {request.result().finish_reason for request in running.requests}
        assert endings <= {"cancelled"}, (stream, moment)
        assert endings or moment in ("body", "sent")
        client.close()
    answer = httpx.post(f"{running.url}/v1/completions", json={"prompt": "x", "max_tokens": 3}, timeout=PATIENCE_SEC)
    assert answer.status_code == 200  # on a connection that doesn't stay


def test_a_client_that_asks_too_early_for_more_and_leaves_is_missed(
    small: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Progress(monkeypatch, small)
    for stream in (False, True):
        progress.from_token(3)
        small.requests.clear()
        client = Client(small.url)
        client.send("/v1/completions", ASKED["/v1/completions"] | {"stream": stream})
        assert progress.reached.wait(PATIENCE_SEC)
        client.send("/v1/completions", {"prompt": "x"})
        client.leave("close")
        eventually(lambda: is_idle(small))
        assert [request.result().finish_reason for request in small.requests] == ["cancelled"]


def test_a_request_that_comes_before_its_turn_is_answered_after_the_first(small: Running) -> None:
    client = Client(small.url)
    for prompt in ("x", "y", "z"):
        client.send("/v1/completions", {"prompt": prompt, "max_tokens": 2, "stream": True})
    received = b""
    while received.count(b"[DONE]") < 3:
        received += client.read()
    client.close()


def test_a_prompt_whose_client_has_gone_is_prepared_beside_no_other(demo: LLM) -> None:
    service, order, let_go, begun = Service(demo, NAME, Settings()), [], threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert let_go.wait(PATIENCE_SEC)
        order.append("slow")

    async def come_and_go() -> None:
        first = asyncio.ensure_future(service.prepare("a", slow))
        await asyncio.to_thread(begun.wait, PATIENCE_SEC)
        never = asyncio.ensure_future(service.prepare("a", order.append, "never"))
        last = asyncio.ensure_future(service.prepare("a", order.append, "last"))
        for _ in range(10):
            await asyncio.sleep(0)
        first.cancel()
        never.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        await asyncio.to_thread(let_go.set)
        await last

    asyncio.run(come_and_go())
    assert order == ["slow", "last"]
