"""`serve --cluster` on a Ray that is really there: answers of a single server, and what a replica's end changes."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest

OPTIONS = ["--threads", "1", "--memory", "400MiB", "--parallel", "3", "--only", "--port", "0", "--json"]
PATIENCE_SEC = 120  # until the test is given up


@contextlib.contextmanager
def served(*options: str) -> Iterator[tuple[psutil.Process, httpx.Client, dict[str, Any]]]:
    command = [sys.executable, "-m", "smallthinker", "serve", "demo", *OPTIONS, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        facts = json.loads(line)
        with httpx.Client(base_url=facts["url"], timeout=PATIENCE_SEC) as client:
            yield psutil.Process(process.pid), client, facts
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE_SEC)
        assert process.returncode == 0 and out == "", (out, err)
    finally:
        process.kill()
        process.wait()


def completion(client: httpx.Client, prompt: str, tokens: int, **more: Any) -> dict[str, Any]:
    body = {"prompt": prompt, "max_tokens": tokens, "seed": 3, **more}
    found = client.post("/v1/completions", json=body)
    assert found.status_code == 200, found.text
    answer: dict[str, Any] = found.json()
    return answer


def text(answer: dict[str, Any]) -> str:
    found: str = answer["choices"][0]["text"]
    return found


def cached(answer: dict[str, Any]) -> int:
    tokens: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return tokens


def replicas_of(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children(recursive=True) if "ServeReplica" in " ".join(child.cmdline())]


@pytest.mark.slow
def test_two_replicas_answer_as_one_server_also_when_one_of_them_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed: smallthinker[ray]")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # or a busy machine needs minutes to start one
    prompts = [f"In the {name} year of the war" for name in ("first", "second", "third", "fourth")]
    with served() as (_, single, _):
        expected, continued = list[dict[str, Any]](), list[dict[str, Any]]()
        for prompt in prompts:
            expected.append(completion(single, prompt, 200))
            continued.append(completion(single, prompt + text(expected[-1]), 5))
        assert all(cached(answer) > 30 for answer in continued)
        long = [text(completion(single, prompt, 900)) for prompt in prompts]
    with served("--cluster", "local", "--replicas", "2") as (process, client, facts):
        assert facts["replicas"] == 2 and len(replicas_of(process)) == 2
        assert client.get("/health").json() == {"status": "ok"}
        first = [completion(client, p, 200, prompt_cache_key=p) for p in prompts]
        assert [a["choices"] for a in first] == [a["choices"] for a in expected]
        with client.stream("POST", "/v1/completions", json={"prompt": prompts[0], "max_tokens": 40, "seed": 3,
                                                            "stream": True}) as stream:  # fmt: skip
            events = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
        assert events[-1] == "[DONE]" and len(events) > 20
        assert text(expected[0]).startswith("".join(text(json.loads(event)) for event in events[:-1]))

        told = [prompt + text(answer) for prompt, answer in zip(prompts, first, strict=True)]
        second = [completion(client, t, 5, prompt_cache_key=p) for t, p in zip(told, prompts, strict=True)]
        # each came back to the replica that holds it; one alone holds three
        assert [(text(a), cached(a)) for a in second] == [(text(a), cached(a)) for a in continued]

        with ThreadPoolExecutor(4) as threads:
            under_way = [threads.submit(completion, client, p, 900, prompt_cache_key=p) for p in prompts]
            replicas_of(process)[0].kill()
            assert [text(answer.result()) for answer in under_way] == long
        again = [completion(client, t, 5, prompt_cache_key=p) for t, p in zip(told, prompts, strict=True)]
        assert [text(answer) for answer in again] == [text(answer) for answer in second]
