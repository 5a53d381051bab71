"""The face before replicas: which conversation a request is of, and what becomes of it when its replica ends."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from smallthinker.cli import main
from smallthinker.cluster.conversations import conversation_of
from smallthinker.server.settings import Settings

CHAT = "/v1/chat/completions"


def test_without_ray_a_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["serve", "demo", "--port", "0", "--cluster", "local"]) == 2
    said = capsys.readouterr().err
    assert "pip install 'smallthinker[ray]'" in said and said.count("\n") == 1
    for option in (["--replicas", "2"], ["--node-dir", "here"]):
        assert main(["serve", "demo", "--port", "0", *option]) == 2
        assert f"{option[0]}: has no meaning without --cluster" in capsys.readouterr().err
    assert main(["serve", "demo", "--port", "0", "--cluster", "local", "--kv-dir", str(tmp_path)]) == 2
    assert "--kv-dir: has no meaning with --cluster" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "0", "3-2", "-1", "2-", "many", "1-99999"])
def test_a_number_of_replicas_that_is_none_is_refused(text: str) -> None:
    from smallthinker.cluster.replicas import counts_of
    from smallthinker.errors import RequestError

    assert counts_of("2") == (2, 2) and counts_of("1-4") == (1, 4)
    with pytest.raises(RequestError, match="replicas: expected"):
        counts_of(text)


def key(path: str, **said: Any) -> str:
    return conversation_of(path, json.dumps(said).encode())


def test_turns_of_a_conversation_have_one_key_and_others_have_another() -> None:
    system, first = {"role": "system", "content": "Be brief"}, {"role": "user", "content": "Who?"}
    more = [{"role": "assistant", "content": "I"}, {"role": "user", "content": "And?"}]
    for path, field in ((CHAT, "messages"), ("/api/chat", "messages"), ("/v1/responses", "input")):
        begun = key(path, **{field: [system, first]})
        assert begun and begun == key(path, **{field: [system, first, *more]}, temperature=0)
        assert begun != key(path, **{field: [system, more[1]]}) != key(path, **{field: [first]})
    long = "Once upon a time there was a king who had three sons and a river. "
    assert key("/v1/completions", prompt=long) == key("/v1/completions", prompt=long + "And")
    assert key(CHAT, messages=[first], prompt_cache_key="a") == key(CHAT, messages=more, prompt_cache_key="a")
    assert key(CHAT, messages=[first], prompt_cache_key="a") != key(CHAT, messages=[first], prompt_cache_key="b")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b'{"messages": 3}', b'{"messages": [3, {"role": []}]}'])
def test_a_body_that_says_nothing_is_of_some_conversation_or_of_none(body: bytes) -> None:
    assert len(conversation_of(CHAT, body)) in (0, 24)
    assert conversation_of("/v1/embeddings", body) == ""


class Handle:
    """Ray Serve's, as far as it is used: each call takes the next of these answers."""

    def __init__(self, *answers: list[Any]) -> None:
        self.answers, self.asked, self.cancelled = list(answers), list[str](), 0

    def options(self, multiplexed_model_id: str = "", **others: Any) -> Handle:
        if multiplexed_model_id:
            self.asked.append(multiplexed_model_id)
        return self

    def remote(self, scope: dict[str, Any], body: bytes) -> Any:
        handle, said = self, self.answers.pop(0)

        class Answer:
            async def __aiter__(self) -> AsyncIterator[Any]:
                for one in said:
                    if isinstance(one, Exception):
                        raise one
                    yield one

            def cancel(self) -> None:
                handle.cancelled += 1

        return Answer()


def start(kind: str) -> dict[str, Any]:
    return {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind.encode())]}


def part(text: str, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": text.encode(), "more_body": more}


def asked(handle: Handle, path: str = CHAT) -> httpx.Response:
    from smallthinker.cluster.front import create_front
    from smallthinker.cluster.replicas import Replicas

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_front(Replicas(handle, "app"), Settings()))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post(path, json={"messages": [{"role": "user", "content": "Who?"}]})

    return asyncio.run(ask())


@pytest.fixture
def ended() -> Exception:
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed: smallthinker[ray]")
    from ray.exceptions import RayActorError

    return RayActorError()


def test_what_a_replica_had_not_begun_another_answers(ended: Exception) -> None:
    handle = Handle([ended], [ended], [start("application/json"), part('{"who": "I"}')])
    found = asked(handle)
    assert (found.status_code, found.json()) == (200, {"who": "I"})
    assert len(set(handle.asked)) == 1 and handle.cancelled == 3
    found = asked(Handle([ended], [ended], [ended]))
    assert found.status_code == 503 and "has ended; ask again" in found.json()["error"]["message"]


@pytest.mark.parametrize(
    ("kind", "begins"), [("text/event-stream; charset=utf-8", "data: "), ("application/x-ndjson", "")]
)
def test_a_stream_whose_replica_ends_says_so(ended: Exception, kind: str, begins: str) -> None:
    found = asked(Handle([start(kind), part("first\n", more=True), ended]))
    first, told = found.text.split("\n", 1)
    assert (
        first == "first"
        and told.startswith(begins)
        and "has ended" in str(json.loads(told.removeprefix(begins))["error"])
    )


def test_more_than_may_wait_are_told_to_come_again(ended: Exception) -> None:
    from ray.serve.exceptions import BackPressureError

    found = asked(Handle([BackPressureError(num_queued_requests=64, max_queued_requests=64)]))
    assert found.status_code == 429 and found.headers["retry-after"] == "1"
