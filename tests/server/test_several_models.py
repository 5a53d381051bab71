"""Several models by name, one at a time inside the same budget."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import pytest
from openai import APIStatusError, OpenAI
from running import MEMORY, NAME, Gate, Running, demo_with_template, eventually, in_background, serving

from smallthinker import LLM
from smallthinker.errors import MemoryBudgetError
from smallthinker.library import Library
from smallthinker.llm import DEMO_STORE

OTHER = "other"
MESSAGES: Any = [{"role": "user", "content": "Who is it?"}]
ASKED: dict[str, Any] = {"messages": MESSAGES, "temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a model that answers in another way, one without its experts, and what is none."""
    folder = tmp_path_factory.mktemp("models")
    demo_with_template(folder / OTHER, "{% for message in messages %}{{ message.content }} And{% endfor %}")
    shutil.copytree(DEMO_STORE, folder / "broken")
    (folder / "broken" / "experts.safetensors").write_bytes(b"x" * 100)
    (folder / "empty").mkdir()
    return folder


@pytest.fixture(scope="module")
def several(folder: Path) -> Iterator[Running]:
    def load(path: Path) -> LLM:
        if path.name == "large":
            raise MemoryBudgetError("memory: 1 GiB is below the floor of 2 GiB", 2 << 30)
        return LLM(path, memory=MEMORY, threads=1, context=512)

    first = LLM(memory=MEMORY, threads=1, context=512)
    with serving(first, load=load, library=Library(folder)) as running:
        yield running
    running.app.state.models.close()


@pytest.fixture(scope="module")
def client(several: Running) -> OpenAI:
    return several.openai


def said(client: OpenAI, name: str | None) -> str:
    answer = client.chat.completions.create(model=name, **ASKED)  # type: ignore[call-overload]
    assert name is None or answer.model == name
    return str(answer.choices[0].message.content)


def expected(store: Path) -> str:
    with LLM(store, threads=1, context=512) as llm:
        return llm.chat(MESSAGES, temperature=0, max_tokens=8).text


def test_each_name_answers_as_its_model_and_the_last_answers_without_a_name(
    client: OpenAI, several: Running, folder: Path
) -> None:
    first, other = expected(DEMO_STORE), expected(folder / OTHER)
    assert first != other
    assert [said(client, name) for name in (NAME, OTHER, None, NAME, OTHER)] == [first, other, other, first, other]
    stream = client.chat.completions.create(model=NAME, stream=True, **ASKED)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == first
    assert ollama.Client(several.url).chat(OTHER, MESSAGES, options={"temperature": 0}).model == OTHER
    assert client.embeddings.create(model=NAME, input="x").model == NAME
    assert several.service.name == NAME and several.http.get("/api/stats").json()["model"] == NAME


def test_all_that_run_are_listed_and_shown(client: OpenAI, several: Running) -> None:
    said(client, NAME)
    listed = several.http.get("/v1/models").json()["data"]
    assert sorted(model["id"] for model in listed) == sorted([NAME, "broken", OTHER])
    assert {model["id"]: "max_model_len" in model for model in listed} == {NAME: True, "broken": False, OTHER: False}
    assert several.http.get(f"/v1/models/{OTHER}").json()["id"] == OTHER
    known = ollama.Client(several.url)
    assert sorted(model.model or "" for model in known.list().models) == sorted(model["id"] for model in listed)
    assert "And" in (known.show(OTHER).template or "")  # without loading it
    assert [model.model for model in known.ps().models] == [NAME]


@pytest.mark.parametrize("seconds", [-(2**31), 0, 2**33, 2**40])  # as far as the file system can keep it
def test_files_of_any_date_are_listed(seconds: int, several: Running, folder: Path) -> None:
    for path in (folder / OTHER).iterdir():
        os.utime(path, (seconds, seconds))
    assert OTHER in [model.model for model in ollama.Client(several.url).list().models]


def test_an_alias_is_the_model_that_it_names(client: OpenAI, several: Running, folder: Path) -> None:
    Library(folder).set_alias("second", OTHER)
    answers = [client.chat.completions.create(model=name, **ASKED) for name in ("second", OTHER)]
    assert [answer.model for answer in answers] == [OTHER, OTHER]
    llm = several.service.llm
    assert client.chat.completions.create(model="second", **ASKED).model == OTHER
    assert several.service.llm is llm


def test_a_request_for_another_waits_for_the_answers_that_are_written(
    several: Running, client: OpenAI, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said(client, NAME)
    several.requests.clear()
    several.llm = several.service.llm
    gate = Gate(monkeypatch, several, first=2)
    first, answers = in_background(said, client, NAME)
    gate.wait_until_one_is_held()
    second, others = in_background(said, client, OTHER)
    third, last = in_background(said, client, OTHER)
    eventually(lambda: several.app.state.models._turns.locked())
    assert several.service.name == NAME and not others
    gate.open()
    for thread in (first, second, third):
        thread.join()
    assert len(answers[0].split()) > 1 and others == last == [expected(folder / OTHER)]


def test_who_leaves_before_it_is_there_changes_nothing(
    several: Running, client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    said(client, NAME)
    several.requests.clear()
    several.llm = several.service.llm
    gate = Gate(monkeypatch, several, first=2)
    writing, _ = in_background(said, client, NAME)
    gate.wait_until_one_is_held()
    body = json.dumps({"model": OTHER, **ASKED}).encode()
    host, port = several.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as leaving:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
        leaving.sendall(head.encode() + body)
        eventually(lambda: several.app.state.models._turns.locked())
    eventually(lambda: not several.app.state.models._turns.locked())
    gate.open()
    writing.join()
    assert several.service.name == NAME


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("nobody", 404, ["nobody", OTHER, NAME]),
        ("broken", 500, ["broken", "can't be loaded", "log"]),
    ],
)
def test_what_isn_t_there_or_can_t_be_loaded_is_one_line_and_the_others_go_on(
    client: OpenAI, folder: Path, name: str, status: int, words: list[str]
) -> None:
    with pytest.raises(APIStatusError) as caught:
        said(client, name)
    message = caught.value.body["message"]  # type: ignore[index]
    assert caught.value.status_code == status and all(word in message for word in words)
    assert "\n" not in message and str(folder) not in message
    assert said(client, OTHER) == expected(folder / OTHER)


def test_a_model_that_doesn_t_fit_the_budget_says_what_would_do(client: OpenAI, folder: Path) -> None:
    shutil.copytree(DEMO_STORE, folder / "large")
    try:
        with pytest.raises(APIStatusError, match=r"large can't be loaded: memory: .* floor of 2 GiB"):
            said(client, "large")
        assert said(client, None)  # the first again
    finally:
        shutil.rmtree(folder / "large")


def test_requests_from_all_sides_are_all_answered(client: OpenAI, folder: Path) -> None:
    first, other = expected(DEMO_STORE), expected(folder / OTHER)
    found: list[tuple[str, str]] = []
    threads = [
        threading.Thread(target=lambda name=name: found.append((name, said(client, name))))
        for name in (NAME, OTHER, NAME, NAME, OTHER, OTHER)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted([(NAME, first), (OTHER, other)] * 3)
