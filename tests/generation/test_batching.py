"""A sequence computed in the same steps as others gets the bits that it gets alone, whenever they join and leave."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gate import Gate
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import HYBRID_ATTENTION, make_store, tiny_config

from smallthinker import LLM
from smallthinker.cache.conversations import Conversation
from smallthinker.cache.kv_ring import KvKind
from smallthinker.engine import Engine
from smallthinker.errors import CancelledError
from smallthinker.generation.answer import Completion, GenerationParams

# Beginnings that are shared make sequences continue, rewind and copy each other's caches.
BEGINNINGS = [np.random.default_rng(seed).integers(0, 256, 40).tolist() for seed in range(3)]


def logits_alone(store: Path, tokens: list[int], kv: KvKind) -> np.ndarray:
    with Engine(store, kv=kv, threads=1) as engine:
        return engine.all_logits(tokens)


@given(
    config=st.sampled_from(
        [
            HYBRID_ATTENTION | {"head_dim": 32, "sliding_window_size": 5},
            HYBRID_ATTENTION | {"head_dim": 32, "moe_num_active_primary_experts": 4, "moe_num_primary_experts": 7},
            {"head_dim": 32},
        ]
    ),
    quant=st.sampled_from(["q4_0", "q8_0", "f16"]),
    kv=st.sampled_from(["f16", "q8"]),
    most=st.integers(1, 4),
    chunk=st.sampled_from([1, 3, 7, 64]),
    threads=st.integers(1, 3),
    prefetch=st.booleans(),
    look_ahead=st.booleans(),
    seed=st.integers(0, 1 << 16),
)
@settings(max_examples=15)
def test_any_schedule_gives_each_sequence_the_bits_that_it_has_alone(
    config: dict[str, Any],
    quant: str,
    kv: KvKind,
    most: int,
    chunk: int,
    threads: int,
    prefetch: bool,
    look_ahead: bool,
    seed: int,
) -> None:
    parsed, rng = tiny_config(**config), np.random.default_rng(seed)
    slots = int(rng.integers(parsed.experts_per_token, parsed.num_records + 1))
    all_tokens = [
        BEGINNINGS[rng.integers(3)][: rng.integers(40)] + rng.integers(0, 256, rng.integers(1, 20)).tolist()
        for _ in range(rng.integers(2, 7))
    ]
    with tempfile.TemporaryDirectory() as folder:
        store, _ = make_store(parsed, Path(folder), quant)
        expected = [logits_alone(store, tokens, kv) for tokens in all_tokens]
        with Engine(
            store, kv=kv, sequences=most, chunk=chunk, max_slots=slots, threads=threads, prefetch=prefetch,
            look_ahead=look_ahead,
        ) as engine:  # fmt: skip
            waiting, running = list(range(len(all_tokens))), dict[int, Conversation]()
            while waiting or running:
                if waiting and (not running or (len(running) < most and rng.random() < 0.5)):
                    i = waiting.pop(0)
                    running[i], _ = engine.open(all_tokens[i])
                spans, room = [], max(chunk, most)
                for i, conversation in running.items():
                    left = all_tokens[i][len(conversation.tokens) :]
                    n = int(rng.integers(0, min(len(left), chunk, room) + 1))
                    room -= n
                    if n:
                        spans.append((conversation, left[:n]))
                if not spans:
                    continue
                logits = None
                if rng.random() < 0.1:  # given up in the middle, then computed again; or whole before it was asked
                    answers = iter([False] * int(rng.integers(3)))
                    lengths = [len(conversation.tokens) for conversation, _ in spans]
                    try:
                        logits = engine.step(spans, cancelled=partial(next, answers, True))
                    except CancelledError:
                        assert [len(conversation.tokens) for conversation, _ in spans] == lengths
                logits = engine.step(spans) if logits is None else logits
                for i, conversation in list(running.items()):
                    at = next((at for at, (other, _) in enumerate(spans) if other is conversation), None)
                    if at is not None:
                        wanted = expected[i][len(conversation.tokens) - 1]
                        assert np.array_equal(logits[at].view(np.uint32), wanted.view(np.uint32)), i
                    if len(conversation.tokens) == len(all_tokens[i]):
                        engine.keep(running.pop(i))


def test_answers_written_side_by_side_are_those_written_alone(hybrid_store: Path) -> None:
    prompts = ["The sea was calm", "The sea was rough", "Once", "The sea was calm and", "A", "Once upon a time"]
    options: Any = {"max_tokens": 30, "seed": 1, "ignore_eos": True, "temperature": 1.0}
    with LLM(hybrid_store) as alone:
        expected = [alone.generate(prompt, **options).token_ids for prompt in prompts]
    with LLM(hybrid_store, sequences=3) as llm:
        streams = [llm.stream(prompt, **options) for prompt in prompts]
        assert [stream.request.result().token_ids for stream in streams] == expected


def test_a_beginning_that_prompts_share_is_computed_once_even_where_they_come_together(tmp_path: Path) -> None:
    store, _ = make_store(tiny_config(head_dim=32), tmp_path, "q4_0")
    beginning = BEGINNINGS[0]
    prompts = [[*beginning, *own] for own in BEGINNINGS[1:]] + [[*beginning, 7, 8, 9], BEGINNINGS[1]]
    params = GenerationParams(max_tokens=4, seed=1, ignore_eos=True)
    with LLM(store) as alone:
        expected = [alone.scheduler.submit(prompt, params).result().token_ids for prompt in prompts]
    with LLM(store, sequences=4) as llm:
        gate = Gate()
        first = llm.scheduler.submit([1], params, logits_processor=gate)
        gate.wait()  # so that the others begin in one and the same step
        requests = [llm.scheduler.submit(prompt, params) for prompt in prompts]
        gate.open()
        answers = [request.result() for request in requests]
        first.result()
    assert [answer.token_ids for answer in answers] == expected
    assert [answer.stats.reused_tokens for answer in answers] == [0, len(beginning), len(beginning), 0]


def test_a_chat_s_next_turn_computes_only_what_is_new_while_others_come_and_go(hybrid_store: Path) -> None:
    params = GenerationParams(max_tokens=5, seed=1, ignore_eos=True)
    with LLM(hybrid_store, sequences=3) as llm:

        def ask(prompt: list[int]) -> Completion:
            return llm.scheduler.submit(prompt, params).result()

        first = ask(BEGINNINGS[0])
        ask(BEGINNINGS[1])
        held = BEGINNINGS[0] + list(first.token_ids[:4])  # the fifth was never computed
        assert ask([*held, 7, 8, 9]).stats.reused_tokens == len(held)
        for beginning in ([1] * 9, [2] * 9, [3] * 9):  # as many as are kept
            ask(beginning)
        assert ask([*held, 7, 8, 9]).stats.reused_tokens == 0
