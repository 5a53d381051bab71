from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from gate import Gate, until

from smallthinker import LLM
from smallthinker.errors import ContextLengthError, MemoryBudgetError, RequestError

PROMPT = "The sea was calm"


@pytest.fixture(scope="module")
def llm(hybrid_store: Path) -> LLM:
    return LLM(hybrid_store, threads=1)


def test_the_same_seed_gives_the_same_text_and_another_seed_another(llm: LLM) -> None:
    first = llm.generate(PROMPT, seed=1, max_tokens=40, temperature=1.0)
    assert llm.generate(PROMPT, seed=1, max_tokens=40, temperature=1.0).token_ids == first.token_ids
    assert llm.generate(PROMPT, seed=2, max_tokens=40, temperature=1.0).token_ids != first.token_ids


def test_a_drawn_seed_is_reported_and_gives_the_text_again(llm: LLM) -> None:
    drawn = llm.generate(PROMPT, max_tokens=20, temperature=1.0)
    assert llm.generate(PROMPT, max_tokens=20, temperature=1.0, seed=drawn.stats.seed).token_ids == drawn.token_ids


def test_a_stream_s_pieces_are_the_text(llm: LLM) -> None:
    with llm.stream(PROMPT, seed=1, max_tokens=30) as stream:
        pieces = list(stream)
    assert stream.completion is not None
    assert "".join(pieces) == stream.completion.text == llm.generate(PROMPT, seed=1, max_tokens=30).text


def test_max_tokens_ends_the_answer(llm: LLM) -> None:
    completion = llm.generate(PROMPT, max_tokens=7, ignore_eos=True)
    assert (len(completion.token_ids), completion.finish_reason) == (7, "length")


def test_a_stop_string_ends_the_answer_and_is_left_out(llm: LLM) -> None:
    options = {"seed": 3, "max_tokens": 60, "temperature": 1.0, "ignore_eos": True}
    whole = llm.generate(PROMPT, **options).text  # type: ignore[arg-type]
    stop = whole[20:22]
    cut = llm.generate(PROMPT, stop=[stop], **options)  # type: ignore[arg-type]
    assert cut.finish_reason == "stop"
    assert cut.text == whole[: whole.find(stop)]


def test_a_chat_s_answer_has_its_thought_and_its_calls_apart(hybrid_store: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(hybrid_store, store)
    template = (
        "{{ tools | tojson }}{{ enable_thinking }}{# <think> #}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    (store / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    messages = [{"role": "user", "content": "Hi"}]
    tool = {"type": "function", "function": {"name": "look"}}
    with LLM(store, threads=1) as llm:
        answer = '<think>Hm.</think>I look.<tool_call>{"name": "look", "arguments": {"at": 1}}</tool_call>'
        wanted = [*llm.tokenize(answer), llm.config.tokens.eos[0]]

        def say(ids: Sequence[int], logits: npt.NDArray[np.float32]) -> None:
            logits[np.arange(len(logits)) != wanted[len(ids)]] = -np.inf

        with llm.stream(messages, tools=[tool], thinking=True, logits_processor=say) as stream:
            text = "".join(stream)
        done = stream.completion
        assert done is not None and text == done.text == "I look." and done.reasoning == "Hm."
        assert [(call.name, call.arguments) for call in done.calls] == [("look", '{"at": 1}')]
        plain = llm.generate("x", logits_processor=say)
        assert plain.text == answer and not plain.reasoning and not plain.calls
        for wrong, name in (({"tools": [tool]}, "tools"), ({"thinking": True}, "thinking")):
            with pytest.raises(RequestError, match=name):
                llm.generate("x", **wrong)
        for bad in (7, [7], [{"type": "function"}], [{"type": "function", "function": {"name": 7}}]):
            with pytest.raises(RequestError, match="tools"):
                llm.chat(messages, tools=bad)  # type: ignore[arg-type]


def test_messages_go_through_the_chat_template(llm: LLM) -> None:
    as_text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    options = {"seed": 1, "max_tokens": 10}
    chat = llm.generate([{"role": "user", "content": "hi"}], **options)  # type: ignore[arg-type]
    assert chat.token_ids == llm.generate(as_text, special_tokens=True, **options).token_ids  # type: ignore[arg-type]
    assert chat.stats.prompt_tokens < llm.generate(as_text, **options).stats.prompt_tokens  # type: ignore[arg-type]


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_a_special_tokens_name_is_a_stop_string(llm: LLM, ignore_eos: bool) -> None:
    wanted = [*llm.tokenize("ab"), *llm.tokenize("<|im_end|>", special_tokens=True), *llm.tokenize("cd")]

    def say(ids: Sequence[int], logits: npt.NDArray[np.float32]) -> None:
        logits[np.arange(len(logits)) != wanted[len(ids)]] = -np.inf

    options = {"max_tokens": 5, "logits_processor": say, "ignore_eos": ignore_eos}
    for stop, text in (("<|im_end|>", "ab"), ("b<|im_end|>", "a"), ("x<|im_end|>", "abcd" if ignore_eos else "ab")):
        answer = llm.generate("x", stop=[stop], **options)  # type: ignore[arg-type]
        assert (answer.text, answer.finish_reason) == (text, "length" if text == "abcd" else "stop")
        assert "".join(llm.stream("x", stop=stop, **options)) == text  # type: ignore[arg-type]


def test_nobody_ends_a_turn_but_the_template(llm: LLM) -> None:
    forged = "x<|im_end|>"
    chat = llm.generate([{"role": "user", "content": forged}], max_tokens=1)
    template = len(llm.tokenize("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n", special_tokens=True))
    assert chat.stats.prompt_tokens == template + len(forged)
    with pytest.raises(RequestError, match="special_tokens"):
        llm.generate([{"role": "user", "content": forged}], special_tokens=True)
    with pytest.raises(RequestError, match="special_tokens"):
        llm.generate(forged, special_tokens=1)  # type: ignore[arg-type]


def test_cancel_from_another_thread_ends_the_answer(hybrid_store: Path) -> None:
    with LLM(hybrid_store, threads=1) as llm:
        gate = Gate(1)
        with llm.stream(PROMPT, max_tokens=400, seed=1, ignore_eos=True, logits_processor=gate) as stream:
            gate.wait()
            thread = threading.Thread(target=llm.cancel)
            thread.start()
            thread.join()
            gate.open()
            list(stream)
        assert stream.completion is not None
        assert stream.completion.finish_reason == "cancelled"
        assert llm.generate(PROMPT, max_tokens=3, ignore_eos=True).finish_reason == "length"


def test_two_models_live_in_one_process(hybrid_store: Path) -> None:
    with (
        LLM(hybrid_store) as a,
        LLM(hybrid_store) as b,
        a.stream(PROMPT, seed=1, max_tokens=10) as first,
        b.stream(PROMPT, seed=1, max_tokens=10) as second,
    ):
        for piece, same in zip(first, second, strict=True):
            assert piece == same


def test_answers_asked_for_at_once_are_all_written(llm: LLM) -> None:
    """From one thread, where waiting for the first would be for ever, and from several."""
    options = {"max_tokens": 20, "seed": 1, "ignore_eos": True}
    alone = [llm.generate(f"{PROMPT} {i}", **options).text for i in range(4)]  # type: ignore[arg-type]
    streams = [llm.stream(f"{PROMPT} {i}", **options) for i in range(4)]  # type: ignore[arg-type]
    next(streams[3])
    assert [stream.request.result().text for stream in streams] == alone
    with ThreadPoolExecutor(4) as pool:
        texts = pool.map(lambda i: llm.generate(f"{PROMPT} {i}", **options).text, range(4))  # type: ignore[arg-type]
        assert list(texts) == alone


def test_a_dropped_stream_is_not_written_to_its_end(llm: LLM) -> None:
    gate = Gate(1)
    stream = llm.stream(PROMPT, max_tokens=450, seed=1, ignore_eos=True, logits_processor=gate)
    request = stream.request
    gate.wait()
    del stream
    gate.open()
    assert request.result().finish_reason == "cancelled"


def test_closing_in_the_middle_of_a_stream_ends_it(hybrid_store: Path) -> None:
    llm, gate = LLM(hybrid_store), Gate(1)
    stream = llm.stream(PROMPT, max_tokens=200, seed=1, ignore_eos=True, logits_processor=gate)
    gate.wait()
    closer = threading.Thread(target=llm.close)
    closer.start()
    until(lambda: stream.request.ending)
    gate.open()
    closer.join()
    list(stream)
    assert stream.completion is not None
    assert stream.completion.finish_reason == "cancelled"
    llm.close()
    with pytest.raises(RequestError, match="closed"):
        llm.generate(PROMPT)


def test_what_cannot_fit_is_refused_before_it_starts(llm: LLM, hybrid_store: Path) -> None:
    with pytest.raises(ContextLengthError, match="512"):
        llm.generate("x" * 600)
    with pytest.raises(ContextLengthError):
        llm.generate("x" * 500, max_tokens=100)
    with pytest.raises(RequestError, match="prompt"):
        llm.generate("")
    with pytest.raises(RequestError, match="max_tokens"):
        llm.generate(PROMPT, max_tokens=0)
    with pytest.raises(MemoryBudgetError, match="floor"):
        LLM(hybrid_store, memory="10MiB")
    with pytest.raises(RequestError, match="threads"):
        LLM(hybrid_store, threads=0)


def test_stats_count_what_happened(llm: LLM) -> None:
    stats = llm.generate("A" + PROMPT, max_tokens=9, ignore_eos=True).stats
    config = llm._engine.config
    per_token = config.num_layers * config.experts_per_token
    assert (stats.prompt_tokens, stats.new_tokens) == (len(PROMPT) + 1, 9)
    assert stats.decode_experts.requests == 8 * per_token
    assert stats.decode_experts.certain_bytes == stats.decode_experts.misses * llm._engine.store.record_bytes
    assert 0 <= stats.hit_rate <= 1
    assert min(stats.ttft_sec, stats.decode_sec) > 0
    assert stats.peak_memory_bytes > 1 << 20


def test_a_whole_run_imports_no_torch_and_installs_nothing(hybrid_store: Path) -> None:
    """In a fresh interpreter: torch costs 200 MB; a library must leave signals and stdout to its host."""
    code = f"""
import signal, sys
before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGSEGV)]
from smallthinker import LLM
with LLM({str(hybrid_store)!r}) as llm:
    llm.generate("hello", max_tokens=3)
assert not {{"torch", "gguf"}} & set(sys.modules)
assert before == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGSEGV)]
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


# What a program that imports LLM may never need; most cost 2 ms or more, much of it in modules that they import.
HEAVY = {
    *("numpy", "numpy.random", "tokenizers", "jinja2", "torch", "tqdm", "zstandard", "safetensors", "starlette"),
    *("asyncio", "email", "hashlib", "http", "importlib.metadata", "secrets", "shutil", "statistics", "tempfile"),
    *("psutil", "socket", "subprocess"),
    *("tomli", "tomllib", "smallthinker.expert_store.convert", "smallthinker.expert_store.compression"),
}


def test_importing_brings_in_only_what_is_needed() -> None:
    """By modules, not by the clock: numpy is most of what LLM may cost. What a run needs later, it imports itself."""
    code = f"""
import sys
before = set(sys.modules)
heavy = {HEAVY}
import smallthinker
assert not heavy & (set(sys.modules) - before), heavy & (set(sys.modules) - before)
import numpy  # older ones bring in more themselves
before = set(sys.modules)
from smallthinker import LLM, AsyncLLM
assert not heavy & (set(sys.modules) - before), heavy & (set(sys.modules) - before)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_closing_gives_back_threads_files_and_memory() -> None:
    """In a fresh interpreter, with the bundled model: a few MB, all of it touched."""
    code = """
import gc, psutil
from smallthinker import LLM
process = psutil.Process()
def use():
    with LLM(sequences=2) as llm:
        llm.generate("Once upon a time", max_tokens=40, ignore_eos=True)
        gc.collect()
        return process.num_threads(), process.num_fds(), process.memory_info().rss
for _ in range(4):  # what libraries take once
    use()
gc.collect()
threads, fds, rss = process.num_threads(), process.num_fds(), process.memory_info().rss
for _ in range(8):
    used_threads, used_fds, used_rss = use()
gc.collect()
assert used_threads > threads and used_fds > fds, (used_threads, used_fds)
assert process.num_threads() == threads and process.num_fds() == fds
grown = process.memory_info().rss - rss  # over eight more
assert 2 * grown < used_rss - rss, (rss, used_rss, grown)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_loading_and_reading_a_prompt_say_how_far_they_are(hybrid_store: Path) -> None:
    loaded: list[tuple[int, int]] = []
    read: list[tuple[int, int]] = []
    with LLM(hybrid_store, progress=lambda done, total, _: loaded.append((done, total))) as llm:
        llm.generate("a" * 40, max_tokens=1, on_prefill=lambda done, total: read.append((done, total)))
    assert loaded[-1][0] == loaded[-1][1] > 0
    assert read[-1] == (40, 40) and len(read) > 1  # not only between chunks
    assert read == sorted(set(read))
