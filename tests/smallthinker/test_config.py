from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from models import tiny_config

from smallthinker.config import ModelConfig
from smallthinker.errors import ConfigError

PUBLISHED = Path(__file__).parent / "published"


def published(name: str) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads((PUBLISHED / f"{name}.config.json").read_text())
    return raw


def test_the_published_4b_config_is_understood() -> None:
    config = ModelConfig.from_json(PUBLISHED / "4b.config.json")
    assert (config.hidden_size, config.num_hidden_layers, config.head_dim) == (1536, 32, 128)
    assert not config.router_softmax  # the key is absent
    assert config.tie_word_embeddings
    assert all(config.use_rope) and not any(config.use_window)
    assert config.eos_token_ids == (151643, 151645)
    assert config.num_parameters == 4_035_085_824


def test_the_published_21b_config_is_understood() -> None:
    config = ModelConfig.from_json(PUBLISHED / "21b.config.json")  # has no model_type
    assert (config.moe_num_primary_experts, config.moe_num_active_primary_experts) == (64, 6)
    assert config.router_softmax and not config.tie_word_embeddings
    assert config.use_rope[:5] == (False, True, True, True, False)
    assert (config.window(0), config.window(1)) == (0, 4096)
    assert config.num_parameters == 21_506_562_560


def test_absent_keys_take_the_architecture_s_defaults() -> None:
    raw = published("4b")
    for key in (
        "rope_layout",
        "sliding_window_layout",
        "sliding_window_size",
        "rope_theta",
        "rms_norm_eps",
        "eos_token_id",
        "bos_token_id",
        "norm_topk_prob",
        "rope_scaling",
    ):
        del raw[key]
    config = ModelConfig.from_dict(raw)
    assert all(config.use_rope) and not any(config.use_window)
    assert (config.rope_theta, config.rms_norm_eps, config.eos_token_ids) == (1.5e6, 1e-6, ())


def test_to_dict_gives_back_an_equal_config() -> None:
    for config in (tiny_config(), ModelConfig.from_dict(published("21b"))):
        assert ModelConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architectures", ["LlamaForCausalLM"]),
        ("hidden_size", None),
        ("hidden_size", "1536"),
        ("hidden_size", -1),
        ("hidden_size", 10**12),
        ("hidden_size", True),
        ("hidden_size", 1540),
        ("moe_ffn_hidden_size", 100),
        ("num_key_value_heads", 5),
        ("moe_num_active_primary_experts", 33),
        ("head_dim", 127),
        ("rope_layout", [1, 0]),
        ("rope_layout", [2] * 32),
        ("rope_layout", "all"),
        ("sliding_window_layout", [1] * 31),
        ("rope_scaling", {"type": "yarn"}),
        ("norm_topk_prob", False),
        ("hidden_act", "silu"),
        ("moe_primary_router_apply_softmax", "yes"),
        ("rms_norm_eps", 0),
        ("rope_theta", float("inf")),
        ("rope_theta", float("nan")),
        ("eos_token_id", [151936]),
        ("eos_token_id", "end"),
        ("bos_token_id", -1),
        ("tie_word_embeddings", 1),
        ("a_key_of_next_year", 1),
    ],
)
def test_a_bad_value_is_an_error_that_names_the_key(key: str, value: Any) -> None:
    raw = published("4b") | {key: value}
    with pytest.raises(ConfigError, match=key):
        ModelConfig.from_dict(raw)


def test_a_window_without_a_size_is_contradictory() -> None:
    raw = published("21b")
    del raw["sliding_window_size"]
    with pytest.raises(ConfigError, match="sliding_window_size"):
        ModelConfig.from_dict(raw)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"a": ' * 5000, "\udcff"])
def test_a_file_that_is_no_config_is_an_error_with_its_path(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=r"config\.json"):
        ModelConfig.from_json(path)
