"""The command as a user meets it: a process, its two streams, its exit code."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forked_command import smallthinker
from tiny_models import HYBRID_ATTENTION, random_reference, tiny_config, write_checkpoint

from smallthinker.commands import COMMANDS
from smallthinker.models.registry import to_config

COMMAND = [sys.executable, "-m", "smallthinker"]


def assert_one_clear_error(result: subprocess.CompletedProcess[str], *expected: str) -> None:
    assert result.returncode == 2, result
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert "error:" in lines[0]
    for text in expected:
        assert text in lines[0]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(random_reference(tiny_config(**HYBRID_ATTENTION)), tmp_path_factory.mktemp("cli") / "hf")


def test_run_streams_text_to_stdout_and_figures_to_stderr(hybrid_store: Path) -> None:
    result = smallthinker("run", "-m", hybrid_store, "--seed", "1", "--max-tokens", "12", "Once")
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("\n") and len(result.stdout) > 1
    (line,) = result.stderr.splitlines()
    for figure in ("TTFT", "tokens/s", "hit rate", "read per token", "peak memory"):
        assert figure in line


def test_kv_q8_runs_in_about_half_the_kv_memory_and_q4_is_one_clear_error() -> None:
    kv_mib = {}
    for kv in ("f16", "q8"):
        result = smallthinker("run", "--kv", kv, "--verbose", "--max-tokens", "3", "--temperature", "0", "Once")
        assert result.returncode == 0, result.stderr
        line = next(line for line in result.stderr.splitlines() if "KV cache" in line)
        kv_mib[kv] = float(line.split()[-2])
    assert kv_mib["q8"] == pytest.approx(kv_mib["f16"] * 17 / 32, abs=0.1)
    assert_one_clear_error(smallthinker("run", "--kv", "q4", "Once"), "--kv", "f16", "q8")


def test_kv_q8_of_a_model_whose_heads_it_does_not_fit_is_one_clear_error(hybrid_store: Path) -> None:
    result = smallthinker("chat", "-m", hybrid_store, "--kv", "q8")
    assert_one_clear_error(result, "kv: q8 needs a head_dim that is a multiple of 32, this model has 16; use f16")


def test_the_prompt_can_come_from_stdin_and_gives_the_same_text(hybrid_store: Path) -> None:
    options = ("-m", hybrid_store, "--seed", "1", "--max-tokens", "12")
    assert smallthinker("run", *options, "-", stdin="Once").stdout == smallthinker("run", *options, "Once").stdout


def prompt_tokens(*args: str | Path, stdin: str = "") -> int:
    result = smallthinker("run", *args, "--max-tokens", "1", "--stats", "json", stdin=stdin)
    assert result.returncode == 0, result.stderr
    tokens: int = json.loads(result.stderr.splitlines()[-1])["prompt_tokens"]
    return tokens


def test_a_prompt_goes_through_the_chat_template_unless_it_is_raw(hybrid_store: Path) -> None:
    """A token a byte, and two special ones a message."""
    turn = len("user\nHello\n") + 2 + len("assistant\n") + 1
    assert prompt_tokens("-m", hybrid_store, "Hello") == turn
    assert prompt_tokens("-m", hybrid_store, "Hello", "--raw") == len("Hello")
    assert prompt_tokens("-m", hybrid_store, "Hello", "--system", "Be.") == turn + len("system\nBe.\n") + 2
    assert_one_clear_error(smallthinker("run", "-m", hybrid_store, "x", "--raw", "--system", "y"), "--system", "--raw")


def test_files_and_what_is_piped_in_follow_the_prompt(hybrid_store: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("file")
    options = ("-m", hybrid_store, "--raw")
    assert prompt_tokens(*options, "Two", "words") == len("Two words")
    assert prompt_tokens(*options, "x", "--file", tmp_path / "a", stdin="piped") == len("x\n\nfile\n\npiped")
    assert prompt_tokens(*options, "x", "-", "y", stdin="piped") == len("x\n\npiped\n\ny")
    assert prompt_tokens(*options, stdin="piped") == len("piped")
    assert_one_clear_error(smallthinker("run", *options), "PROMPT")
    assert_one_clear_error(smallthinker("run", *options, "x", "--file", tmp_path / "b"), "--file")


def with_template(store: Path, folder: Path, template: str | None) -> Path:
    shutil.copytree(store, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template} if template else {}))
    return folder


def test_a_model_without_a_template_continues_text(hybrid_store: Path, tmp_path: Path) -> None:
    store = with_template(hybrid_store, tmp_path / "store", None)
    assert prompt_tokens("-m", store, "Hello") == len("Hello")
    assert_one_clear_error(smallthinker("run", "-m", store, "x", "--system", "y"), "chat_template")


def test_thoughts_go_to_standard_error_and_can_be_hidden(hybrid_store: Path, tmp_path: Path) -> None:
    store = with_template(hybrid_store, tmp_path / "store", "{{ messages[0].content }}<think>")
    options = ("-m", store, "--seed", "1", "--max-tokens", "12", "--ignore-eos", "x")
    shown, hidden = smallthinker("run", *options), smallthinker("run", *options, "--thinking", "hide")
    assert shown.stdout == hidden.stdout == "\n"
    assert len(shown.stderr.splitlines()) > 1 and len(hidden.stderr.splitlines()) == 1
    talk = smallthinker("chat", *options[:-1], stdin="x\n/save out.json\n", cwd=tmp_path)
    assert talk.returncode == 0, talk.stderr
    assert json.loads((tmp_path / "out.json").read_text())[1]["reasoning_content"]


def test_special_tokens_in_a_prompt_act_as_such_behind_a_flag(hybrid_store: Path) -> None:
    counts = []
    for flags in (["--raw"], ["--special-tokens"]):
        result = smallthinker("run", "-m", hybrid_store, "a<|im_end|>b", "--max-tokens", "1", "--stats", "json", *flags)
        counts.append(json.loads(result.stderr.splitlines()[-1])["prompt_tokens"])
    assert counts == [len("a<|im_end|>b"), 3]


def test_stats_json_is_one_object_on_the_last_line(hybrid_store: Path) -> None:
    result = smallthinker(
        "run", "-m", hybrid_store, "--max-tokens", "5", "--ignore-eos", "--verbose", "--stats", "json", "x"
    )
    figures: dict[str, Any] = json.loads(result.stderr.splitlines()[-1])
    assert figures["new_tokens"] == 5
    assert {"ttft_sec", "decode_tok_per_sec", "hit_rate", "bytes_read_per_token", "peak_memory_bytes"} <= set(figures)
    assert figures["decode"]["tokens"] == 4 and {"bound", "share"} <= set(figures["decode"]["roofline"])
    assert "memory plan" in result.stderr


def test_the_bundled_model_needs_no_arguments(tmp_path: Path) -> None:
    result = smallthinker("run", "--seed", "1", "--max-tokens", "8", "Once upon a time", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_convert_then_inspect_then_run(checkpoint: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    result = smallthinker("convert", checkpoint, store, "--quant", "q8_0")
    assert result.returncode == 0
    assert result.stdout.startswith(f"{store}: q8_0, ")
    facts = json.loads(smallthinker("inspect", store, "--json").stdout)
    assert facts["quant"] == "q8_0"
    assert json.loads(smallthinker("verify", store, "--json").stdout)["whole"] is True
    assert "q8_0" in smallthinker("inspect", store).stdout
    assert smallthinker("run", "-m", store, "--max-tokens", "3", "x").returncode == 0
    again = smallthinker("convert", checkpoint, store)
    assert_one_clear_error(again, str(store), "--force")
    replaced = smallthinker("convert", checkpoint, store, "--force", "--json")
    assert json.loads(replaced.stdout)["quant"] == "q4_0"


def test_synth_of_a_config_gives_a_store_that_runs(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "random"
    assert smallthinker("synth", checkpoint / "config.json", out).returncode == 0
    assert smallthinker("run", "-m", out, "--max-tokens", "3", "hello").returncode == 0


def test_every_command_has_help_with_an_example() -> None:
    assert "example:" in smallthinker("--help").stdout
    for command in (module.__name__.rpartition(".")[2].replace("_", "-") for module in COMMANDS):
        result = smallthinker(command, "--help")
        assert result.returncode == 0
        assert f"example: smallthinker {command}" in " ".join(result.stdout.split())


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_come_without_numpy_or_what_else_a_run_needs(option: str) -> None:
    program = f"""
import contextlib, sys
from smallthinker.cli import main
with contextlib.suppress(SystemExit):
    main([{option!r}])
heavy = {{"numpy", "psutil", "asyncio", "smallthinker._kernels"}}
print(heavy & set(sys.modules), file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "set()\n")
    assert "smallthinker" in result.stdout


def test_a_missing_store_is_one_clear_error(tmp_path: Path) -> None:
    assert_one_clear_error(smallthinker("run", "-m", tmp_path / "nowhere", "x"), "nowhere: nothing is there", "list")


def test_what_is_not_a_store_is_one_clear_error(checkpoint: Path, tmp_path: Path) -> None:
    assert_one_clear_error(smallthinker("run", "-m", tmp_path, "x"), str(tmp_path), "a folder without a model")
    assert_one_clear_error(smallthinker("show", "-m", checkpoint), "smallthinker convert")


def test_a_truncated_store_is_one_clear_error(hybrid_store: Path, tmp_path: Path) -> None:
    for name in ("experts.safetensors", "dense.safetensors"):
        broken = tmp_path / f"without-end-of-{name}"
        broken.mkdir()
        for file in hybrid_store.iterdir():
            (broken / file.name).write_bytes(file.read_bytes())
        os.truncate(broken / name, (broken / name).stat().st_size - 4096)
        assert_one_clear_error(smallthinker("run", "-m", broken, "x"), name, "expected", "found")


def test_another_architecture_is_one_clear_error(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config["architectures"] = ["BloomForCausalLM"]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text(json.dumps(config))
    assert_one_clear_error(smallthinker("convert", foreign, tmp_path / "out"), "BloomForCausalLM", "architectures")


def test_a_budget_below_the_floor_names_the_floor(hybrid_store: Path) -> None:
    assert_one_clear_error(smallthinker("run", "-m", hybrid_store, "--memory", "16MiB", "x"), "16 MiB", "floor of")
    assert_one_clear_error(smallthinker("run", "-m", hybrid_store, "--memory", "lots", "x"), "lots")


def test_a_context_too_long_is_one_clear_error(hybrid_store: Path) -> None:
    assert_one_clear_error(smallthinker("run", "-m", hybrid_store, "--context", "100000", "x"), "512", "100000")
    assert_one_clear_error(smallthinker("run", "-m", hybrid_store, "x" * 700), "context")


def test_an_unknown_quantisation_or_flag_is_one_clear_error(checkpoint: Path, tmp_path: Path) -> None:
    assert_one_clear_error(smallthinker("convert", checkpoint, tmp_path / "out", "--quant", "q3_k"), "q3_k", "q4_0")
    unknown = smallthinker("run", "--max-tokns", "3", "x")
    assert_one_clear_error(unknown, "run: error: --max-tokns: no such option; did you mean --max-tokens?", "run --help")
    assert_one_clear_error(smallthinker("run", "--frobnicate", "x"), "--frobnicate: no such option (see")
    assert_one_clear_error(smallthinker("plan", "4b", "more"), "plan: error: 'more'")
    assert_one_clear_error(smallthinker("run", "-m", "x", "--temperature", "-1", "x"))


def test_a_reader_of_the_output_that_leaves_early_is_no_error(hybrid_store: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "run", "-m", str(hybrid_store), "--max-tokens", "300", "--ignore-eos", "x"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    assert process.wait() == 0


def test_a_chat_with_a_model_that_has_no_template_is_a_text_of_questions_and_answers(
    hybrid_store: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(hybrid_store, store)
    (store / "tokenizer_config.json").write_text("{}")
    options = ("-m", store, "--max-tokens", "5", "--temperature", "0", "--ignore-eos")
    chat = smallthinker("chat", *options, "--system", "Be brief.", stdin="hello\nagain\n")
    assert chat.returncode == 0 and "no chat template" in chat.stderr
    first = smallthinker("run", *options, "--raw", "Be brief.\n\nQuestion: hello\nAnswer:").stdout.removesuffix("\n")
    text = f"Be brief.\n\nQuestion: hello\nAnswer: {first.strip()}\nQuestion: again\nAnswer:"
    second = smallthinker("run", *options, "--raw", text).stdout.removesuffix("\n")
    assert chat.stdout == f"{first}\n{second}\n"
    assert "no chat template" not in smallthinker("chat", *options, "--quiet", stdin="hello\n").stderr


def test_ctrl_c_ends_a_run_without_a_traceback(hybrid_store: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "run", "-m", str(hybrid_store), "--max-tokens", "450", "--ignore-eos", "x"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert b"Traceback" not in errors
    assert process.returncode in (130, 0)  # 0: it was already done


def test_ctrl_c_in_a_chat_stops_the_answer_and_not_the_program(hybrid_store: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "chat", "-m", str(hybrid_store), "--max-tokens", "450", "--ignore-eos"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(b"/help\n/quit\n")
    assert process.returncode == 0
    assert b"/save FILE" in output  # it went on
    assert errors == b""


def test_a_chat_keeps_history_saves_it_and_resets(hybrid_store: Path, tmp_path: Path) -> None:
    lines = ["/help", "hello", "again", "/save talk.json", "/save talk.json", "/save talk.txt", "/reset", "/lod",
             "/save empty.json", "/save ~?/x", "/save /dev/full", "/nonsense", "/quit", "never reached"]  # fmt: skip
    result = smallthinker(
        "chat", "-m", hybrid_store, "--max-tokens", "5", "--system", "Be brief.", stdin="\n".join(lines), cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    roles = [m["role"] for m in json.loads((tmp_path / "talk.json").read_text())]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    assert "talk.json: not saved" in result.stdout  # the second save would have replaced the first
    assert "~?/x: not saved" in result.stdout and "/dev/full: not saved" in result.stdout
    assert (tmp_path / "talk.txt").read_text().startswith("system: Be brief.\n\nuser: hello\n")
    assert [m["role"] for m in json.loads((tmp_path / "empty.json").read_text())] == ["system"]
    assert "/nonsense: unknown command; /help" in result.stdout and "did you mean /load?" in result.stdout
    assert "/save FILE" in result.stdout


def test_a_chat_takes_back_asks_again_and_goes_on_with_what_was_saved(hybrid_store: Path, tmp_path: Path) -> None:
    def chat(*lines: str) -> str:
        result = smallthinker(
            "chat", "-m", hybrid_store, "--max-tokens", "5", "--seed", "3", stdin="\n".join(lines), cwd=tmp_path
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    def saved(name: str) -> list[tuple[str, str]]:
        return [(m["role"], m["content"]) for m in json.loads((tmp_path / name).read_text())]

    first = chat("/retry", "/system Be brief.", "hello", "/save a.json", "again", "/undo", "/save b.json", "/retry",
                 "/save c.json", "/system", "/undo", "/undo", "/save d.json", "/bye", "never reached")  # fmt: skip
    assert first.count("Nothing has been asked yet.") == 2
    assert saved("a.json") == saved("b.json") == saved("c.json")  # the same seed: the same answer
    assert [role for role, _ in saved("a.json")] == ["system", "user", "assistant"] and saved("d.json") == []
    chat("/load a.json", "again", "/save e.json", "/reset", "/save f.json")
    assert saved("e.json")[:3] == saved("a.json") and len(saved("e.json")) == 5
    assert saved("f.json") == saved("a.json")[:1]
    (tmp_path / "odd.json").write_text('[{"role": "assistant", "content": "x"}]')
    (tmp_path / "broken.json").write_text('[{"role": "user"}]')
    told = chat("/load", "/load nowhere.json", "/load odd.json", "/load broken.json", "hello")
    assert "/load needs a file name" in told and "nowhere.json: not loaded" in told
    assert "questions and answers in turns" in told and "role and content" in told


def test_a_chat_that_outgrows_its_context_forgets_the_oldest_turn(hybrid_store: Path) -> None:
    turns = "\n".join(["x" * 60] * 8)
    result = smallthinker("chat", "-m", hybrid_store, "--context", "256", "--max-tokens", "20", stdin=turns)
    assert result.returncode == 0, result.stderr
    assert "forgotten" in result.stderr
    assert "error" not in result.stderr


def test_a_piped_chat_ends_at_the_first_question_that_fails(hybrid_store: Path, tmp_path: Path) -> None:
    too_long = smallthinker(
        "chat", "-m", hybrid_store, "--context", "64", stdin=f"{'x' * 500}\n/save after.json", cwd=tmp_path
    )
    assert_one_clear_error(too_long, "context")
    assert not (tmp_path / "after.json").exists()
    store = tmp_path / "store"
    shutil.copytree(hybrid_store, store)
    config = json.loads((store / "tokenizer_config.json").read_text())
    template = "{% for a in messages %}{{ 'a' * 3000000000 }}{% endfor %}"
    (store / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    assert_one_clear_error(smallthinker("chat", "-m", store, stdin="hello\n"), "chat_template", "time or memory")


def test_a_damaged_store_is_found_by_verify_with_tensor_and_offset(hybrid_store: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in hybrid_store.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    with (damaged / "experts.safetensors").open("r+b") as experts:
        experts.seek(-4096, os.SEEK_END)
        experts.write(b"damage")
    assert smallthinker("inspect", damaged).returncode == 0
    found = smallthinker("verify", damaged)
    assert (found.returncode, found.stdout) == (1, "")
    assert re.search(
        r"experts\.safetensors: byte (\d+): checksum of tensor 'layers\.3\.experts\.7', bytes \1 to \d+: ", found.stderr
    )
    assert re.search(r"expected [0-9a-f]{8}, found [0-9a-f]{8}; .*again\n$", found.stderr)
    assert "smallthinker verify" in smallthinker("inspect", damaged, "--verify").stderr


def test_no_command_shows_the_help() -> None:
    result = smallthinker()
    assert result.returncode == 2
    assert "COMMAND" in result.stderr
    assert "convert" in result.stderr


def test_a_profile_says_where_the_time_went_after_the_answer_and_in_the_figures(hybrid_store: Path) -> None:
    options = ("-m", hybrid_store, "--seed", "1", "--max-tokens", "5", "--ignore-eos", "--timings")
    *table, line = smallthinker("run", *options, "Once").stderr.splitlines()
    assert "TTFT" in line
    assert table[0].startswith("ms a token") and {"linear", "experts", "Python", "all"} <= {t.split()[0] for t in table}
    figures = json.loads(smallthinker("run", *options, "--stats", "json", "Once").stderr.splitlines()[-1])
    assert figures["profile"]["decode"]["tokens"] == 4
    chat = smallthinker("chat", *options, stdin="Once\n")
    assert chat.returncode == 0
    assert "Python" in chat.stderr and "Python" not in chat.stdout


def test_synth_says_how_uneven_the_routing_is_that_it_made(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(to_config(tiny_config(**HYBRID_ATTENTION))))
    result = smallthinker("synth", config, tmp_path / "store", "--skew", "1.3")
    assert result.returncode == 0, result.stderr
    assert re.search(r"512 random tokens: \d+ % of the experts used by under 14 % of the tokens", result.stdout)
    result = smallthinker("synth", config, tmp_path / "store", "--skew", "1.3", "--force", "--json")
    assert json.loads(result.stdout)["tokens"] == 512
    result = smallthinker("synth", config, tmp_path / "checkpoint", "--quant", "none", "--skew", "1.3")
    assert "not measured" in result.stdout
    assert_one_clear_error(smallthinker("synth", config, tmp_path / "x", "--skew", "-1"), "skew", "0 to 16")


def test_a_trace_of_a_text_says_what_it_holds(tmp_path: Path) -> None:
    text, trace = tmp_path / "text", tmp_path / "trace"
    text.write_text("Once upon a time there was a house. " * 10)
    result = smallthinker("trace", "--text", text, "-o", trace, "--tokens", "50", "--json")
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert (facts["tokens"], facts["layers"], facts["experts"], facts["experts_per_token"]) == (50, 8, 32, 4)
    assert facts["file_bytes"] == trace.stat().st_size
    assert 0 <= facts["repeated"] <= 1
    assert_one_clear_error(smallthinker("trace", "--text", text, "-o", trace), "exists already", "--force")
    result = smallthinker("trace", "--text", text, "-o", trace, "--force")
    assert "of the experts used by under 14 % of the tokens" in result.stdout


def test_a_trace_of_nothing_is_one_clear_error(tmp_path: Path) -> None:
    empty, latin = tmp_path / "empty", tmp_path / "latin"
    empty.write_text("")
    latin.write_bytes("café".encode("latin-1"))
    out = tmp_path / "trace"
    assert_one_clear_error(smallthinker("trace", "--text", empty, "-o", out), "at least one token")
    assert_one_clear_error(smallthinker("trace", "--text", latin, "-o", out), "UTF-8", "byte 3")
    assert_one_clear_error(smallthinker("trace", "--text", tmp_path / "none", "-o", out), "No such file")
    assert_one_clear_error(smallthinker("trace", "--text", empty, "-o", out, "--tokens", "0"), "--tokens")
    assert_one_clear_error(smallthinker("trace", "--text", latin.parent, "-o", out), "directory")


def test_a_replay_compares_policies_with_the_optimum(tmp_path: Path) -> None:
    text, trace = tmp_path / "text", tmp_path / "trace"
    text.write_text("The sea was calm, and nobody spoke. " * 5)
    assert smallthinker("trace", "--text", text, "-o", trace, "--tokens", "40").returncode == 0
    result = smallthinker("cache-sim", trace, "--slots", "32", "64", "--json")
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert (facts["tokens"], facts["experts"]) == (40, 256)
    for size in facts["sizes"]:
        assert 0 <= max(size["hit_rates"].values()) <= size["optimum"] <= 1
        assert size["recovered"]["lru"] == 0
    table = smallthinker("cache-sim", trace, "--expert-memory", "1MiB", "4MiB").stdout.splitlines()
    assert [row.split()[0] for row in table[1:]] == [
        "slots", "of", "memory", "lru", "lfu", "frequency", "optimum"
    ]  # fmt: skip
    assert len(smallthinker("cache-sim", trace).stdout.splitlines()[1].split()) == 6


def test_a_replay_of_something_else_is_one_clear_error(tmp_path: Path) -> None:
    text, trace = tmp_path / "text", tmp_path / "trace"
    text.write_text("x" * 5000)
    assert_one_clear_error(smallthinker("cache-sim", text), "length of the header", str(text))
    assert_one_clear_error(smallthinker("cache-sim", tmp_path / "none"), "No such file")
    text.write_text("The sea")
    assert smallthinker("trace", "--text", text, "-o", trace).returncode == 0
    assert_one_clear_error(smallthinker("cache-sim", trace, "--slots", "3"), "at least 4", "found 3")
    assert_one_clear_error(
        smallthinker("cache-sim", trace, "--expert-memory", "1KiB"), "at least 4", "found 0", "bytes"
    )
    assert_one_clear_error(smallthinker("cache-sim", trace, "--expert-memory", "lots"), "lots")


def test_an_emulated_disk_changes_no_token_and_is_named(hybrid_store: Path) -> None:
    options = ["-m", hybrid_store, "--seed", "1", "--max-tokens", "6", "--stats", "json", "Once"]
    plain, emulated = smallthinker("run", *options), smallthinker("run", "--storage", "emmc", *options)
    assert emulated.returncode == 0, emulated.stderr
    assert emulated.stdout == plain.stdout
    assert "the disk is emulated: emmc" in emulated.stderr
    figures = [json.loads(result.stderr.splitlines()[-1]) for result in (plain, emulated)]
    assert [each["storage"] for each in figures] == [None, "emmc"]
    assert figures[1]["decode"]["disk_bytes_per_sec_probed"] <= 250e6


def test_a_bad_profile_is_one_clear_error(hybrid_store: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("name = 7")
    for storage, expected in (("floppy", "sd-card"), (tmp_path / "bad.toml", "summary")):
        assert_one_clear_error(smallthinker("run", "-m", hybrid_store, "--storage", storage, "x"), expected)


def test_probe_says_what_is_wrong_before_it_measures(tmp_path: Path) -> None:
    (tmp_path / "there.toml").write_text("mine")
    assert_one_clear_error(smallthinker("probe", tmp_path / "nothing"), "No such file", "give a folder")
    assert_one_clear_error(smallthinker("probe", tmp_path, "-o", tmp_path / "there.toml"), "--force")
    assert_one_clear_error(smallthinker("probe", tmp_path, "-o", tmp_path / "no" / "such.toml"), "no folder")
    assert (tmp_path / "there.toml").read_text() == "mine"
