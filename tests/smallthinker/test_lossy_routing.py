"""What may be lossy is so only where it was asked for, in answers alone, and is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import HYBRID_ATTENTION, make_store, tiny_config

from smallthinker import LLM
from smallthinker.engine import Engine
from smallthinker.errors import RequestError
from smallthinker.forward import Observers
from smallthinker.lossy_routing import LossyRouting, RoutingCounters
from smallthinker.options import EngineOptions
from smallthinker.server.openai.usage import timings

CONFIG = tiny_config(**HYBRID_ATTENTION)
K = CONFIG.experts_per_token
PROMPT = list(range(40))
ANSWER = np.random.default_rng(1).integers(0, 256, 30).tolist()
FEW = K + 3  # slots, of one cache for all layers


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, _ = make_store(CONFIG, tmp_path_factory.mktemp("lossy"), "q8_0")
    return path


def run(store: Path, **options: Any) -> tuple[np.ndarray, np.ndarray, RoutingCounters | None, int]:
    """Logits after the prompt, logits of the answer, what was lossy, and the answer's misses."""
    with Engine(store, memory="1GiB", **options) as engine:
        prompt, _ = engine.prefill(PROMPT)
        before = engine.experts.counters()
        answer = np.stack([engine.decode(token) for token in ANSWER])
        return prompt, answer, engine.routing_counters(), (engine.experts.counters() - before).misses


def test_with_everything_in_memory_only_fewer_experts_change_anything(store: Path) -> None:
    _, exact, none, _ = run(store)
    assert none is None
    _, answer, counters, _ = run(store, lossy_prefer=5.0, lossy_skip=1.0)
    assert np.array_equal(answer, exact)
    assert counters == RoutingCounters(len(ANSWER) * CONFIG.num_layers * K, 0, 0)
    _, answer, counters, _ = run(store, lossy_experts=K)
    assert np.array_equal(answer, exact) and counters is not None and counters.left_out == 0
    _, answer, counters, _ = run(store, lossy_experts=1)
    assert not np.array_equal(answer, exact) and np.isfinite(answer).all()
    assert counters is not None and counters.left_out == len(ANSWER) * CONFIG.num_layers * (K - 1)


@pytest.mark.parametrize("lossy", [{"lossy_prefer": 0.5}, {"lossy_skip": 0.9}, {"lossy_experts": 1}], ids=str)
def test_answers_miss_less_and_prompts_are_computed_exactly(store: Path, lossy: dict[str, Any]) -> None:
    prompt, exact, _, misses = run(store, max_slots=FEW, look_ahead=False)
    same, answer, counters, fewer = run(store, max_slots=FEW, look_ahead=False, **lossy)
    assert np.array_equal(same, prompt)
    assert np.isfinite(answer).all() and not np.array_equal(answer, exact)
    assert fewer < misses
    assert counters is not None
    assert (counters.replaced > 0) == ("lossy_prefer" in lossy)
    assert (counters.left_out > 0) == ("lossy_prefer" not in lossy)


def test_of_what_is_left_out_the_others_take_the_weight(store: Path) -> None:
    """With one expert a token the sum of a layer's weights stays what it was: all of it is the best one's."""
    weights: list[np.ndarray] = []
    with Engine(store, memory="1GiB", lossy_experts=1) as engine:
        engine.prefill(PROMPT)
        engine.observe(Observers(routed=lambda layer, x, route: weights.append(route.weights.copy())))
        engine.decode(ANSWER[0])
    assert len(weights) == CONFIG.num_layers
    for found in weights:
        assert found[0, 1:].tolist() == [0] * (K - 1)
        assert found[0, 0] == pytest.approx(1, abs=1e-5)


def test_an_answer_says_how_lossy_it_was(store: Path) -> None:
    with LLM(store, memory="1GiB", max_slots=FEW, lossy_prefer=0.5) as llm:
        stats = llm.generate("Once upon a time", max_tokens=12).stats
    assert stats.lossy_routing is not None and stats.lossy_routing.replaced > 0
    assert "lossy routing" in stats.line()
    assert stats.to_dict()["lossy_routing"]["replaced"] == stats.lossy_routing.replaced
    assert stats.speculation.batches == 0
    assert timings(stats)["lossy"] == {"routing": stats.to_dict()["lossy_routing"]}
    with LLM(store, memory="1GiB", max_slots=FEW) as llm:
        assert "lossy" not in timings(llm.generate("Once upon a time", max_tokens=2).stats)


@pytest.mark.parametrize(
    "wrong", [{"lossy_prefer": -1.0}, {"lossy_skip": 1.5}, {"lossy_experts": 0}, {"lossy_skip": float("nan")}], ids=str
)
def test_settings_without_meaning_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        EngineOptions(**wrong)


def test_exact_options_have_nothing_lossy() -> None:
    lossy = EngineOptions(lossy_experts=2, lossy_prefer=0.1, lossy_skip=0.2, kv="q8")
    assert lossy.is_lossy and not lossy.exact().is_lossy and lossy.exact().kv == "f16"
    said = "at most 2 experts, prefers what is in memory by 0.1, skips what is missing below 0.2"
    assert str(lossy.lossy_routing) == said
    assert not LossyRouting()
