"""A server that really runs, in a thread, on a port of its own; and models that say what a test wants."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from openai import OpenAI
from starlette.applications import Starlette

from smallthinker import LLM
from smallthinker.generation.request import Request
from smallthinker.llm import DEMO_STORE
from smallthinker.server.app import create_app
from smallthinker.server.runner import Server, listen
from smallthinker.server.service import Service
from smallthinker.server.settings import Settings

NAME = "demo"
MEMORY = "8GiB"  # of address space; the demo model takes 30 MiB of it, other tests of the process perhaps the rest
PATIENCE_SEC = 60  # until a test is given up: no result depends on it
# As Qwen's, in short: it knows tools, thoughts, and the switch for them.
THINKING_TEMPLATE = (
    "{% if tools %}TOOLS {{ tools | tojson }}\n{% endif %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>\n{% endfor %}"
    "{% endfor %}assistant:"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n{% endif %}"
)
# As those that open the thought themselves.
OPENED_TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}<think>\n"


@dataclass
class Running:
    """A server and what a test needs of it."""

    url: str
    llm: LLM
    server: Server
    app: Starlette
    requests: list[Request] = field(default_factory=list)

    @property
    def service(self) -> Service:
        service: Service = self.app.state.models.current
        return service

    @property
    def openai(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_SEC)

    @cached_property
    def http(self) -> httpx.Client:
        """One client: each that is made reads the system's certificates first, which takes longer than most answers."""
        return httpx.Client(base_url=self.url, timeout=PATIENCE_SEC)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def stop(self) -> None:
        self.server.should_exit = True


@contextlib.contextmanager
def serving(llm: LLM, settings: Settings | None = None, *, grace_sec: float = 0, **others: Any) -> Iterator[Running]:
    """others: models to be loaded by name, as `create_app` takes them."""
    settings = settings or Settings()
    with listen("127.0.0.1", 0) as sock:
        app = create_app(llm, NAME, settings, **others)
        models = app.state.models
        server = Server(app, settings.limits, models.cancel, grace_sec=grace_sec, access_log=False)
        running = Running(f"http://127.0.0.1:{sock.getsockname()[1]}", llm, server, app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            yield running
        finally:
            running.http.close()
            server.should_exit = True
            thread.join(PATIENCE_SEC)
            assert not thread.is_alive()


def demo_with_template(folder: Path, template: str, specials: Sequence[str] = ()) -> Path:
    """The demo model with another chat template, and special tokens for it beside its own."""
    shutil.copytree(DEMO_STORE, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    if specials:
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        (first,), model = tokenizer["added_tokens"], tokenizer["model"]
        more = [name for name in specials if name != first["content"]]
        gone = sorted(model["vocab"], key=model["vocab"].get)[-len(more) :]  # words that make room for them
        ids = [model["vocab"].pop(word) for word in gone]
        merged = ["".join(m if isinstance(m, list) else m.split(" ")) for m in model["merges"]]
        model["merges"] = [m for m, word in zip(model["merges"], merged, strict=True) if word not in gone]
        added = [first | {"id": id, "content": name} for id, name in zip(ids, more, strict=True)]
        tokenizer["added_tokens"] = [first, *added]
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def eventually(condition: Callable[[], object]) -> None:
    """Wait until it holds: for what has no event of its own. No result depends on how long that takes."""
    while not condition():
        time.sleep(0.001)


def is_idle(running: Running) -> bool:
    """Nobody is connected, nothing runs, nothing waits, nothing is held."""
    now, service, state = running.llm.scheduler.stats(), running.service, running.server.server_state
    return not (now.running or now.waiting or service.bodies.held_bytes or state.tasks or state.connections)


def in_background(call: Any, *args: Any, **kwargs: Any) -> tuple[threading.Thread, list[Any]]:
    """Runs it; the list will have its result, or what it raised."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(call(*args, **kwargs))
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


Process = Callable[[Sequence[int], npt.NDArray[np.float32]], None]


def with_processor(monkeypatch: pytest.MonkeyPatch, running: Running, make: Callable[[], Process]) -> None:
    """Let each answer's logits go through one more processor, after the request's own."""
    submit = running.llm.scheduler.submit

    def submit_with(*args: Any, logits_processor: Process | None = None, **kwargs: Any) -> Request:
        process = make()

        def both(ids: Sequence[int], logits: npt.NDArray[np.float32]) -> None:
            if logits_processor is not None:
                logits_processor(ids, logits)
            process(ids, logits)

        request = submit(*args, logits_processor=both, **kwargs)
        running.requests.append(request)
        return request

    monkeypatch.setattr(running.llm.scheduler, "submit", submit_with)


def say(monkeypatch: pytest.MonkeyPatch, running: Running, text: str, *, special_tokens: bool = False) -> None:
    """From now on the model answers exactly this. special_tokens: names of such in it stand for them."""
    wanted = [*running.llm.tokenize(text, special_tokens=special_tokens), running.llm.config.tokens.eos[0]]

    def make() -> Process:
        def process(ids: Sequence[int], logits: npt.NDArray[np.float32]) -> None:
            token = wanted[min(len(ids), len(wanted) - 1)]
            logits[np.arange(len(logits)) != token] = -np.inf
            logits[token] = 0

        return process

    with_processor(monkeypatch, running, make)


class Gate:
    """Holds answers before each of their tokens from the given one on, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, running: Running, *, first: int = 0) -> None:
        self._open, self._reached = threading.Event(), threading.Event()
        self.cancelled = threading.Event()
        self._running, self.first = running, first
        with_processor(monkeypatch, running, lambda: self._hold)
        cancel = Request.cancel

        def told(request: Request) -> None:
            cancel(request)
            if request in running.requests:
                self.cancelled.set()

        monkeypatch.setattr(Request, "cancel", told)

    def _hold(self, ids: Sequence[int], logits: npt.NDArray[np.float32]) -> None:
        logits[list(self._running.llm.config.tokens.eos)] = -np.inf  # it ends for another reason
        if len(ids) >= self.first:
            self._reached.set()
            assert self._open.wait(PATIENCE_SEC)

    def wait_until_one_is_held(self) -> None:
        assert self._reached.wait(PATIENCE_SEC)

    def wait_until_one_is_cancelled(self) -> None:
        assert self.cancelled.wait(PATIENCE_SEC)

    def open(self) -> None:
        self._open.set()
