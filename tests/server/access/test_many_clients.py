"""Twenty clients at once that connect, stream, vanish half-way and send garbage: nothing breaks, nothing is left
behind, and nobody gets a token of another's conversation.

The short variant is counted in requests; the slow one goes on for two minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from running import PATIENCE_SEC

CLIENTS, PARALLEL, QUEUE = 20, 3, 16
MEMORY_MIB = 400
SOAK_SEC = 120


@contextlib.contextmanager
def served() -> Iterator[str]:
    command = [sys.executable, "-m", "smallthinker", "serve", "--port", "0", "--json", "--memory", f"{MEMORY_MIB}MiB"]
    command += ["--parallel", str(PARALLEL), "--queue", str(QUEUE)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
        process.terminate()
        _, errors = process.communicate(timeout=PATIENCE_SEC)
        assert process.returncode == 0
        assert set(errors.splitlines()) <= {"WARNING:  Invalid HTTP request received."}
    finally:
        process.kill()
        process.wait()


def prompt_of(client: int, turn: int) -> list[dict[str, str]]:
    """Every client has a story of its own, and asks on."""
    names = ("Anna", "Boris", "Clara", "David", "Emma")
    story = f"Tell me of {names[client % 5]} and the {client} ships, at some length."
    asked = [{"role": "user", "content": story}]
    for i in range(turn):
        asked.append({"role": "assistant", "content": f"There were {i} of them."})
        asked.append({"role": "user", "content": "And then?"})
    return asked


def body_of(client: int, turn: int, **more: Any) -> dict[str, Any]:
    return {"messages": prompt_of(client, turn), "temperature": 0, "max_tokens": 24 + 4 * turn, **more}


class Client:
    """One of the twenty. `said` has what it was told for each of its prompts."""

    def __init__(self, url: str, number: int, said: dict[tuple[int, int], set[str]], counts: Counter[str]) -> None:
        self._url, self._number, self._said, self._counts = url, number, said, counts
        self._random = random.Random(number)

    async def live(self, goes_on: Callable[[int], bool]) -> None:
        acts = [self.ask, self.ask, self.stream, self.stream, self.vanish, self.vanish_early, self.garbage, self.look]
        async with httpx.AsyncClient(base_url=self._url, timeout=PATIENCE_SEC) as http:
            done = 0
            while goes_on(done):
                await self._random.choice(acts)(http)
                done += 1

    async def ask(self, http: httpx.AsyncClient) -> None:
        turn = self._random.randrange(3)
        response = await http.post("/v1/chat/completions", json=body_of(self._number, turn))
        if self._was_served(response):
            self._heard(turn, response.json()["choices"][0]["message"]["content"])

    async def stream(self, http: httpx.AsyncClient) -> None:
        turn = self._random.randrange(3)
        body = body_of(self._number, turn, stream=True)
        async with http.stream("POST", "/v1/chat/completions", json=body) as response:
            if not self._was_served(response):
                return
            events = [line[6:] async for line in response.aiter_lines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]", events[-1]
        deltas = [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events[:-1]]
        self._heard(turn, "".join(deltas))

    async def vanish(self, http: httpx.AsyncClient) -> None:
        body = body_of(self._number, 0, stream=True) | {"max_tokens": 900}
        async with http.stream("POST", "/v1/chat/completions", json=body) as response:
            if self._was_served(response):
                lines = response.aiter_lines()
                for _ in range(self._random.randrange(1, 12)):
                    await anext(lines, None)
        self._counts["vanished"] += 1

    async def vanish_early(self, http: httpx.AsyncClient) -> None:
        """While it waits, or its prompt is computed."""
        asking = asyncio.create_task(http.post("/v1/chat/completions", json=body_of(self._number, 2)))
        for _ in range(self._random.randrange(1, 20)):
            await asyncio.sleep(0)
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
        self._counts["vanished"] += 1

    async def garbage(self, http: httpx.AsyncClient) -> None:
        junk = self._random.randbytes(self._random.randrange(200))
        response = await http.post("/v1/chat/completions", content=junk)
        assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"
        await asyncio.to_thread(self._send_raw, junk)
        self._counts["garbage"] += 1

    def _send_raw(self, junk: bytes) -> None:
        at = httpx.URL(self._url)
        with socket.create_connection((at.host, at.port or 0)) as connection, contextlib.suppress(OSError):
            connection.sendall(junk)

    async def look(self, http: httpx.AsyncClient) -> None:
        for path in ("/health", "/metrics", "/api/stats", "/v1/models"):
            assert (await http.get(path)).status_code == 200

    def _was_served(self, response: httpx.Response) -> bool:
        assert response.status_code in (200, 429), response.status_code
        if response.status_code == 429:
            assert int(response.headers["retry-after"]) >= 1
        self._counts[str(response.status_code)] += 1
        return response.status_code == 200

    def _heard(self, turn: int, text: str) -> None:
        self._said.setdefault((self._number, turn), set()).add(text)


def figures(url: str) -> dict[str, float]:
    text = httpx.get(f"{url}/metrics").text
    return {name: float(value) for name, value in re.findall(r"^smallthinker_(\w+) ([^ ]+)$", text, re.MULTILINE)}


def let_them_loose(url: str, goes_on: Callable[[int], bool]) -> Counter[str]:
    said: dict[tuple[int, int], set[str]] = {}
    counts: Counter[str] = Counter()

    async def everyone() -> None:
        await asyncio.gather(*(Client(url, number, said, counts).live(goes_on) for number in range(CLIENTS)))

    asyncio.run(everyone())
    while (now := figures(url))["requests_running"] or now["requests_waiting"]:
        pass  # those that were left alone end by themselves, or the test would never end
    for (number, turn), texts in said.items():
        alone = httpx.post(f"{url}/v1/chat/completions", json=body_of(number, turn), timeout=PATIENCE_SEC).json()
        assert texts == {alone["choices"][0]["message"]["content"]}, (number, turn)
    assert len(said) >= CLIENTS
    return counts


def test_twenty_clients_at_random_break_nothing() -> None:
    with served() as url:
        counts = let_them_loose(url, lambda done: done < 5)
        assert min(counts["200"], counts["vanished"], counts["garbage"]) > 0
        assert figures(url)["memory_bytes"] < MEMORY_MIB * 2**20


@pytest.mark.slow
def test_twenty_clients_for_two_minutes_break_nothing() -> None:
    with served() as url:
        let_them_loose(url, lambda done: done < 4)
        settled = figures(url)["memory_bytes"]
        end = time.monotonic() + SOAK_SEC
        counts = let_them_loose(url, lambda _: time.monotonic() < end)
        assert min(counts["200"], counts["429"], counts["vanished"], counts["garbage"]) > 50, counts
        after = figures(url)
        assert after["memory_bytes"] < MEMORY_MIB * 2**20
        assert after["memory_bytes"] < settled + 16 * 2**20  # nothing is kept of the thousands that came
        assert after["kv_bytes"] <= after["kv_planned_bytes"]
