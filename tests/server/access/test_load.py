"""More clients than can be served, clients that leave, answers that take too long, and the end of the server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from openai import APIStatusError, APITimeoutError, InternalServerError, RateLimitError
from running import MEMORY, NAME, PATIENCE_SEC, Gate, Running, eventually, in_background, serving, with_processor

from smallthinker import LLM
from smallthinker.errors import StoreReadError
from smallthinker.server.access.clients import client_of
from smallthinker.server.access.request_limit import RequestLimit
from smallthinker.server.service import Activity
from smallthinker.server.settings import Limits, Settings

TEXT: dict[str, Any] = {"model": NAME, "prompt": "The sea was", "max_tokens": 50, "temperature": 0}


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Running, Gate]]:
    """A server that computes one answer and lets one more wait."""
    with LLM(memory=MEMORY, threads=1, max_waiting=1) as llm, serving(llm) as running:
        gate = Gate(monkeypatch, running)
        yield running, gate
        gate.open()


def test_past_the_queue_s_bound_a_client_is_told_when_to_come_again(narrow: tuple[Running, Gate]) -> None:
    running, gate = narrow
    client = running.openai
    first, answered = in_background(client.completions.create, **TEXT)
    gate.wait_until_one_is_held()
    # two wait at the same time for one place; who comes too late hears of it at once, streaming or not
    with pytest.raises(RateLimitError) as error:
        client.completions.create(**TEXT, n=2)
    assert error.value.code == "rate_limit_exceeded" and int(error.value.response.headers["retry-after"]) >= 1
    with pytest.raises(RateLimitError):
        client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "x"}], n=2, stream=True)
    gate.open()
    first.join(PATIENCE_SEC)
    assert answered[0].usage.completion_tokens == 50  # those who came first feel nothing of it
    assert client.completions.create(**TEXT).choices[0].text == answered[0].choices[0].text


@contextlib.contextmanager
def from_elsewhere(running: Running) -> Iterator[httpx.Client]:
    """A client of another address."""
    with httpx.Client(
        base_url=running.url, timeout=PATIENCE_SEC, transport=httpx.HTTPTransport(local_address="127.0.0.2")
    ) as client:
        yield client


@pytest.mark.skipif(sys.platform != "linux", reason="needs a loopback of many addresses")
@pytest.mark.parametrize("stream", [False, True])
def test_whoever_fills_the_queue_makes_room_for_another_client(monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    with (
        LLM(memory=MEMORY, threads=1, max_waiting=17) as llm,
        serving(llm) as running,
        from_elsewhere(running) as other,
    ):
        gate = Gate(monkeypatch, running)
        body = TEXT | {"max_tokens": 2, "stream": stream}
        first, answered = in_background(running.post, "/v1/completions", **body)
        gate.wait_until_one_is_held()
        asking = [in_background(running.post, "/v1/completions", **body, n=n) for n in (16, 1)]
        eventually(lambda: llm.scheduler.stats().waiting == 17)
        assert running.post("/v1/completions", **body).status_code == 429  # no more of this client's
        another, got = in_background(other.post, "/v1/completions", json=body)
        # one of the two has made room; if it was one of the sixteen, nobody waits for the other fifteen
        eventually(lambda: len(running.requests) == 19)
        gate.open()
        for thread in (first, another, *(thread for thread, _ in asking)):
            thread.join(PATIENCE_SEC)
        texts = [results[0].text for results in (answered, got)]
        assert all("rate_limit" not in text for text in texts) and got[0].status_code == 200
        refused = [results[0] for _, results in asking if "rate_limit_exceeded" in results[0].text]
        assert len(refused) == 1 and refused[0].status_code == (200 if stream else 429)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a loopback of many addresses")
def test_one_client_leaves_places_for_others(demo: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(demo, Settings(limits=Limits(requests=4))) as running, from_elsewhere(running) as other:
        gate = Gate(monkeypatch, running)
        asking = [in_background(running.post, "/v1/completions", **TEXT) for _ in range(3)]
        eventually(lambda: len(running.requests) == 3)
        refused = running.post("/v1/completions", **TEXT)
        assert refused.status_code == 503 and "3 from one client" in refused.json()["error"]["message"]
        assert other.get("/v1/models").status_code == 200
        gate.open()
        for thread, _ in asking:
            thread.join(PATIENCE_SEC)
        assert running.post("/v1/completions", **TEXT).status_code == 200


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
    ],
)
def test_a_client_is_an_address_or_a_network(address: str, client: str) -> None:
    assert client_of({"type": "http", "client": (address, 1)}) == client
    assert client_of({"type": "http", "client": None}) == ""


def test_past_the_bound_on_requests_a_client_gets_an_error_that_it_can_read(
    demo: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(demo, Settings(limits=Limits(requests=1))) as running, contextlib.ExitStack() as idle:
        at = urlsplit(running.url)
        for _ in range(4):  # who only connects takes nobody's place
            idle.enter_context(socket.create_connection((at.hostname, at.port)))
        gate, client = Gate(monkeypatch, running), running.openai
        first, answered = in_background(client.completions.create, **TEXT)
        try:
            gate.wait_until_one_is_held()
            for ask in (client.models.list, partial(client.completions.create, **TEXT, stream=True)):
                with pytest.raises(InternalServerError, match="as many requests are under way") as error:
                    ask()
                assert (error.value.status_code, error.value.code) == (503, "server_overloaded")
                assert int(error.value.response.headers["retry-after"]) >= 1
            assert httpx.get(f"{running.url}/health").status_code == 200
        finally:
            gate.open()
        first.join(PATIENCE_SEC)
        assert answered[0].usage.completion_tokens == 50
        again = client.with_options(max_retries=3).completions.create(**TEXT)
        assert again.choices[0].text == answered[0].choices[0].text


def test_a_request_that_fails_gives_its_place_back() -> None:
    started: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        started.append(scope["path"])
        raise RuntimeError("broken")

    async def ask(limit: RequestLimit) -> None:
        with pytest.raises(RuntimeError, match="broken"):
            await limit({"type": "http", "path": "/v1/models"}, None, None)  # type: ignore[arg-type]

    limit = RequestLimit(app, Limits(requests=1))
    for _ in range(3):
        asyncio.run(ask(limit))
    assert len(started) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_cancelled_when_its_client_leaves(server: Running, gate: Gate, stream: bool) -> None:
    async def leave_while_it_is_computed() -> None:
        async with httpx.AsyncClient(timeout=PATIENCE_SEC) as client:
            asking = asyncio.create_task(client.post(f"{server.url}/v1/completions", json=TEXT | {"stream": stream}))
            await asyncio.to_thread(gate.wait_until_one_is_held)
            asking.cancel()

    asyncio.run(leave_while_it_is_computed())
    gate.wait_until_one_is_cancelled()
    gate.open()
    assert server.requests[0].result().finish_reason == "cancelled"


def test_one_of_several_answers_does_not_outlive_its_client(server: Running, gate: Gate) -> None:
    async def leave() -> None:
        async with httpx.AsyncClient(timeout=PATIENCE_SEC) as client:
            asking = asyncio.create_task(client.post(f"{server.url}/v1/completions", json=TEXT | {"n": 4}))
            await asyncio.to_thread(gate.wait_until_one_is_held)
            asking.cancel()

    asyncio.run(leave())
    gate.wait_until_one_is_cancelled()
    gate.open()
    assert [request.result().finish_reason for request in server.requests] == ["cancelled"] * 4


def test_the_official_client_s_timeout_cancels_the_answer(server: Running, gate: Gate) -> None:
    with pytest.raises(APITimeoutError):
        server.openai.with_options(timeout=0.2).completions.create(**TEXT)
    gate.wait_until_one_is_cancelled()


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_longer_than_asked_for_ends_with_an_error(server: Running, stream: bool) -> None:
    client = server.openai
    options = TEXT | {"extra_body": {"timeout": 1e-9}}
    if stream:
        with pytest.raises(Exception, match="not finished after 1e-09 s"):
            list(client.completions.create(**options, stream=True))
    else:
        with pytest.raises(APIStatusError, match="not finished") as error:
            client.completions.create(**options)
        assert error.value.status_code == 504 and error.value.code == "timeout"
        assert error.value.response.headers["x-should-retry"] == "false"
    assert client.completions.create(**TEXT).usage is not None  # the next one has its own time


def test_at_the_end_running_answers_may_finish(demo: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(demo, grace_sec=PATIENCE_SEC) as running:
        gate = Gate(monkeypatch, running)
        thread, answered = in_background(lambda: list(running.openai.completions.create(**TEXT, stream=True)))
        gate.wait_until_one_is_held()
        running.stop()
        gate.open()
        thread.join(PATIENCE_SEC)
    assert answered[0][-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_after_the_grace_they_are_cancelled_and_told_so(
    demo: LLM, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    with serving(demo, grace_sec=0) as running:
        gate = Gate(monkeypatch, running)

        def ask() -> Any:
            answer = running.openai.completions.create(**TEXT, stream=stream)
            return list(answer) if stream else answer

        thread, answered = in_background(ask)
        gate.wait_until_one_is_held()
        running.stop()
        gate.wait_until_one_is_cancelled()
        gate.open()
        thread.join(PATIENCE_SEC)
    assert "shutting down" in str(answered[0])


def test_the_rate_of_tokens_is_that_of_the_last_seconds() -> None:
    now = 100.0
    activity = Activity(lambda: now)
    assert activity.tokens_per_sec() == 0
    for _ in range(41):
        activity.token()
        now += 0.1
    assert activity.tokens_per_sec() == pytest.approx(10, rel=0.01)
    now += 1
    assert 0 < activity.tokens_per_sec() < 10
    for _ in range(2):  # another answer, after a pause that is not its own
        activity.token()
        now += 0.01
    assert activity.tokens_per_sec() == pytest.approx(100, rel=0.01)
    now += 5
    assert activity.tokens_per_sec() == 0


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
@pytest.mark.parametrize("fault", [RuntimeError("secret"), StoreReadError("/secret/experts.bin: input/output error")])
def test_what_nobody_foresaw_is_one_error_and_in_the_log_and_the_next_request_is_served(
    server: Running, path: str, fault: Exception
) -> None:
    text = {"prompt": "x"} if path.endswith("v1/completions") else {"input": "x"}
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]} if "chat" in path else text

    def fail(ids: Any, logits: Any) -> None:
        raise fault

    logs, handler, records = [logging.getLogger(n) for n in ("uvicorn.error", "smallthinker")], logging.Handler(), []
    handler.emit = records.append  # type: ignore[method-assign]
    for log in logs:
        log.addHandler(handler)
    try:
        with pytest.MonkeyPatch.context() as patched:
            with_processor(patched, server, lambda: fail)
            whole = server.post(path, **body)
            stream = server.post(path, **body, stream=True)
        eventually(lambda: len(records) == 2)  # one for each; of the first, uvicorn tells after the client has heard
    finally:
        for log in logs:
            log.removeHandler(handler)
    assert whole.status_code == 500 and set(whole.json()["error"]) == {"message", "type", "param", "code"}
    assert whole.headers["x-should-retry"] == "false"
    assert ("close" in whole.headers.get("connection", "")) == isinstance(fault, RuntimeError)
    assert "secret" not in whole.text + stream.text
    assert whole.json()["error"]["message"] in stream.text.splitlines()[-2]
    assert all(
        record.exc_info[1] is fault if record.exc_info else "secret" in record.getMessage() for record in records
    )
    assert server.post(path, **body).status_code == 200
