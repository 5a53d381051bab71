"""A draft model proposes; no text depends on it, and what it takes is inside the budget and the account."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_models import HYBRID_ATTENTION, make_store, tiny_config

from smallthinker import LLM
from smallthinker.engine import Engine
from smallthinker.errors import MemoryBudgetError, RequestError, StoreFormatError
from smallthinker.generation.speculation.draft_model import DraftModel
from smallthinker.options import EngineOptions

PROMPT = "The sea was calm and the sky"


@pytest.fixture(scope="module")
def draft_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config(num_hidden_layers=1, rope_layout=[1], sliding_window_layout=[0])
    return make_store(config, tmp_path_factory.mktemp("draft"), "q8_0", seed=3)[0]


@pytest.fixture
def draft(hybrid_store: Path) -> Iterator[DraftModel]:
    """Whose clock goes on by a thousandth at each look."""
    ticks = iter(range(1 << 30))
    with Engine(hybrid_store, threads=1, context=200, speculation="off") as engine:
        yield DraftModel(engine, lambda: next(ticks) / 1000)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("is_itself", [True, False])
def test_a_draft_of_any_quality_leaves_the_text_as_it_is(
    hybrid_store: Path, draft_store: Path, temperature: float, is_itself: bool
) -> None:
    options: Any = {"max_tokens": 60, "seed": 1, "ignore_eos": True, "temperature": temperature, "repeat_penalty": 1.1}
    with LLM(hybrid_store, speculation="off") as llm:
        expected = [llm.generate(prompt, **options).token_ids for prompt in (PROMPT, PROMPT + " was", "Once")]
    other = hybrid_store if is_itself else draft_store
    with LLM(hybrid_store, speculation="always", draft=other) as llm:
        found = [llm.generate(prompt, **options) for prompt in (PROMPT, PROMPT + " was", "Once")]
    assert [completion.token_ids for completion in found] == expected
    assert all(completion.stats.speculation.batches for completion in found)
    with LLM(hybrid_store, draft=other) as llm:
        assert [llm.generate(prompt, **options).token_ids for prompt in (PROMPT, PROMPT + " was", "Once")] == expected


def test_a_model_that_is_its_own_draft_is_right(draft: DraftModel, hybrid_store: Path) -> None:
    prompt = list(PROMPT.encode())
    with Engine(hybrid_store, threads=1, speculation="off") as engine:
        logits, _ = engine.prefill(prompt)
        expected = []
        for _ in range(6):
            expected.append(int(logits.argmax()))
            logits = engine.decode(expected[-1])
    draft.begin()
    ids: list[int] = []
    while len(ids) < 6:
        assert draft.offer(prompt, ids, math.inf) is not None
        proposed = draft.propose(3)
        assert 1 <= len(proposed) <= 3
        ids += proposed[:2]  # the third was wrong, say
        assert ids[:6] == expected[: len(ids)]


def test_of_a_long_text_only_as_much_is_read_as_is_afforded(draft: DraftModel) -> None:
    prompt = list(range(150))
    draft.begin()
    each = draft._sec_read
    assert draft.offer(prompt, [], 20 * each) is None  # ten tokens say too little
    offer = draft.offer(prompt, [], 80 * each)
    assert offer is not None and offer.sec_first == pytest.approx(39 * each)
    draft.propose(2)
    assert (draft._first, draft._read) == (110, 150)
    draft._sec_read = each
    offer = draft.offer(prompt, [7, 8, 9], 0.0)  # it goes on, whatever is afforded; the account has the last word
    assert offer is not None and (draft._first, draft._read) == (110, 150)
    assert draft.offer(prompt, [7] * 9, 0.0) is None and draft._read == 150
    draft.offer(prompt, [7, 8, 9], 1000 * each)  # and begins at the beginning once that is afforded
    assert (draft._first, draft._read) == (0, 0)


def test_a_text_longer_than_the_draft_s_context_is_read_from_a_later_place(draft: DraftModel) -> None:
    draft.begin()
    prompt = [i % 250 for i in range(180)]
    for length in range(0, 300, 4):
        assert draft.offer(prompt, list(range(length % 250)) * 2, math.inf) is not None
        assert 1 <= len(draft.propose(12)) <= 12
        draft.begin() if length % 40 == 0 else None


def test_another_vocabulary_is_refused_in_a_line(hybrid_store: Path, tmp_path: Path) -> None:
    other, _ = make_store(tiny_config(**HYBRID_ATTENTION), tmp_path, "q4_0")
    tokenizer = other / "tokenizer.json"
    text = tokenizer.read_text()
    assert '"a"' in text and '"b"' in text
    (other / "manifest.json").unlink()  # which would say that the file was damaged
    tokenizer.write_text(text.replace('"a"', '"\\u0000"').replace('"b"', '"a"').replace('"\\u0000"', '"b"'))
    with pytest.raises(
        RequestError, match=r"draft: expected the model's own vocabulary, found token \d+ to be 'b' instead"
    ):
        LLM(hybrid_store, draft=other)


def test_a_draft_that_does_not_fit_or_is_not_there_is_refused(hybrid_store: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreFormatError):
        LLM(hybrid_store, draft=tmp_path / "nowhere")
    with pytest.raises(RequestError, match="draft: has no meaning with speculation off"):
        LLM(hybrid_store, draft=hybrid_store, speculation="off")
    with pytest.raises(MemoryBudgetError, match=r"draft: .* of this model alone: memory: 20 MiB is below the floor"):
        LLM(hybrid_store, draft=hybrid_store, memory="20MiB")


def test_the_draft_s_memory_is_planned_inside_the_budget(hybrid_store: Path) -> None:
    options = EngineOptions(draft=hybrid_store)
    draft = DraftModel.load(options)
    assert draft.reserved_bytes > 0
    draft.close()
    with LLM(hybrid_store, memory="2GiB") as llm:
        alone = llm.plan.interpreter_bytes
    with LLM(hybrid_store, memory="2GiB", draft=hybrid_store) as llm:
        assert llm.plan.interpreter_bytes > alone
