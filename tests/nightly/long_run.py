"""A server under random load with a fault a minute: what it answers is what a fresh one answered, to the letter.

    python tests/nightly/long_run.py FOLDER --minutes 120

Two models of the models folder are loaded in turn, inside a third of what both take; three clients ask at random for
answers of them, streamed or not, and some leave in the middle. Each minute a fault strikes for some seconds. While
experts' files are damaged an answer may be an error; no answer may be another one. With root and memory cgroups the
server shares a limit with a process that grows, so that the cache shrinks and comes back.

Prints a line a minute, and one line of JSON at the end: answers, errors, faults, latency of the first and last tenth,
memory and threads. Exit code 1 where an answer differs, an error came without a fault, or the server is gone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from shapes import make_shape

from smallthinker.benchmark.cgroup import MemoryGroup, joining, memory_limit
from smallthinker.errors import RequestError

MIB = 1 << 20
MODELS = ("smallthinker", "qwen3_moe")
MEMORY_MIB, BESIDE_MIB = 300, 200  # of the server; and what is in its group beside it
CLIENTS, PROMPTS = 3, 12
FAULT_SEC, FAULT_EVERY_SEC = 12.0, 60.0
HOG = "import sys, time; taken = b'x' * (int(sys.argv[1]) << 20); time.sleep(3600)"


@dataclass
class Seen:
    """What the clients found; of several threads."""

    counts: Counter[str] = field(default_factory=Counter)
    latencies: list[tuple[float, float]] = field(default_factory=list)  # when, seconds a token
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    fault_until: float = 0.0  # an error is allowed

    def note(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1


class Server:
    """`smallthinker serve` in a process of its own."""

    def __init__(self, folder: Path, memory_mib: int, group: MemoryGroup | None, *options: str) -> None:
        command = [sys.executable, "-m", "smallthinker", "serve", str(folder / "models" / MODELS[0]), "--port", "0"]
        command += ["--json", "--memory", f"{memory_mib}MiB", "--context", "512", "--parallel", "2", *options]
        environment = os.environ | {"SMALLTHINKER_MODELS": str(folder / "models")}
        command = joining([group.folder] if group else [], command)
        self._log = (folder / "server.log").open("a")
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment)
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        if not said:
            raise SystemExit(f"the server did not start: {(folder / 'server.log').read_text()[-500:]}")
        self.url, self.pid = json.loads(said)["url"], self._process.pid

    @property
    def is_there(self) -> bool:
        return self._process.poll() is None

    def end(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(60)
        self._log.close()
        return code


def bodies() -> list[dict[str, Any]]:
    """The requests that are made again and again."""
    rng, found = random.Random(1), []
    for i in range(PROMPTS):
        prompt = "".join(rng.choices("abcdefgh ,.", k=rng.randint(1, 300)))
        found.append(
            {"model": MODELS[i % 2], "prompt": prompt, "seed": i, "max_tokens": rng.randint(1, 40), "temperature": 0.8}
        )
    return found


def text_of(client: httpx.Client, body: dict[str, Any], *, streams: bool, leaves_after: int | None) -> str | None:
    """None where the client left. Raises httpx.HTTPError, ValueError with what the server said."""
    if not streams:
        answer = client.post("/v1/completions", json=body)
        if answer.status_code != 200:
            raise ValueError(f"{answer.status_code} {answer.text[:200]}")
        return str(answer.json()["choices"][0]["text"])
    text, events = "", 0
    with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
        if answer.status_code != 200:
            raise ValueError(f"{answer.status_code} {answer.read().decode()[:200]}")
        for line in answer.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise ValueError(f"in a stream: {event['error']}")
            text += event["choices"][0]["text"] if event["choices"] else ""
            events += 1
            if leaves_after is not None and events > leaves_after:
                return None
    return text


def ask(url: str, known: list[tuple[dict[str, Any], str]], seen: Seen, ends_at: float, seed: int) -> None:
    rng, model = random.Random(seed), MODELS[0]
    with httpx.Client(base_url=url, timeout=600) as client:
        while time.monotonic() < ends_at:
            if rng.random() < 0.1:  # mostly the model that is loaded already
                model = rng.choice(MODELS)
            body, expected = rng.choice([one for one in known if one[0]["model"] == model])
            leaves = rng.randint(0, 10) if rng.random() < 0.1 else None
            began = time.monotonic()
            try:
                text = text_of(client, body, streams=leaves is not None or rng.random() < 0.5, leaves_after=leaves)
            except (httpx.HTTPError, ValueError) as error:
                allowed = began < seen.fault_until
                seen.note("errors during a fault" if allowed else "errors")
                if not allowed:
                    seen.wrong.append(f"{error!r}"[:300])
                time.sleep(0.2)
                continue
            now = time.monotonic()
            if text is None:
                seen.note("left")
            elif text == expected:
                seen.note("answers")
                with seen.lock:
                    seen.latencies.append((now, (now - began) / body["max_tokens"]))
            else:
                seen.note("different")
                seen.wrong.append(f"{body['model']}: {expected!r} was {text!r}")
            if rng.random() < 0.2:
                time.sleep(rng.uniform(0, 1))


@contextlib.contextmanager
def damaged(folder: Path, rng: random.Random) -> Iterator[None]:
    """Bits of experts' records are others than they were."""
    path = folder / "models" / rng.choice(MODELS) / "experts.safetensors"
    size, kept = path.stat().st_size, []
    with path.open("r+b", buffering=0) as file:
        for _ in range(40):
            at = rng.randrange(size // 4, size)
            file.seek(at)
            old = file.read(1)
            kept.append((at, old))
            file.seek(at)
            file.write(bytes([old[0] ^ 1 << rng.randrange(8)]))
        os.fsync(file.fileno())
        try:
            yield
        finally:
            for at, old in reversed(kept):
                file.seek(at)
                file.write(old)
            os.fsync(file.fileno())


@contextlib.contextmanager
def stopped(server: Server) -> Iterator[None]:
    os.kill(server.pid, signal.SIGSTOP)
    time.sleep(3)
    os.kill(server.pid, signal.SIGCONT)
    yield


@contextlib.contextmanager
def hog(group: MemoryGroup, mib: int) -> Iterator[None]:
    process = subprocess.Popen(joining([group.folder], [sys.executable, "-c", HOG, str(mib)]))
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def idle_connections(url: str) -> Iterator[None]:
    import socket

    host, port = url.removeprefix("http://").split(":")
    with contextlib.ExitStack() as opened:
        for _ in range(480):
            with contextlib.suppress(OSError):
                opened.enter_context(socket.create_connection((host, int(port)), timeout=5))
        yield


@contextlib.contextmanager
def cold() -> Iterator[None]:
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3")
    yield


def main() -> None:
    parser = argparse.ArgumentParser(description="A server under load, with a fault a minute.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder: Path = args.folder
    for name in MODELS:
        make_shape(name, folder / "models")
    fresh = Server(folder, 1024, None)
    with httpx.Client(base_url=fresh.url, timeout=600) as client:
        known = [(body, str(text_of(client, body, streams=False, leaves_after=None))) for body in bodies()]
    assert fresh.end() in (0, 130, 143)
    seen = Seen()
    with contextlib.ExitStack() as stack:
        group = None
        with contextlib.suppress(RequestError):
            group = stack.enter_context(memory_limit((MEMORY_MIB + BESIDE_MIB) * MIB))
        server = Server(folder, MEMORY_MIB, group, "--verify", "always")
        print(json.dumps(run(args, folder, server, group, known, seen)))
    for line in seen.wrong[:20]:
        print(line)
    sys.exit(bool(seen.wrong))


def run(
    args: argparse.Namespace,
    folder: Path,
    server: Server,
    group: MemoryGroup | None,
    known: list[tuple[dict[str, Any], str]],
    seen: Seen,
) -> dict[str, Any]:
    rng, began = random.Random(args.seed), time.monotonic()
    faults: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
        "damaged files": lambda: damaged(folder, rng),
        "stopped": lambda: stopped(server),
        "idle connections": lambda: idle_connections(server.url),
        "cold": cold,
    }
    if group is not None:
        shared = group
        faults["another takes memory"] = lambda: hog(shared, rng.randint(BESIDE_MIB // 2, BESIDE_MIB + 60))
    ends_at = began + 60 * args.minutes
    asking = [
        threading.Thread(target=ask, args=(server.url, known, seen, ends_at, args.seed * 100 + i))
        for i in range(CLIENTS)
    ]
    for thread in asking:
        thread.start()
    struck: Counter[str] = Counter()
    held: list[tuple[float, int]] = []
    process = psutil.Process(server.pid)
    while time.monotonic() + FAULT_EVERY_SEC <= ends_at and server.is_there:
        time.sleep(FAULT_EVERY_SEC / 2)
        name = rng.choice([*faults])
        struck[name] += 1
        allows_errors = name in ("damaged files", "idle connections")
        if allows_errors:
            seen.fault_until = float("inf")
        with faults[name]():
            time.sleep(FAULT_SEC)
        if allows_errors:
            seen.fault_until = time.monotonic() + 1
        time.sleep(FAULT_EVERY_SEC / 2 - FAULT_SEC)
        held.append((round(process.memory_info().rss / MIB, 1), process.num_threads()))
        print(f"{(time.monotonic() - began) / 60:.0f} min, {name}: {dict(seen.counts)}, {held[-1]}", flush=True)
    for thread in asking:
        thread.join()
    if not server.is_there:
        seen.wrong.append("the server is gone")
    spans = [sec for _, sec in sorted(seen.latencies)]
    tenth = max(len(spans) // 10, 1)

    def median(values: list[float]) -> float:
        return round(1e3 * sorted(values)[len(values) // 2], 1) if values else 0.0

    return {
        "minutes": round((time.monotonic() - began) / 60, 1),
        "counts": dict(seen.counts),
        "faults": dict(struck),
        "ms_per_token_first_tenth": median(spans[:tenth]),
        "ms_per_token_last_tenth": median(spans[-tenth:]),
        "rss_mib_and_threads": [held[0], held[-1]] if held else [],
        "most_rss_mib": max((mib for mib, _ in held), default=0),
        "peak_of_the_group_mib": None if group is None else round(group.peak_bytes() / MIB),
        "exit": server.end() if server.is_there else None,
    }


if __name__ == "__main__":
    main()
