"""Keys and values beyond what the KV cache's numbers hold: said, of the answer that has them and of no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_models import HYBRID_ATTENTION, random_reference, tiny_config, write_checkpoint

from smallthinker import LLM
from smallthinker.engine import Engine
from smallthinker.errors import RequestError
from smallthinker.expert_store.convert import convert

ORDINARY, LOUD = "The sea was calm", "The sea was LOUD"
MakeStore = Callable[[float], Path]


@pytest.fixture(scope="module")
def make_store(tmp_path_factory: pytest.TempPathFactory) -> MakeStore:
    """A model whose first layer makes of the letter L values about as large as is asked for."""

    def make(size: float) -> Path:
        import torch

        model = random_reference(tiny_config(**HYBRID_ATTENTION, head_dim=32))
        weights = model.named_weights()
        with torch.no_grad():
            weights["embed_tokens"][:, 0] = 0
            weights["embed_tokens"][ord("L")] = 0
            weights["embed_tokens"][ord("L"), 0] = 1  # its norm: 8, the root of the hidden size
            weights["layers.0.input_layernorm"][0] = size / 80
            weights["layers.0.v_proj"][:, 0] = 10
        folder = tmp_path_factory.mktemp("loud")
        return convert(write_checkpoint(model, folder / "checkpoint"), folder / "store", "f16")

    return make


def test_an_answer_with_a_value_beyond_f16_says_so_and_no_other_is_touched(make_store: MakeStore) -> None:
    options = {"max_tokens": 8, "seed": 1, "ignore_eos": True}
    with LLM(make_store(1e5), sequences=2) as llm:
        alone = llm.generate(ORDINARY, **options)  # type: ignore[arg-type]
        for _ in range(2):  # nothing of a conversation that holds infinities is continued
            ordinary, loud = llm.submit(ORDINARY, **options), llm.submit(LOUD, **options)  # type: ignore[arg-type]
            with pytest.raises(
                RequestError, match=r"kv: expected .* 65504.* found 9\d+\.\d in layer 0; kv q8 holds it"
            ):
                loud.result()
            assert ordinary.result().token_ids == alone.token_ids


def test_q8_holds_what_f16_does_not(make_store: MakeStore) -> None:
    with LLM(make_store(1e5), kv="q8") as llm:
        assert llm.generate(LOUD, max_tokens=8, seed=1, ignore_eos=True).stats.new_tokens == 8


def test_what_no_cache_holds_is_said_without_that_advice(make_store: MakeStore) -> None:
    store = make_store(1e9)
    for kind in ("f16", "q8"):
        with (
            LLM(store, kv=kind) as llm,
            pytest.raises(RequestError, match=f"largest number in {kind}.*smallthinker verify"),
        ):  # type: ignore[arg-type]
            llm.generate(LOUD, max_tokens=8)


def test_a_caller_with_one_conversation_is_told_too_and_can_go_on(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(1e5)
    with Engine(store, kv_dir=tmp_path / "saved") as engine:
        ordinary, loud = engine.tokenizer.encode(ORDINARY), engine.tokenizer.encode(LOUD)
        expected, _ = engine.prefill(ordinary)
        for call in (engine.prefill, engine.all_logits):
            with pytest.raises(RequestError, match="kv q8 holds it"):
                call(loud)
        assert np.array_equal(engine.prefill(ordinary)[0], expected)
        engine.prefill(loud[:-4])
        with pytest.raises(RequestError, match="kv q8 holds it"):
            engine.decode(ord("L"))
    with Engine(store, kv_dir=tmp_path / "saved") as engine, pytest.raises(RequestError, match="kv q8 holds it"):
        engine.prefill([*loud[:-3], *ordinary])  # nothing with infinities was saved
