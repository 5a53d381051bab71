from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from openai import OpenAI
from running import MEMORY, OPENED_TEMPLATE, THINKING_TEMPLATE, Gate, Running, demo_with_template, serving
from tabs import Tab, serving_process

from smallthinker import LLM

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def demo() -> Iterator[LLM]:
    with LLM(memory=MEMORY, threads=1, sequences=2) as llm:
        yield llm


@pytest.fixture(scope="session")
def server(demo: LLM) -> Iterator[Running]:
    with serving(demo) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: Running) -> OpenAI:
    return server.openai


@pytest.fixture(scope="session")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    store = demo_with_template(tmp_path_factory.mktemp("thinker") / "store", THINKING_TEMPLATE)
    with LLM(store, memory=MEMORY, threads=1) as llm, serving(llm) as running:
        yield running


@pytest.fixture(scope="session")
def opened_thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    store = demo_with_template(tmp_path_factory.mktemp("opened") / "store", OPENED_TEMPLATE)
    with LLM(store, memory=MEMORY, threads=1) as llm, serving(llm) as running:
        yield running


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch, server: Running) -> Iterator[Gate]:
    server.requests.clear()
    gate = Gate(monkeypatch, server)
    yield gate
    gate.open()
    for request in server.requests:
        request.cancel()
        request.result()


@pytest.fixture
def held(browser: Browser, server: Running, gate: Gate) -> Iterator[tuple[Tab, Gate]]:
    """A tab whose answers stop half-way until the gate is opened: whoever looks at what is being written need not hope
    to be in time."""
    gate.first = 30
    opened = Tab(browser, server.url)
    yield opened, gate
    gate.open()
    opened.settle()


@pytest.fixture(scope="module")
def page_url() -> Iterator[str]:
    """The chat page of a server as a user starts it."""
    with serving_process() as url:
        yield url


@pytest.fixture
def tab(browser: Browser, page_url: str) -> Iterator[Tab]:
    opened = Tab(browser, page_url)
    yield opened
    opened.settle()
