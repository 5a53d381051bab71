"""The command as a user meets it, and the examples of its documentation."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from forked_command import smallthinker
from running import PATIENCE_SEC, Running

COMMAND = [sys.executable, "-m", "smallthinker", "serve"]
DOCS = Path(__file__).parents[2] / "docs" / "server.md"
EXAMPLES = re.findall(r"^```bash\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)


@contextlib.contextmanager
def served(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", "--json", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr else ""
        yield process, json.loads(line)["url"]
    finally:
        process.kill()
        process.wait()


def wait_until_refused(url: str) -> None:
    """Until the first signal has been seen: two at once are one. Who connects as the listener closes is reset."""
    at = httpx.URL(url)
    with contextlib.suppress(ConnectionError):
        while True:
            socket.create_connection((at.host, at.port or 0)).close()


def refused(*options: str, env: dict[str, str] | None = None) -> str:
    """The one line of an error."""
    done = smallthinker("serve", *options, env=os.environ | (env or {}))
    assert done.returncode == 2 and done.stdout == "", done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_the_log_has_a_line_for_each_request_whatever_its_path_says() -> None:
    with served("--access-log", "--name", "a\x1b[31m\nb") as (process, url):
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "a\\x1b[31m\\nb"
        for path in (b"/%0aINFO:%1b[31m", b"/\xe2\x80\xae\x9b", b"/" + b"x" * 3000):
            with socket.create_connection((httpx.URL(url).host, httpx.URL(url).port or 0)) as client:
                client.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                while client.recv(4096):
                    pass
        process.terminate()
        out, err = process.communicate(timeout=PATIENCE_SEC)
    lines = [line for line in (out + err).splitlines() if '"GET ' in line]
    assert 2 <= len(lines) <= 4
    assert all(line.isprintable() and line.startswith("INFO: ") for line in lines)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_quietly(number: signal.Signals) -> None:
    with served("--memory", "400MiB") as (process, url):
        assert httpx.get(f"{url}/health").status_code == 200
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE_SEC)
        assert (process.returncode, errors) == (0, "")


def test_a_second_interrupt_waits_for_nothing() -> None:
    with served("--grace", "100000") as (process, url):
        body = {"prompt": "x", "max_tokens": 10**6, "stream": True, "logit_bias": {"0": -100}, "n": 16}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=PATIENCE_SEC) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(httpx.HTTPError):
                wait_until_refused(url)
                process.send_signal(signal.SIGINT)
                for _ in lines:
                    pass
        _, errors = process.communicate(timeout=PATIENCE_SEC)
        assert (process.returncode, errors) == (0, "")


def test_a_port_that_is_taken_is_told_in_one_line_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port: another program listens on 127.0.0.1:{port}" in refused("--port", str(port))


def test_what_cannot_be_is_told_in_one_line(tmp_path: Path) -> None:
    no_key = {"SMALLTHINKER_API_KEY": ""}
    assert "SMALLTHINKER_API_KEY" in refused("--host", "0.0.0.0", "--port", "0")
    assert "--api-key" in refused("--host", "0.0.0.0", "--port", "0", env=no_key)
    assert "cannot listen" in refused("--port", "99999999")
    assert "cannot listen" in refused("--host", "256.0.0.1", "--port", "0", "--api-key", "k")
    assert "no/such/store" in refused("no/such/store", "--port", "0")
    assert "expected one model, found" in refused("a", "--model", "b")
    assert "give either" in refused("--api-key", "k", "--api-key-file", "f")
    empty = tmp_path / "key"
    empty.write_text("\n")
    assert "empty file" in refused("--api-key-file", str(empty))
    assert str(tmp_path / "none") in refused("--api-key-file", str(tmp_path / "none"))
    assert "--parallel" in refused("--parallel", "0", "--port", "0")


def test_the_key_is_taken_from_a_file(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("from-a-file\n")
    with served("--api-key-file", str(key), "--name", "mine") as (_, url):
        assert httpx.get(f"{url}/v1/models").status_code == 401
        models = httpx.get(f"{url}/v1/models", headers={"authorization": "Bearer from-a-file"}).json()
        assert models["data"][0]["id"] == "mine"


def test_a_conversation_goes_on_after_a_restart(tmp_path: Path) -> None:
    body = {"prompt": "Once upon a time there was a sea of many ships, and " * 4, "max_tokens": 4, "temperature": 0}
    answers = []
    for _ in range(2):
        with served("--kv-dir", str(tmp_path / "kv"), "--kv-dir-size", "64MiB") as (process, url):
            answers.append(httpx.post(f"{url}/v1/completions", json=body, timeout=PATIENCE_SEC).json())
            process.terminate()
            assert process.wait(PATIENCE_SEC) == 0
    first, second = answers
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == second["usage"]["prompt_tokens"] - 1
    assert first["choices"][0]["text"] == second["choices"][0]["text"]


def test_it_needs_its_extra_and_says_so() -> None:
    code = (
        "import sys; sys.modules['uvicorn'] = None; from smallthinker.__main__ import main; sys.exit(main(['serve']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "pip install 'smallthinker[serve]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_engine_knows_nothing_of_the_server() -> None:
    code = (
        "import sys; from smallthinker import LLM; LLM(memory='4GiB').generate('x', max_tokens=1);"
        "sys.exit(any(name in sys.modules for name in ('starlette', 'uvicorn', 'pydantic', 'llguidance')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("example", EXAMPLES)
def test_the_documentation_s_examples_work(server: Running, example: str) -> None:
    script = example.replace("http://127.0.0.1:8080", server.url).replace("curl ", "curl -sS --fail-with-body ")
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout
    if "schema" in example:
        content = json.loads(json.loads(done.stdout)["choices"][0]["message"]["content"])
        assert set(content) == {"calm"}
    if "tool_choice" in example:
        call = json.loads(done.stdout)["choices"][0]["message"]["tool_calls"][0]["function"]
        assert call["name"] == "weather" and json.loads(call["arguments"])["city"] in ("Riga", "Tallinn")
    if "include_usage" in example:
        assert '"usage":{' in done.stdout and done.stdout.endswith("data: [DONE]\n\n")


def test_the_documentation_has_an_example_of_each_endpoint() -> None:
    text = "".join(EXAMPLES)
    for path in ("chat/completions", "v1/completions", "responses", "tokenize", "models", "health", "metrics", "stats"):
        assert f"/{path}" in text
