"""Answers are the same bits with and without speculation, whatever is proposed and whatever an answer asks for."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import HYBRID_ATTENTION, behind_attention, make_store, tiny_config

from smallthinker import LLM
from smallthinker.cache.kv_ring import KvKind
from smallthinker.engine import Engine
from smallthinker.errors import RequestError
from smallthinker.generation.answer import Completion, GenerationParams
from smallthinker.generation.scheduler import Scheduler
from smallthinker.generation.speculation.offer import Offer
from smallthinker.generation.speculation.proposer import Proposer

PROMPT = list(b"The sea was calm and the sea was calm and")


class Guesser:
    """Proposes what an answer is known to become, with mistakes at random places."""

    def __init__(self, seed: int, vocab_size: int = 300) -> None:
        self._rng, self._vocab_size = np.random.default_rng(seed), vocab_size
        self.right: Sequence[int] = ()
        self._at = 0

    def begin(self) -> None:
        self._at = 0

    def offer(self, prompt: Sequence[int], ids: Sequence[int], affords_sec: float) -> Offer | None:
        self._at = len(ids)
        return Offer("guess", 0.5) if self._rng.random() < 0.8 else None

    def propose(self, most: int) -> list[int]:
        n = int(self._rng.integers(1, most + 1))
        tokens = [*self.right[self._at : self._at + n]]
        if self._rng.random() < 0.6:
            del tokens[self._rng.integers(len(tokens) + 1) :]
        return tokens + self._rng.integers(0, self._vocab_size, n - len(tokens)).tolist()


def ask(scheduler: Scheduler, prompt: list[int], params: GenerationParams, **options: Any) -> Completion:
    return scheduler.submit(prompt, params, **options).result()


def facts(completion: Completion) -> tuple[object, ...]:
    stats = completion.stats
    return (
        completion.text,
        completion.token_ids,
        completion.finish_reason,
        completion.logprobs,
        stats.reused_tokens,
        stats.new_tokens,
    )


@given(
    config=st.sampled_from(
        [
            tiny_config(**HYBRID_ATTENTION | {"head_dim": 32, "sliding_window_size": 5}),
            tiny_config(**HYBRID_ATTENTION | {"head_dim": 32, "moe_num_active_primary_experts": 4}),
            behind_attention(tiny_config(**HYBRID_ATTENTION | {"head_dim": 32, "sliding_window_size": 3})),
            tiny_config(head_dim=32),
        ]
    ),
    quant=st.sampled_from(["q4_0", "q8_0", "f16"]),
    kv=st.sampled_from(["f16", "q8"]),
    chunk=st.sampled_from([3, 7, 64]),
    threads=st.integers(1, 2),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    repeat_penalty=st.sampled_from([1.0, 1.3]),
    logprobs=st.sampled_from([None, 0, 2]),
    look_ahead=st.booleans(),
    seed=st.integers(0, 1 << 16),
)
@settings(max_examples=12)
def test_any_proposals_leave_texts_conversations_and_what_is_learned_of_experts_as_they_were(
    config: Any,
    quant: str,
    kv: KvKind,
    chunk: int,
    threads: int,
    temperature: float,
    repeat_penalty: float,
    logprobs: int | None,
    look_ahead: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    slots = int(rng.integers(config.experts_per_token, config.num_records + 1))
    turns = [rng.integers(0, 256, rng.integers(1, 30)).tolist() for _ in range(3)]
    all_params = [
        GenerationParams(temperature=temperature, repeat_penalty=repeat_penalty, seed=seed, ignore_eos=True,
                         max_tokens=int(rng.integers(1, 40))) for _ in turns
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        store, _ = make_store(config, Path(folder), quant)

        def run(guesser: Guesser | None, right: Sequence[Completion] = ()) -> tuple[list[Completion], Any, Any, int]:
            options: Any = {"kv": kv, "chunk": chunk, "max_slots": slots, "threads": threads}
            with Engine(store, hot_set=False, look_ahead=look_ahead, speculation="off", **options) as engine:
                scheduler = Scheduler(engine, proposer=Proposer([guesser], None) if guesser else None)
                found: list[Completion] = []
                text: list[int] = []
                for turn, (new, params) in enumerate(zip(turns, all_params, strict=True)):
                    if guesser is not None:
                        guesser.right = right[turn].token_ids
                    found.append(ask(scheduler, text + new, params, logprobs=logprobs))
                    text += new + list(found[-1].token_ids)
                batches = scheduler.stats().speculation.batches
                scheduler.close()
                return found, engine.experts.uses(), engine.experts.hot_experts(), batches

        plain, uses, hot, none = run(None)
        guessed, guessed_uses, guessed_hot, batches = run(Guesser(seed, config.vocab_size), plain)
        # more may have been overwritten in a window: a turn may compute more of its beginning again, and use experts
        same_turns = [c.stats.reused_tokens for c in plain] == [c.stats.reused_tokens for c in guessed]
        assert not none and (batches or all(params.max_tokens == 1 for params in all_params) or chunk == 1)
        assert [facts(c)[:4] for c in guessed] == [facts(c)[:4] for c in plain]
        if same_turns:
            assert np.array_equal(guessed_uses, uses)
            assert np.array_equal(guessed_hot.view(np.uint32), hot.view(np.uint32))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_option_that_takes_every_match_writes_the_same_text_in_fewer_steps(
    hybrid_store: Path, temperature: float
) -> None:
    options: Any = {"max_tokens": 120, "seed": 1, "ignore_eos": True, "temperature": temperature, "top_k": 2}
    with LLM(hybrid_store, speculation="off") as llm:
        expected = llm.generate("The sea was calm. The sea was", **options)
    with LLM(hybrid_store, speculation="always") as llm:
        found = llm.generate("The sea was calm. The sea was", **options)
    assert facts(found) == facts(expected)
    assert found.stats.speculation.accepted <= found.stats.speculation.proposed
    assert found.stats.speculation.batches > 0 and expected.stats.speculation.batches == 0
    assert "proposed tokens" in found.stats.line() and "proposed tokens" not in expected.stats.line()
    assert found.stats.to_dict()["speculation"]["batches"] == found.stats.speculation.batches


def written(
    store: Path, params: GenerationParams, right: Sequence[int] = (), seed: int = 0, **options: Any
) -> tuple[Completion, list[int], int]:
    """The answer; the tokens that its conversation holds, and how many positions its state does. right: proposed, and
    else nothing is."""
    guesser = Guesser(seed)
    guesser.right = right
    with Engine(store, threads=1, speculation="off") as engine:
        scheduler = Scheduler(engine, proposer=Proposer([guesser], None) if right else None)
        completion = ask(scheduler, PROMPT, params, **options)
        scheduler.close()
        (kept,) = list(engine._conversations)
        return completion, kept.tokens, kept.state.length


def test_stop_strings_ends_of_text_and_limits_end_an_answer_within_a_batch_as_they_do_alone(hybrid_store: Path) -> None:
    free, held, length = written(hybrid_store, GenerationParams(max_tokens=60, seed=3, ignore_eos=True))
    assert len(held) == length == len(PROMPT) + 59
    stops = [free.text[at : at + 3] for at in (5, 20, 30)]
    for seed in range(8):
        for params in (
            *(GenerationParams(max_tokens=60, seed=3, ignore_eos=True, stop=stop) for stop in stops),
            *(GenerationParams(max_tokens=n, seed=3, ignore_eos=True) for n in (1, 2, 13)),
            GenerationParams(max_tokens=60, seed=3),
        ):
            plain, *held = written(hybrid_store, params)
            guessed, *guessed_held = written(hybrid_store, params, free.token_ids, seed)
            assert (facts(guessed), guessed_held) == (facts(plain), held), params


def test_a_logits_processor_sees_what_it_sees_alone(hybrid_store: Path) -> None:
    """As grammars and JSON schemas are."""
    seen: list[tuple[list[int], bytes]] = []

    def processor(ids: Sequence[int], logits: np.ndarray) -> None:
        seen.append((list(ids), logits.tobytes()))
        logits[len(ids) % 7 :: 7] = -np.inf

    params = GenerationParams(max_tokens=50, seed=3, ignore_eos=True)
    plain, *_ = written(hybrid_store, params, logits_processor=processor)
    expected, seen = seen, []
    guessed, *_ = written(hybrid_store, params, plain.token_ids, logits_processor=processor)
    assert facts(guessed) == facts(plain) and seen == expected


def test_a_logits_processor_that_fails_within_a_batch_leaves_what_it_leaves_alone(hybrid_store: Path) -> None:
    params = GenerationParams(max_tokens=50, seed=3, ignore_eos=True)
    right = written(hybrid_store, params)[0].token_ids
    for fails_at in (1, 5, 9, 20):

        def processor(ids: Sequence[int], logits: np.ndarray, at: int = fails_at) -> None:
            if len(ids) == at:
                raise ZeroDivisionError

        held: list[tuple[list[int], int]] = []
        for guesser in (None, Guesser(1)):
            with Engine(hybrid_store, threads=1, speculation="off") as engine:
                scheduler = Scheduler(engine, proposer=Proposer([guesser], None) if guesser else None)
                if guesser:
                    guesser.right = right
                with pytest.raises(ZeroDivisionError):
                    ask(scheduler, PROMPT, params, logits_processor=processor)
                scheduler.close()
                (kept,) = list(engine._conversations)
                held.append((kept.tokens, kept.state.length))
        assert held[0] == held[1]


def test_answers_written_side_by_side_are_not_speculated_and_the_last_one_alone_is(hybrid_store: Path) -> None:
    params = [GenerationParams(max_tokens=n, seed=1, ignore_eos=True, temperature=0) for n in (30, 90)]
    prompts = [PROMPT, PROMPT[:20]]
    with LLM(hybrid_store, speculation="off") as llm:
        expected = [ask(llm.scheduler, *asked).token_ids for asked in zip(prompts, params, strict=True)]
    with LLM(hybrid_store, sequences=2, speculation="always") as llm:
        requests = [llm.scheduler.submit(*asked) for asked in zip(prompts, params, strict=True)]
        assert [request.result().token_ids for request in requests] == expected


def test_saved_conversations_go_on_as_without_speculation(hybrid_store: Path, tmp_path: Path) -> None:
    params = GenerationParams(max_tokens=60, seed=3, ignore_eos=True, temperature=0)
    found = []
    for speculation in ("off", "always"):
        texts, prompt = [], PROMPT
        for _ in range(2):
            with LLM(hybrid_store, kv_dir=tmp_path / speculation, speculation=speculation) as llm:
                completion = ask(llm.scheduler, prompt, params)
                texts.append(completion.token_ids)
                prompt = [*prompt, *completion.token_ids, *b" and then"]
        assert completion.stats.reused_tokens > len(PROMPT)
        found.append(texts)
    assert found[0] == found[1]


def test_numbers_beyond_the_cache_s_range_in_rejected_tokens_are_forgotten(
    hybrid_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = GenerationParams(max_tokens=40, seed=3, ignore_eos=True)
    plain, held, _ = written(hybrid_store, params)
    verify, overflows = Engine.verify, []

    def overflowing(self: Engine, conversation: Any, tokens: Sequence[int], **options: Any) -> Any:
        logits = verify(self, conversation, tokens, **options)
        if len(overflows) < 5:
            overflows.append(len(tokens))
            conversation.state.bound[0].overflow = 1e6
            conversation.state.advance(0)
        return logits

    monkeypatch.setattr(Engine, "verify", overflowing)
    guessed, guessed_held, _ = written(hybrid_store, params, plain.token_ids)
    assert len(overflows) == 5 and facts(guessed) == facts(plain) and guessed_held == held


def test_a_cancelled_batch_leaves_nothing_behind(hybrid_store: Path) -> None:
    with Engine(hybrid_store, threads=1, max_slots=8) as engine:
        expected, _ = engine.prefill(PROMPT)
        engine.forget()
        engine.prefill(PROMPT[:-1])
        conversation = engine._current
        assert conversation is not None
        uses = engine.experts.uses()
        for tokens in ([PROMPT[-1], 7, 8], [PROMPT[-1], 9]):
            answers = iter([False, True])
            with pytest.raises(Exception, match="cancelled"):
                engine.verify(conversation, tokens, cancelled=lambda answers=answers: next(answers))  # type: ignore[misc]
        assert np.array_equal(engine.experts.uses(), uses) and conversation.state.length == len(PROMPT) - 1
        logits = engine.verify(conversation, [PROMPT[-1], 7, 8])
        engine.accept(conversation, [PROMPT[-1]])
        assert np.array_equal(logits[0].view(np.uint32), expected.view(np.uint32))
        assert conversation.tokens == PROMPT and conversation.state.length == len(PROMPT)


def test_a_wrong_option_is_refused(hybrid_store: Path) -> None:
    with pytest.raises(RequestError, match="speculation: expected"):
        LLM(hybrid_store, speculation="sometimes")  # type: ignore[arg-type]
