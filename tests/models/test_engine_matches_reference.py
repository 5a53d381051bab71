"""The engine against the torch reference, on stores that hold the reference's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import DENSE_ATTENTION, HYBRID_ATTENTION, make_store, tiny_config

from smallthinker.engine import Engine

TOLERANCE = {"f16": 3e-3, "q8_0": 5e-2}  # of the logits' range; seen: 7e-4 and 2e-2

KINDS: dict[str, dict[str, Any]] = {
    "4b kind": DENSE_ATTENTION,
    "21b kind, past the window": HYBRID_ATTENTION,
    "heads not a power of two": {
        **HYBRID_ATTENTION,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 32,
    },
    "one key head, wide head": {**DENSE_ATTENTION, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 32},
    "4b kind, untied": {**DENSE_ATTENTION, "tie_word_embeddings": False},
    "21b kind, tied": {**HYBRID_ATTENTION, "tie_word_embeddings": True},
    "every expert active": {**DENSE_ATTENTION, "moe_num_active_primary_experts": 8},
    "ffn and experts odd": {**HYBRID_ATTENTION, "moe_num_primary_experts": 5, "moe_ffn_hidden_size": 96},
}


def tokens(count: int, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, count).tolist()


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference at any position, relative to that position's range of logits."""
    spread = expected.max(-1) - expected.min(-1)
    return float((np.abs(found - expected).max(-1) / spread).max())


@pytest.mark.parametrize("kind", KINDS)
def test_prefill_and_decode_logits_match_at_every_position(kind: str, tmp_path: Path) -> None:
    store, model = make_store(tiny_config(**KINDS[kind]), tmp_path, "f16")
    prompt = tokens(40)
    with torch.no_grad():
        expected = model(torch.tensor([prompt]))[0][0].numpy()
    with Engine(store, max_slots=4) as engine:
        assert relative_error(engine.all_logits(prompt), expected) < TOLERANCE["f16"]
        stepwise = [engine.prefill(prompt[:5])[0], *(engine.decode(t) for t in prompt[5:])]
        assert relative_error(np.stack(stepwise), expected[4:]) < TOLERANCE["f16"]


def test_a_quantised_store_stays_near_the_reference(tmp_path: Path) -> None:
    """q8_0 rounds weights and activations: looser, but a wrong scale or layout would be off by the whole range."""
    store, model = make_store(tiny_config(moe_num_active_primary_experts=8), tmp_path, "q8_0")
    prompt = tokens(24)
    with torch.no_grad():
        expected = model(torch.tensor([prompt]))[0][0].numpy()
    with Engine(store) as engine:
        assert relative_error(engine.all_logits(prompt), expected) < TOLERANCE["q8_0"]


@pytest.mark.parametrize("kind", ["4b kind", "21b kind, past the window"])
def test_a_q8_kv_cache_stays_near_the_reference_but_is_not_it(kind: str, tmp_path: Path) -> None:
    all_active = {"head_dim": 32, "moe_num_active_primary_experts": 8}  # or a rounding could choose another expert
    store, model = make_store(tiny_config(**KINDS[kind] | all_active), tmp_path, "f16")
    prompt = tokens(40)
    with torch.no_grad():
        expected = model(torch.tensor([prompt]))[0][0].numpy()
    with Engine(store, kv="f16") as f16, Engine(store, kv="q8") as q8:
        assert relative_error(f16.all_logits(prompt), expected) < relative_error(q8.all_logits(prompt), expected)
        assert relative_error(q8.all_logits(prompt), expected) < TOLERANCE["q8_0"]
        assert q8.plan.kv_bytes * 32 == f16.plan.kv_bytes * 17
