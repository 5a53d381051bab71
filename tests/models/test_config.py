from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_config

from smallthinker.errors import ConfigError
from smallthinker.models.families.smallthinker import ARCHITECTURE
from smallthinker.models.registry import parse_model, read_model, to_config
from smallthinker.models.tensors import num_parameters

# What transformers 4 writes of a configuration in full, and what 5 adds to one of its own.
TRANSFORMERS_4: dict[str, Any] = {
    "_attn_implementation_autoset": True, "_name_or_path": "somewhere", "add_cross_attention": False,
    "bad_words_ids": None, "begin_suppress_tokens": None, "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None, "decoder_start_token_id": None, "diversity_penalty": 0.0, "do_sample": False,
    "early_stopping": False, "encoder_no_repeat_ngram_size": 0, "exponential_decay_length_penalty": None,
    "finetuning_task": None, "forced_bos_token_id": None, "forced_eos_token_id": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "is_decoder": False, "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "length_penalty": 1.0, "max_length": 20, "min_length": 0,
    "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1,
    "output_attentions": False, "output_hidden_states": False, "output_scores": False, "pad_token_id": None,
    "prefix": None, "problem_type": None, "pruned_heads": {}, "remove_invalid_values": False,
    "repetition_penalty": 1.0, "return_dict": True, "return_dict_in_generate": False, "sep_token_id": None,
    "suppress_tokens": None, "task_specific_params": None, "temperature": 1.0, "tf_legacy_loss": False,
    "tie_encoder_decoder": False, "top_k": 50, "top_p": 1.0, "torchscript": False, "transformers_version": "4.53.3",
    "typical_p": 1.0, "use_bfloat16": False,
}  # fmt: skip
TRANSFORMERS_5: dict[str, Any] = {
    "attention_bias": False, "dtype": "bfloat16", "is_decoder": False, "model_type": "smallthinker",
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "problem_type": None,
    "rope_parameters": {"rope_theta": 1500000.0, "rope_type": "default"}, "sliding_window": 4096,
    "transformers_version": "5.24.0", "layer_types": ["full_attention", *["sliding_attention"] * 3] * 13,
}  # fmt: skip
OTHER_KEYS = {
    "hidden_act", "quantization_config", "per_layer_config", "moe_layer_layout", "num_experts_per_tok",
    "sliding_window_pattern", "moe_primary_router_apply_softmax", "partial_rotary_factor",
}  # fmt: skip
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 2, 64, 128, 4096, 1e-6, 10**307, "default", "", "full_attention", "rope_theta"])
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
) | st.lists(st.sampled_from([0, 1]), min_size=32, max_size=32)
PUBLISHED = Path(__file__).parent / "published"


def published(name: str) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads((PUBLISHED / f"{name}.config.json").read_text())
    return raw


KNOWN_KEYS = {*published("21b"), *published("4b"), *TRANSFORMERS_4, *TRANSFORMERS_5, *OTHER_KEYS}


def test_the_published_4b_config_is_understood() -> None:
    config = read_model(PUBLISHED / "4b.config.json")
    assert (config.hidden_size, config.num_layers, config.layers[0].attention.head_dim) == (1536, 32, 128)
    assert {layer.router.score for layer in config.layers} == {"sigmoid"}  # the key is absent
    assert config.head.tied
    assert all(layer.attention.rope and not layer.attention.window for layer in config.layers)
    assert config.tokens.eos == (151643, 151645)
    assert num_parameters(config) == 4_035_085_824


def test_the_published_21b_config_is_understood() -> None:
    config = read_model(PUBLISHED / "21b.config.json")  # has no model_type
    assert (config.experts_per_layer, config.experts_per_token) == (64, 6)
    assert {layer.router.score for layer in config.layers} == {"softmax"} and not config.head.tied
    assert [layer.attention.rope is not None for layer in config.layers[:5]] == [False, True, True, True, False]
    assert [layer.attention.window for layer in config.layers[:2]] == [0, 4096]
    assert num_parameters(config) == 21_506_562_560


def test_absent_keys_mean_what_the_published_configuration_class_means() -> None:
    config = parse_model({"architectures": [ARCHITECTURE]})
    assert config == parse_model(published("4b") | {"rope_theta": 1e6, "max_position_embeddings": 131_072})
    raw = published("21b")
    del raw["sliding_window_size"], raw["num_key_value_heads"], raw["tie_word_embeddings"]
    config = parse_model(raw)
    attention = config.layers[1].attention
    assert (attention.window, attention.kv_heads, config.head.tied) == (4096, 2, True)


def test_a_smaller_vocabulary_lacks_the_class_s_tokens() -> None:
    config = parse_model(published("4b") | {"vocab_size": 300, "eos_token_id": 7, "bos_token_id": None})
    assert (config.tokens.eos, config.tokens.bos) == ((7,), None)
    raw = published("4b") | {"vocab_size": 151_644}
    del raw["eos_token_id"], raw["bos_token_id"]
    assert parse_model(raw).tokens.eos == (151_643,)
    assert parse_model(raw | {"vocab_size": 300}).tokens.eos == ()


def test_absent_keys_mean_in_a_store_what_they_meant_to_its_writer() -> None:
    raw = published("4b")
    for key in ("rope_theta", "eos_token_id", "bos_token_id", "tie_word_embeddings", "num_key_value_heads", "head_dim"):
        del raw[key]
    config = parse_model(raw, in_store=True)
    attention = config.layers[0].attention
    assert attention.rope is not None and attention.rope.theta == 1.5e6
    assert (config.tokens.eos, config.tokens.bos) == ((), None)
    assert (config.head.tied, attention.kv_heads, attention.head_dim) == (False, 12, 128)
    assert parse_model(raw | {"rope_theta": None}, in_store=True) == config


def test_keys_that_transformers_adds_change_nothing() -> None:
    plain = parse_model(published("21b"))
    types = ["full_attention", "sliding_attention", "sliding_attention", "sliding_attention"] * 13
    for added in (
        TRANSFORMERS_4,
        TRANSFORMERS_5 | {"rope_theta": None},
        {"sliding_window": 4096, "sliding_window_pattern": [0, 1, 1, 1] * 13, "layer_types": types},
        {"rope_scaling": {"rope_type": "default"}},
        {"rope_scaling": {"type": "default", "rope_theta": 1.5e6}, "rope_theta": 1500000},
        {"rope_parameters": {"full_attention": {"rope_theta": 1.5e6}, "sliding_attention": {"rope_type": "default"}}},
        {"rope_parameters": {"rope_theta": None, "partial_rotary_factor": 1.0}, "partial_rotary_factor": 1},
        {"num_experts_per_tok": 6, "num_local_experts": 64, "moe_intermediate_size": 768, "use_qk_norm": False},
        {"model_type": ""},
        {"model_type": "smallthinker", "architectures": None},
    ):
        assert parse_model(published("21b") | added) == plain


@pytest.mark.parametrize(
    ("added", "match"),
    [
        ({"rope_parameters": {"rope_theta": 1e4}}, r"rope_parameters\.rope_theta: expected 1\.5e\+06 as rope_th"),
        ({"rope_parameters": {"rope_type": "yarn"}}, r"rope_parameters\.rope_type: only 'default' is supported"),
        ({"rope_parameters": {"factor": 2.0}}, r"rope_parameters\.factor: unknown key"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, r"partial_rotary_factor: only 1\.0"),
        ({"rope_parameters": [1e6]}, "rope_parameters: expected an object"),
        ({"rope_parameters": {"sliding_attention": {"rope_theta": 1e4}}}, r"sliding_attention\.rope_theta: exp"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling.*only 'default'"),
        ({"layer_types": ["full_attention"] * 52}, "layer_types: expected .* as sliding_window_layout says"),
        ({"layer_types": ["full_attention"]}, "layer_types: .*sliding_window_layout"),
        ({"sliding_window": 1024}, "sliding_window: expected 4096 as sliding_window_size says, found 1024"),
        ({"sliding_window_pattern": 4}, "sliding_window_pattern: .*sliding_window_layout"),
        ({"attention_bias": True}, "attention_bias: only False is supported, found True"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config: only none is supported"),
        ({"per_layer_config": {"0": {"head_dim": 64}}}, "per_layer_config"),
        ({"num_experts_per_tok": 4}, "num_experts_per_tok: expected 6 as moe_num_active_primary_experts says"),
        ({"model_type": "qwen3_moe"}, "model_type: expected 'smallthinker', found 'qwen3_moe'"),
        ({"hidden_size": 10**5000}, "hidden_size: .*found a value of type int"),
        ({"rope_theta": 10**400}, "rope_theta: expected a positive number"),
        ({"\x1b[2J" * 99: 1}, r"^\\x1b\[2J.{0,160}$"),
    ],
)  # fmt: skip
def test_what_would_be_another_model_is_refused_by_its_key(added: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as refused:
        parse_model(published("21b") | added)
    assert len(str(refused.value)) < 300 and str(refused.value).isprintable()


@settings(max_examples=200)
@given(key=st.sampled_from(sorted(KNOWN_KEYS)) | st.text(max_size=9), value=JSON)
def test_any_value_of_any_key_means_what_it_says_or_is_one_line(key: str, value: Any) -> None:
    raw = published("4b")
    plain = to_config(parse_model(raw))
    refused, config = "", None
    try:
        config = parse_model(raw | {key: value})
    except ConfigError as e:
        refused = str(e)
    assert len(refused) < 300 and refused.isprintable()
    if config is not None:
        found = to_config(config)
        meant = {key: value} if key in plain and found[key] != plain[key] else {}
        if "eos_token_id" in meant:
            meant["eos_token_id"] = list(dict.fromkeys(value)) if isinstance(value, list) else [value]
        if value is None and meant:
            meant = {key: {"num_key_value_heads": 12, "rope_theta": 1e6, "eos_token_id": [], "bos_token_id": None}[key]}
        assert found == plain | meant


def test_to_dict_gives_back_an_equal_config() -> None:
    for config in (tiny_config(), parse_model(published("21b"))):
        assert parse_model(to_config(config)) == config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architectures", ["BloomForCausalLM"]),
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
        parse_model(raw)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"a": ' * 5000, "\udcff"])
def test_a_file_that_is_no_config_is_an_error_with_its_path(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_model(path)
