"""A chat as someone at a terminal has it: pastes, history, completion, several lines, resuming, another model."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from smallthinker.chat.conversation import HELP

readline = pytest.importorskip("readline", reason="this Python has no readline")
if "libedit" in (readline.__doc__ or ""):
    pytest.skip("libedit pastes line by line", allow_module_level=True)

OPTIONS = ("--memory", "1GiB", "--threads", "1", "--temperature", "0")  # greedy: chance may end an answer at once


class Terminal:
    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self._process, self._master = process, master
        self.seen = ""

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def wait_for(self, pattern: str) -> str:
        """What is shown up to it, from here on; fails where the program ends before."""
        began = len(self.seen)
        while not re.search(pattern, self.seen[began:]):
            ready, _, _ = select.select([self._master], [], [], 120)
            assert ready, f"{pattern} is not in {self.seen[began:]!r}"
            try:
                more = os.read(self._master, 65536)
            except OSError:  # Linux's way to say that the other end is closed
                more = b""
            assert more, f"it ended before {pattern}: {self.seen[began:]!r}"
            self.seen += more.decode(errors="replace")
        return self.seen[began:]

    def leave(self) -> None:
        self.type("/bye\r")
        assert self._process.wait() == 0


@contextmanager
def chat(home: Path, *args: object, columns: int = 80) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    environment = os.environ | {"HOME": str(home), "TERM": "xterm", "COLUMNS": str(columns)}
    for name in ("XDG_STATE_HOME", "XDG_DATA_HOME", "INPUTRC"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "smallthinker", "chat", *map(str, args), *OPTIONS]
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True, cwd=home
    )
    os.close(slave)
    terminal = Terminal(process, master)
    try:
        terminal.wait_for("> $")
        yield terminal
    finally:
        process.kill()
        process.wait()
        os.close(master)


def questions(file: Path) -> list[str]:
    return [message["content"] for message in json.loads(file.read_text()) if message["role"] == "user"]


def test_a_paste_is_one_message_and_so_is_what_stands_between_quotes(hybrid_store: Path, tmp_path: Path) -> None:
    with chat(tmp_path, "-m", hybrid_store, "--max-tokens", "3") as terminal:
        terminal.type("\x1b[200~first line\nsecond line\x1b[201~")
        terminal.type("\r")
        terminal.wait_for(r"cut at max_tokens.*\n[\s\S]*> ")
        terminal.type('"""one\r')
        terminal.wait_for(r"\.\.\. ")
        terminal.type('two"""\r')
        terminal.wait_for(r"cut at max_tokens.*\n[\s\S]*> ")
        terminal.type("/sa\t talk.json\r")  # completed
        terminal.wait_for(r"saved 4 messages[\s\S]*> ")
        terminal.leave()
    assert questions(tmp_path / "talk.json") == ["first line\nsecond line", "one\ntwo"]


def test_the_chat_s_own_lines_break_between_words(hybrid_store: Path, tmp_path: Path) -> None:
    with chat(tmp_path, "-m", hybrid_store, columns=34) as terminal:
        terminal.type("/help\r")
        lines = terminal.wait_for(r"one\s+text\r\n").splitlines()
        assert max(map(len, lines)) <= 34
        assert " ".join(HELP.split()) in " ".join(" ".join(lines).split())
        terminal.type("/set nonsense 1\r")
        lines = terminal.wait_for(r"no\s+such option[\s\S]*> $").splitlines()[1:]
        assert len(lines) > 4 and max(map(len, lines)) <= 34
        terminal.leave()


def test_history_and_the_conversation_outlive_the_session(hybrid_store: Path, tmp_path: Path) -> None:
    with chat(tmp_path, "-m", hybrid_store, "--max-tokens", "2") as terminal:
        terminal.type("a question to remember\r")
        terminal.wait_for(r"cut at[\s\S]*> ")
        terminal.leave()
    kept = [path for path in tmp_path.rglob("*chat*") if path.is_file()]
    assert {path.name for path in kept} == {"chat-history", "last-chat.json"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in kept)
    with chat(tmp_path, "-m", hybrid_store, "--max-tokens", "2", "--resume") as terminal:
        assert "2 messages; the last: " in terminal.seen
        terminal.type("\x1b[A\x1b[A")  # /bye, and the question before it
        terminal.wait_for("a question to remember")
        terminal.type(", again\r")
        terminal.wait_for(r"cut at[\s\S]*> ")
        terminal.type("/save talk.json\r")
        terminal.wait_for(r"saved 4 messages[\s\S]*> ")
        terminal.leave()
    assert questions(tmp_path / "talk.json") == ["a question to remember", "a question to remember, again"]


def test_options_are_set_and_the_model_is_changed_within_a_conversation(hybrid_store: Path, tmp_path: Path) -> None:
    other = shutil.copytree(hybrid_store, tmp_path / "other")
    with chat(tmp_path, "-m", hybrid_store, "--max-tokens", "2") as terminal:
        terminal.type("/set temperature 0.2\r")
        terminal.wait_for(r"temperature is 0\.2")
        terminal.type("/set nonsense 1\r")
        assert "max_tokens" in terminal.wait_for(r"nonsense: no such option.*")
        terminal.type("/set top_p 7\r")
        terminal.wait_for(r"not set: top_p")
        terminal.type("hello\r")
        terminal.wait_for(r"cut at[\s\S]*> ")
        terminal.type("/model nowhere-at-all\r")
        terminal.wait_for(r"nowhere-at-all[\s\S]*> ")
        terminal.type(f"/model {other}\r")
        terminal.wait_for(r"2 messages; the last: [\s\S]*> ")
        terminal.type("/set\r")
        terminal.wait_for(r"temperature 0\.2")
        terminal.leave()


def test_a_conversation_that_was_never_had_is_not_resumed(hybrid_store: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "smallthinker", "chat", "-m", str(hybrid_store), "--resume"]
    environment = os.environ | {"HOME": str(tmp_path), "XDG_STATE_HOME": ""}
    found = subprocess.run(command, input="", capture_output=True, text=True, env=environment)
    assert found.returncode == 2 and len(found.stderr.splitlines()) == 1 and "--resume" in found.stderr
