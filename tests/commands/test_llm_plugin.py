"""The `llm` command with this package's plugin: a process of its own, as a user has it, and its Python interface."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forked_command import run_module

pytest.importorskip("llm", reason="needs smallthinker[llm]")

from smallthinker.library import Library
from smallthinker.llm import DEMO_STORE, LLM

GREEDY = ("-o", "temperature", "0", "-o", "max_tokens", "12", "-o", "memory", "4GiB")


@pytest.fixture
def user(tmp_path: Path) -> dict[str, str]:
    """The environment of a user of `llm` with nothing in it yet."""
    return os.environ | {"LLM_USER_PATH": str(tmp_path / "llm"), "SMALLTHINKER_MODELS": ""}


def run(user: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    return run_module("llm", *args, env=user)


def answers(*turns: str) -> list[str]:
    """What the demo model says to each turn of a chat."""
    messages: list[Any] = []
    with LLM(memory="4GiB") as model:
        for turn in turns:
            messages.append({"role": "user", "content": turn})
            text = model.generate(messages, temperature=0, max_tokens=12).text
            messages.append({"role": "assistant", "content": text})
    return [message["content"] for message in messages[1::2]]


def test_llm_answers_with_the_demo_model_and_goes_on_with_the_conversation(
    user: dict[str, str],
) -> None:
    first, second = answers("Who is there?", "And who else?")
    result = run(user, "-m", "smallthinker/demo", *GREEDY, "Who is there?")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == first.strip()
    assert run(user, "-c", *GREEDY, "And who else?").stdout.strip() == second.strip()
    log = json.loads(run(user, "logs", "--json", "-n", "2").stdout)
    assert [entry["output_tokens"] for entry in log] == [12, 12]
    assert log[1]["input_tokens"] > log[0]["input_tokens"] > 0
    assert all(entry["response_json"]["finish_reason"] == "length" for entry in log)


def test_stores_are_named_after_their_folders(user: dict[str, str], tmp_path: Path) -> None:
    user["SMALLTHINKER_MODELS"] = str(tmp_path / "models")
    for place in (tmp_path / "models" / "one", tmp_path / "models" / "deep" / "three"):
        shutil.copytree(DEMO_STORE, place)
    (tmp_path / "models" / "no store").mkdir()
    Library(tmp_path / "models").set_alias("two", "one")
    listed = run(user, "models", "--options", "-q", "smallthinker").stdout
    names = [line.split(": ")[1].split(" (")[0] for line in listed.splitlines() if "smallthinker/" in line]
    assert sorted(names) == [f"smallthinker/{name}" for name in ("demo", "one", "three")]
    assert "aliases: smallthinker/two" in listed
    assert "temperature: float" in listed and "memory: str" in listed
    result = run(user, "-m", "smallthinker/three", *GREEDY, "Who is there?")
    assert result.stdout.strip() == answers("Who is there?")[0].strip()


def test_what_is_wrong_is_one_line(user: dict[str, str], tmp_path: Path, hybrid_store: Path) -> None:
    def error(model: str, *options: str) -> str:
        result = run(user, "-m", model, *options, "x")
        assert result.returncode == 1 and result.stdout.strip() == ""
        (line,) = result.stderr.splitlines()
        return line

    assert "memory: 1 MiB is below the floor" in error("smallthinker/demo", "-o", "memory", "1MiB")
    assert "temperature: expected a number of 0 or more" in error("smallthinker/demo", "-o", "temperature", "-1")
    user["SMALLTHINKER_MODELS"] = str(tmp_path / "models")
    store = Path(shutil.copytree(hybrid_store, tmp_path / "models" / "store"))
    for name in ("tokenizer_config.json", "manifest.json"):
        (store / name).unlink(missing_ok=True)
    assert "chat needs the model's chat_template" in error("smallthinker/store")


def test_the_python_interface_streams_in_threads_and_in_an_event_loop() -> None:
    (expected,) = answers("Who is there?")
    options = {"temperature": 0, "max_tokens": 12, "memory": "4GiB"}
    from smallthinker.llm_plugin import AsyncStoreModel, SharedLLM, StoreModel

    shared = SharedLLM(None)
    try:
        pieces = list(StoreModel("demo", shared).prompt("Who is there?", **options))
        assert "".join(pieces) == expected and len(pieces) > 1

        async def ask() -> tuple[str, int]:
            response = AsyncStoreModel("demo", shared).prompt("Who is there?", **options)
            text = "".join([piece async for piece in response])
            return text, (await response.usage()).output

        assert asyncio.run(ask()) == (expected, 12)
    finally:
        shared.close()


def test_the_plugin_loads_without_the_engine() -> None:
    engine = ("tokenizers", "smallthinker.llm", "smallthinker._kernels")
    program = f"import sys, smallthinker.llm_plugin; print([m for m in {engine} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
