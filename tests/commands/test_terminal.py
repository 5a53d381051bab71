"""The command's streams: any bytes come in, nothing that goes out steers a terminal, and faults are one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import CONTROL, Terminal, assert_one_line, in_process, streams

from smallthinker.cli import main
from smallthinker.commands import COMMANDS
from smallthinker.errors import MAX_MESSAGE_CHARACTERS, RequestError, SmallThinkerError, one_line, shown
from smallthinker.llm import LLM, Message
from smallthinker.terminal import visible

NAMES = [module.__name__.rpartition(".")[2].replace("_", "-") for module in COMMANDS]
COMMAND = f"{sys.executable} -m smallthinker"


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A command as a shell has it: with its redirections."""
    return subprocess.run(["sh", "-c", line], capture_output=True, check=False, env=os.environ | environment)


# The streams themselves


def test_help_comes_in_any_locale() -> None:
    for name in NAMES:
        code, out, err = in_process(name, "--help", encoding="ascii")
        assert (code, err) == (0, "")
        assert "example:" in out


def test_output_that_cannot_be_written_is_one_line_and_a_failure() -> None:
    for command, where, why in (
        ("plan --help", ">/dev/full", "No space left"),
        ("run --max-tokens 2 Once", ">/dev/full", "No space left"),
        ("inspect --json", ">&-", "Bad file descriptor"),
    ):
        done = shell(f"{COMMAND} {command} {where}")
        assert done.returncode == 2
        assert_one_line(done.stderr.decode())
        assert f"standard output: cannot be written: {why}" in done.stderr.decode()


def test_a_reader_that_has_enough_is_no_fault() -> None:
    done = shell(f"{COMMAND} run --max-tokens 99 --ignore-eos Once | true")
    assert (done.returncode, done.stderr) == (0, b"")


def test_figures_and_errors_that_nobody_wants_go_nowhere_else() -> None:
    done = shell(f"{COMMAND} run --seed 1 --max-tokens 2 Once 2>&-")
    assert done.returncode == 0
    assert b"TTFT" not in done.stdout
    assert shell(f"{COMMAND} run --seed 1 --max-tokens 2 Once 2>/dev/full").stdout == done.stdout


def test_input_that_is_closed_is_one_line() -> None:
    for command in ("run -", "chat"):
        done = shell(f"{COMMAND} {command} <&-")
        assert done.returncode == 2
        assert_one_line(done.stderr.decode())
        assert b"standard input" in done.stderr
    assert shell(f"{COMMAND} inspect <&- 2>&-").returncode == 0


def test_an_address_space_that_is_too_small_is_one_line() -> None:
    for kib in (120_000, 145_000, 170_000):
        done = shell(f"ulimit -v {kib}; {COMMAND} run --max-tokens 2 Once")
        assert done.returncode in (0, 2), done.stderr
        if done.returncode == 2:
            assert_one_line(done.stderr.decode())


def test_what_the_encoding_lacks_is_escaped() -> None:
    assert in_process("inspect", "/nowhere/é\udcff", encoding="ascii")[2].count(r"\xe9\udcff") == 1
    posix = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = shell(f"{COMMAND} run --seed 1 --max-tokens 2 café", **posix)
    assert done.returncode == 0, done.stderr
    assert shell(f"printf café | {COMMAND} run --seed 1 --max-tokens 2 -", **posix).stdout == done.stdout


# What comes in


@pytest.fixture(scope="module")
def demo() -> Iterator[LLM]:
    with LLM() as llm:
        yield llm


def is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


@given(data=st.binary(min_size=1, max_size=20).filter(lambda data: data.strip() and b"\0" not in data))
@settings(max_examples=12)
def test_any_bytes_are_a_prompt_or_one_line(data: bytes) -> None:
    options = ("--seed", "1", "--max-tokens", "1")
    for code, out, err in (
        in_process("run", *options, "--", os.fsdecode(data)) if data != b"-" else (2, "", "error: \n"),
        in_process("run", *options, "-", stdin=data),
        in_process("run", *options, "--stop", os.fsdecode(b"=" + data), "Once"),
    ):
        assert code == (0 if is_utf8(data) else 2) or (data == b"-" and code == 2), err
        if code:
            assert out == ""
            assert_one_line(err)


def test_a_chat_from_a_pipe_ends_at_a_line_that_is_no_text() -> None:
    code, _, err = in_process("chat", "--max-tokens", "3", stdin=b"/help\na\xff\nOnce\n/quit\n")
    assert code == 2
    assert_one_line(err)
    assert "\\udcff" in err
    code, _, err = in_process("chat", "--system", "a\udcff")
    assert code == 2
    assert_one_line(err)


ASKED: list[Message] = [{"role": "user", "content": "x"}]


@given(text=st.text(min_size=1, max_size=20), lone=st.characters(categories=["Cs"]))
@settings(max_examples=30)
def test_half_a_surrogate_pair_is_no_text(demo: LLM, text: str, lone: str) -> None:
    for prompt in (lone + text, text + lone):
        with pytest.raises(RequestError, match="expected valid Unicode"):
            demo.generate(prompt)
        with pytest.raises(RequestError, match="expected valid Unicode"):
            demo.chat([{"role": "user", "content": prompt}])
        for function in ({"name": "f", "description": prompt}, {"name": "f", "parameters": {"enum": [{prompt: 1}]}}):
            with pytest.raises(RequestError, match=r"^tools\.0\.function: expected valid Unicode"):
                demo.chat(ASKED, tools=[{"type": "function", "function": function}])
        with pytest.raises(RequestError, match=r"^json_schema: expected valid Unicode"):
            demo.generate("x", json_schema={"const": prompt})
        call = {"function": {"name": "f", "arguments": {"x": prompt}}}
        with pytest.raises(RequestError, match=r"^messages\.1\.tool_calls.*\.arguments: expected valid Unicode"):
            demo.chat([*ASKED, {"role": "assistant", "tool_calls": [call]}])
        call["function"]["arguments"] = json.dumps({"x": prompt})  # as a model can have written it
        assert demo.chat([*ASKED, {"role": "assistant", "tool_calls": [call]}], max_tokens=1).token_ids
    assert demo.detokenize(demo.tokenize(text)) == text


# Arguments

WHOLE = ["--max-tokens", "--threads", "--context", "--top-k", "--seed", "--compress", "--port", "--tokens"]


@given(
    flag=st.sampled_from(WHOLE),
    number=st.integers(10**20, 10**25).map(str) | st.text("0123456789", min_size=21, max_size=5000),
    sign=st.sampled_from(["", "-", "+"]),
)
def test_a_number_of_many_digits_is_one_line(flag: str, number: str, sign: str) -> None:
    command = {"--compress": "synth", "--port": "serve", "--tokens": "trace"}.get(flag, "run")
    code, _, err = in_process(command, f"{flag}={sign}{number}", "4b", "x")
    assert code == 2
    assert_one_line(err)
    assert "found" in err


@pytest.mark.parametrize("threads", ["-1", "0", "257", "99999999999999999999"])
def test_threads_that_no_pool_can_have_are_one_line(threads: str) -> None:
    code, _, err = in_process("plan", f"--threads={threads}")
    assert code == 2
    assert_one_line(err)


SIZES = st.one_of(
    st.text(max_size=30),
    st.text("0123456789.eE+-kKmMgGtTiIbB ", max_size=12),
    st.integers(1, 5000).map(lambda n: "9" * n),
    st.sampled_from(["1e400GiB", "-1", "inf", "nan", "9" * 400 + "TiB", "0", "٣GiB", "1.5g", "", " "]),
)


@given(size=SIZES)
@settings(max_examples=15)
def test_any_size_is_taken_or_one_line(size: str) -> None:
    code, _, err = in_process("plan", "--storage", "ufs", f"--memory={size}", "--json")
    assert code in (0, 2)
    if code:
        assert_one_line(err)


PATHS = st.one_of(
    st.binary(min_size=1, max_size=40).filter(lambda data: b"\0" not in data).map(os.fsdecode),
    st.sampled_from([b"\xff", b"\x1b[31m", b"n" * 300, b"n" * 5000, b"n/" * 2500, b"a\nb", b"\xe2\x80\xae"]).map(
        os.fsdecode
    ),
)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("empty"))
    yield Path.cwd()
    os.chdir(before)


def arguments_with(path: str) -> Iterator[tuple[str, ...]]:
    yield "run", "-m", path, "x"
    yield "run", "--lossy-head", path, "x"
    yield "run", "--storage", path, "x"
    yield "chat", "-m", path
    yield "serve", "--port", "0", path
    yield "serve", "--port", "0", "--api-key-file", path
    yield "convert", path, path + ".out"
    yield "inspect", path
    yield "plan", path
    yield "plan", "4b", "--storage", path
    yield "doctor", path
    yield "probe", path
    yield "probe", "-o", f"{path}/x"
    yield "bench", path
    yield "bench", "compare", path, path
    yield "bench", "--submit", path
    yield "eval", "perplexity", "--text", path
    yield "synth", path, path + ".out"
    yield "trace", "--text", path, "-o", path + ".out"
    yield "calibrate", path, "--text", path
    yield "cache-sim", path


@given(path=PATHS.filter(lambda path: not path.startswith(("-", "/", ".", "~"))))
@settings(max_examples=7)
def test_any_path_is_one_line(empty: Path, path: str) -> None:
    for arguments in arguments_with(path):
        code, _, err = in_process(*arguments)
        assert code == 2, (arguments, err)
        assert_one_line(err)


def test_any_path_is_the_project_s_own_error_in_python() -> None:
    for path in ("n" * 300, "n/" * 2500, "\udcff", "a\0b", "\ud800", "\x1b[31m"):
        for arguments in ({"path": path}, {"lossy_head": path}, {"storage": path}):
            with pytest.raises(SmallThinkerError):
                LLM(**arguments)  # type: ignore[arg-type]


def test_a_part_that_cannot_be_loaded_is_one_line_with_a_remedy() -> None:
    program = (
        "import sys; sys.modules['smallthinker._kernels'] = None; from smallthinker.cli import main; sys.exit(main())"
    )
    done = shell(f'{sys.executable} -c "{program}" run x')
    assert done.returncode == 2
    assert_one_line(done.stderr.decode())
    assert b"cannot load smallthinker._kernels" in done.stderr and b"install smallthinker again" in done.stderr


# What is said of it


@given(text=st.text())
def test_what_is_shown_on_a_terminal_does_not_steer_it(text: str) -> None:
    assert not CONTROL.search(visible(text).replace("\r\n", "\n").encode("utf-8", "replace").decode())
    assert visible(visible(text)) == visible(text)


@given(value=st.text() | st.binary() | st.integers() | st.recursive(st.none(), st.lists, max_leaves=50))
def test_a_value_in_a_message_is_short_and_printable(value: object) -> None:
    for copies in (value, [value] * 1000):
        assert len(shown(copies)) <= 80
        assert shown(copies).isprintable()


@given(text=st.text(), copies=st.sampled_from([1, 1000, 100_000]))
def test_a_message_is_one_short_line(text: str, copies: int) -> None:
    line = one_line(f"where: {text * copies}: remedy")
    assert line.isprintable()
    assert len(line) <= MAX_MESSAGE_CHARACTERS
    assert line.startswith("where: ") and line.endswith(": remedy")


def test_an_answer_is_exact_in_a_pipe_and_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smallthinker.text.tokenizer.StreamDecoder.push", lambda self, token: "\x1b[31m\r\u202e\n\t")
    options = ("run", "--max-tokens", "1", "--ignore-eos", "Once")
    assert in_process(*options)[1] == "\x1b[31m\r\u202e\n\t\n"
    with streams(out=Terminal) as (out, _):
        assert main(options) == 0
        assert out.getvalue().decode() == "\\u001b[31m\\u000d\\u202e\n\t\n"


def test_what_nobody_foresaw_is_one_line_and_tells_more_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise LookupError("\x1b[31m" + "x" * 10_000)

    monkeypatch.setattr("smallthinker.expert_store.store.Store.open", broken)
    code, out, err = in_process("show")
    assert (code, out) == (70, "")
    assert_one_line(err)
    assert err.startswith("smallthinker show: error: internal error: LookupError: \\x1b[31mxxx")
    assert "report" in err and "SMALLTHINKER_DEBUG=1" in err
    monkeypatch.setenv("SMALLTHINKER_DEBUG", "1")
    code, _, err = in_process("show")
    assert code == 70
    assert "Traceback" in err and "in broken" in err
    assert not CONTROL.search(err)
