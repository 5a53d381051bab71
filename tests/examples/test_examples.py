"""Each example, run as a process of its own, the way that docs/embedding.md writes it."""

from __future__ import annotations

import http.client
import json
import subprocess
from pathlib import Path

import pytest
from processes import LIMIT_SEC, User, free_port, post

from smallthinker.llm import LLM

QUESTION = "What did the captain see?"
HERE = "4GiB"  # for an engine in this process, in which what other tests have left counts


def test_the_tk_window_answers_stops_and_closes_while_it_writes(user: User, screen: None) -> None:
    driver = str(Path(__file__).with_name("drive_tk_chat.py"))
    loading, first, ended, second, stopped = json.loads(user.run("python", driver))
    assert loading == "Loading ..."
    assert first.startswith("Who is there?\n") and len(first) > 40
    assert ended.endswith((" tokens, length", " tokens, stop"))
    assert second.startswith(first.rstrip()) and "And who else?\n" in second
    assert stopped.endswith(" tokens, cancelled")


def test_the_fastapi_route_streams_and_a_client_that_leaves_costs_nothing(user: User) -> None:
    pytest.importorskip("fastapi", reason="needs smallthinker[examples]")
    port = free_port()
    command = ("uvicorn", "--app-dir", "examples", "fastapi_route:app", "--port", str(port))
    with user.running(*command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "running on" in line:
                break
        url = f"http://127.0.0.1:{port}"
        body = {"text": "Who is there?", "max_tokens": 20, "temperature": 0}
        status, whole = post(f"{url}/ask", body)
        assert status == 200
        with LLM(memory=HERE) as llm:
            expected = llm.generate([{"role": "user", "content": "Who is there?"}], max_tokens=20, temperature=0)
        answer = json.loads(whole)
        assert answer == {"text": expected.text, "tokens": 20, "finish_reason": "length"}
        for _ in range(4):  # more than there are sequences
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_SEC)
            endless = body | {"max_tokens": 900, "temperature": 0.8}
            connection.request("POST", "/stream", json.dumps(endless), {"Content-Type": "application/json"})
            assert connection.getresponse().read(1)
            connection.close()
        assert post(f"{url}/stream", body) == (200, expected.text)
        status, error = post(f"{url}/stream", body | {"text": "the sea " * 499, "max_tokens": 1000})
        assert status == 400 and "context" in json.loads(error)["detail"]


def test_the_summariser_goes_through_every_text_of_any_length(user: User) -> None:
    command = ("python", "examples/summarise_folder.py", "letters", "--memory", "1GiB", "--max-tokens", "30")
    lines = user.run(*command).splitlines()
    headings = [line for line in lines if line.startswith("## ")]
    assert headings == ["## long.md", "## short.txt"]
    assert all(any(lines[i + 1 : i + 4]) for i, line in enumerate(lines) if line.startswith("## "))
    assert lines == user.run(*command).splitlines()  # greedy


def test_the_openai_package_gets_the_same_answer_whole_and_streamed(user: User, server_url: str) -> None:
    pytest.importorskip("openai", reason="needs smallthinker[examples]")
    printed = user.run("python", "examples/openai_client.py", server_url)
    with LLM(memory=HERE) as llm:
        text = llm.generate([{"role": "user", "content": QUESTION}], max_tokens=40, temperature=0).text
    assert printed == f"{text}\n(40 tokens, length)\n{text}\n"


def test_a_langchain_chain_gets_the_same_answer_whole_and_streamed(user: User, server_url: str) -> None:
    pytest.importorskip("langchain_openai", reason="needs smallthinker[examples]")
    printed = user.run("python", "examples/langchain_client.py", server_url)
    system = {"role": "system", "content": "You tell of the sea."}
    with LLM(memory=HERE) as llm:
        text = llm.generate([system, {"role": "user", "content": QUESTION}], max_tokens=40, temperature=0).text
    assert printed == f"{text}\n{text}\n"
