"""Every family against transformers: tiny random checkpoints that it wrote, read by us, give its logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_checkpoints import CASES, FULL, SLIDING, Made, make_checkpoint, transformers_logits
from hypothesis import given, settings
from hypothesis import strategies as st

from smallthinker.diagnosis.inspection import inspection_text
from smallthinker.engine import Engine
from smallthinker.errors import ConfigError
from smallthinker.expert_store.convert import convert
from smallthinker.expert_store.inspect import describe
from smallthinker.expert_store.sources.checkpoint import Checkpoint
from smallthinker.expert_store.store import Store
from smallthinker.expert_store.synthetic.byte_tokenizer import byte_tokenizer_files
from smallthinker.models import description as d
from smallthinker.models.keys import _IGNORED, Keys
from smallthinker.models.published import PUBLISHED as SHAPES
from smallthinker.models.registry import FAMILIES, parse_model, to_config
from smallthinker.models.rope_keys import rope, rope_keys
from smallthinker.models.supported import check_supported
from smallthinker.models.tensors import num_parameters
from smallthinker.reference import ReferenceModel

TOLERANCE, TOLERANCE_FLOAT32 = 3e-5, 1e-4  # transformers rounds norms and routers to float32 in any dtype
DENSE = [name for name, (kind, _) in CASES.items() if kind not in ("olmoe", "mixtral", "gpt_oss") and name != "wide"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes a case's checkpoint once."""
    done: dict[str, Made] = {}

    def make(name: str) -> Made:
        if name not in done:
            done[name] = make_checkpoint(name, tmp_path_factory.mktemp("family"))
        return done[name]

    return make


def ours(folder: Path, tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The reference's logits of the checkpoint as our source reads it."""
    with Checkpoint(folder) as source:
        model = ReferenceModel(source.config).to(dtype)
        with torch.no_grad():
            for name, weight in model.named_weights().items():
                weight.copy_(torch.from_numpy(source.read(name)))
            logits: torch.Tensor = model(tokens)[0][0]
    return logits


def raw_config(folder: Path) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return raw


def with_config(folder: Path, raw: dict[str, Any], into: Path) -> Path:
    """The same weights under another config.json."""
    into.mkdir()
    (into / "config.json").write_text(json.dumps(raw))
    (into / "model.safetensors").symlink_to(folder / "model.safetensors")
    return into


@pytest.mark.parametrize("name", CASES)
def test_the_reference_gives_transformers_logits(name: str, made: Any) -> None:
    case = made(name)
    assert (ours(case.folder, case.tokens, torch.float64) - case.logits).abs().max() < TOLERANCE
    in_float32 = transformers_logits(case.folder, case.tokens, torch.float32)
    assert (ours(case.folder, case.tokens, torch.float32) - in_float32).abs().max() < TOLERANCE_FLOAT32


@pytest.mark.parametrize("name", CASES)
def test_the_config_that_we_write_means_the_same_to_transformers_and_to_us(
    name: str, made: Any, tmp_path: Path
) -> None:
    case = made(name)
    model = parse_model(raw_config(case.folder))
    written = json.loads(json.dumps(to_config(model)))
    assert parse_model(written) == model
    folder = with_config(case.folder, written | {"pad_token_id": None}, tmp_path / "written")
    assert (transformers_logits(folder, case.tokens, torch.float64) - case.logits).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", DENSE)
def test_a_dense_network_in_slices_gives_the_same_logits(name: str, made: Any, tmp_path: Path) -> None:
    case = made(name)
    folder = with_config(case.folder, raw_config(case.folder) | {"num_mlp_slices": 3}, tmp_path / "sliced")
    with Checkpoint(folder) as source:
        slices = {layer.ffn.slices for layer in source.config.layers if layer.ffn and layer.ffn.router is None}
        assert slices <= {3, 6} and parse_model(to_config(source.config)) == source.config
    assert (ours(folder, case.tokens, torch.float64) - case.logits).abs().max() < TOLERANCE


# Where there are no experts, or no layer without positions and no chunks.
INERT = {
    "llama4": {"num_local_experts", "num_experts_per_tok"},
    "gemma4 experts": {"use_double_wide_mlp"},
    "gemma4 biases": {"num_experts", "top_k_experts", "moe_intermediate_size", "use_double_wide_mlp"},
    "gemma4 shared keys": {"num_experts", "top_k_experts", "moe_intermediate_size"},
    "gemma4 small": {"num_experts", "top_k_experts", "moe_intermediate_size"},
    "gemma4 narrow inputs": {"num_experts", "top_k_experts", "moe_intermediate_size", "use_double_wide_mlp"},
    "llama4 whole": {
        "num_local_experts", "num_experts_per_tok", "attention_chunk_size", "attn_temperature_tuning", "floor_scale",
        "attn_scale",
    },
}  # fmt: skip


def other_values(value: Any) -> list[Any]:
    """Some that mean something else."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value * 2, value + 1]
    if value is None:
        return [1, 0.5, True, {"factor": 2.0}]
    if isinstance(value, str):
        return ["gelu" if value != "gelu" else "relu", "unheard_of"]
    if isinstance(value, list):
        return [value[:-1], [*value[1:], *value[:1]], [1 - item if item in (0, 1) else item for item in value]]
    return [value | {key: item} for key, old in value.items() for item in other_values(old)] + [value | {"new": 1}]


@pytest.mark.parametrize("name", CASES)
def test_every_key_acts_or_is_refused_or_is_known_to_do_nothing(name: str, made: Any) -> None:
    raw = raw_config(made(name).folder)
    model, family = parse_model(raw), FAMILIES[CASES[name][0]]
    inert = {
        *_IGNORED, *getattr(family, "_IGNORED", ()), "bos_token_id", "eos_token_id",
        # where there is no window, or no dense layer, or layer_types says it
        "use_sliding_window", "sliding_window", "max_window_layers", "intermediate_size", "no_rope_layer_interval",
        "original_max_position_embeddings", "sliding_window_pattern",
        "interleave_moe_layer_step", *INERT.get(name, ()),
    }  # fmt: skip
    for key in set(raw) - inert:
        for value in other_values(raw[key]):
            if value == raw[key]:
                continue
            try:
                found = parse_model(raw | {key: value})
            except ConfigError:
                continue
            assert found != model, (key, value)
    with pytest.raises(ConfigError, match="a_key_of_next_year: unknown key"):
        parse_model(raw | {"a_key_of_next_year": 1})
    with pytest.raises(ConfigError, match="quantization_config"):
        parse_model(raw | {"quantization_config": {"quant_method": "fp8"}})


@pytest.mark.parametrize("kind", sorted({kind for kind, _ in CASES.values()}))
def test_absent_keys_mean_what_transformers_class_means(kind: str) -> None:
    """Our config.json of nothing but the architecture is that of the class's own defaults."""
    import transformers as hf

    said: dict[str, Any] = {"architectures": [FAMILIES[kind].ARCHITECTURE]}
    if kind == "glm4_moe":
        said["head_dim"] = 128  # the class's own don't fit its hidden_size
    defaults = hf.AutoConfig.for_model(kind, **said).to_dict()
    assert parse_model(said) == parse_model(defaults | said)


@pytest.mark.parametrize("name", CASES)
def test_positions_as_transformers_4_writes_them_mean_the_same(name: str, made: Any) -> None:
    raw = raw_config(made(name).folder)
    positions = raw.pop("rope_parameters")
    if CASES[name][0] == "gemma4_text":
        pytest.skip("transformers 4 doesn't know it")
    if CASES[name][0] == "gemma3_text":
        full, sliding = dict(positions[FULL]), positions[SLIDING]
        raw |= {"rope_theta": full.pop("rope_theta"), "rope_local_base_freq": sliding["rope_theta"]}
        raw["rope_scaling"] = None if full == {"rope_type": "default"} else full
        expected = raw_config(made(name).folder)
    else:
        part = {key: positions.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in positions}
        raw |= part | {"rope_scaling": positions}
        expected = raw_config(made(name).folder)
    assert parse_model(raw) == parse_model(expected)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
    | st.sampled_from([0, 1, 2, 64, 1e-6, 10**307, "default", "yarn", "longrope", "llama3", "proportional", 0.5, FULL,
                         SLIDING, "silu"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from([FULL, SLIDING, "rope_type", "factor", "rope_theta", "short_factor", "mscale",
                         "partial_rotary_factor"])
        | st.text(max_size=5), inner, max_size=4,
    ),
    max_leaves=6,
)  # fmt: skip
DEFAULTS = {
    kind: to_config(parse_model({"architectures": [family.ARCHITECTURE], "head_dim": 128}))
    for kind, family in FAMILIES.items()
    if kind not in ("described", "smallthinker")
}


@settings(max_examples=300)
@given(kind=st.sampled_from(sorted(DEFAULTS)), value=JSON, data=st.data())
def test_any_value_of_any_key_is_a_model_or_one_line(kind: str, value: Any, data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted({*DEFAULTS[kind], "rope_parameters", "mlp_only_layers"})), label="key")
    try:
        model = parse_model(DEFAULTS[kind] | {key: value})
    except ConfigError as e:
        refused = str(e)
    else:
        refused = ""
        assert parse_model(to_config(model)) == model
    assert len(refused) < 400 and refused.isprintable()


def test_any_number_of_turning_pairs_is_written_as_a_part_that_reads_as_it() -> None:
    """The part times the head's size is rounded down, as transformers does it."""
    for size in (44, 88, 90, 128):
        for turning in range(size // 2):
            positions = d.Rope(1e4, size, turning=turning)
            assert rope(Keys(rope_keys(positions, size), (), {}), size, 512, 1e4, partial=1.0) == positions


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, r"rope_scaling\.rope_type: expected .*'dynamic'"),
        ({"rope_scaling": {"rope_type": "linear"}}, r"rope_scaling\.factor: expected a positive number"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, r"rope_scaling\.low_freq_factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta": 1}}, r"rope_scaling\.beta: unknown key"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": 1}}, r"rope_scaling\.truncate"),
        ({"rope_scaling": {"rope_type": "default", "rope_theta": 5.0}, "rope_theta": 6.0}, "correct one of them"),
        ({"rope_scaling": {"rope_type": "default"}, "rope_parameters": {"rope_theta": 2.0}}, "correct one of them"),
        ({"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0]}}, "short_factor: expected a list of 64"),
        ({"rope_parameters": [1]}, "rope_parameters: expected an object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: only 1.0"),
        ({"hidden_act": "tanh"}, "hidden_act: expected 'silu' or"),
        ({"intermediate_size": 100}, "intermediate_size: expected a multiple of 16"),
        ({"num_mlp_slices": 7}, "num_mlp_slices: expected one that makes slices"),
        ({"hidden_size": 100}, "hidden_size: expected a multiple of 32"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3 does not divide"),
        ({"mlp_bias": None}, "mlp_bias: expected true or false"),
        ({"sliding_window": 9}, "sliding_window: unknown key"),
    ],
)  # fmt: skip
def test_what_llama_cannot_say_is_refused_by_its_key(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        parse_model({"architectures": ["LlamaForCausalLM"]} | changes)


@pytest.mark.parametrize(
    ("heads", "match"),
    [
        ({}, "the layers without a window"),
        ([1], "the layers without a window"),
        ({"0": {"head_dim": 64}}, "the layers without a window"),
        ({"5": {"head_dim": 64}, "9" * 5000: {"head_dim": 64}}, "the layers without a window"),
        ({"5": {"head_dim": 64, "hidden_size": 64}}, "one head_dim and num_key_value_heads"),
    ],
)  # fmt: skip
def test_heads_of_other_layers_than_gemma_4_has_are_refused(heads: Any, match: str) -> None:
    raw = {"architectures": ["Gemma4ForCausalLM"], "num_hidden_layers": 6}
    assert parse_model(raw | {"per_layer_config": {"5": {"head_dim": 64}}}).layers[5].attention.head_dim == 64
    with pytest.raises(ConfigError, match=f"^per_layer_config: expected {match}"):
        parse_model(raw | {"per_layer_config": heads})


def test_slices_make_records_of_one_to_four_megabytes() -> None:
    for hidden, width in ((576, 1536), (896, 4864), (1536, 8960), (2048, 8192), (4096, 14_336), (5120, 25_600)):
        raw = {"architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": width}
        ffn = parse_model(raw | {"head_dim": 64, "num_attention_heads": hidden // 64}).layers[0].ffn
        assert ffn is not None and ffn.width * ffn.slices == width and ffn.width % d.BLOCK == 0
        assert 1e6 < 3 * hidden * ffn.width * 4.5 / 8 < 4 << 20, (hidden, width)


PUBLISHED: dict[str, tuple[int, dict[str, Any]]] = {
    "Qwen3 30B-A3B": (30_532_122_624, SHAPES["qwen3-30b-a3b"]),
    "OLMoE": (6_919_161_856, SHAPES["olmoe"]),
    "gpt-oss 20B": (20_914_757_184, SHAPES["gpt-oss-20b"]),
    "Phi-3 mini": (3_821_079_552, {"architectures": ["Phi3ForCausalLM"]}),
    **{name: (count, SHAPES[name]) for name, count in {
        "qwen3-0.6b": 596_049_920, "qwen3-1.7b": 1_720_574_976, "qwen3-4b": 4_022_468_096,
        "qwen2.5-0.5b": 494_032_768, "qwen2.5-1.5b": 1_543_714_304, "llama-3.2-1b": 1_235_814_400,
        "llama-3.2-3b": 3_212_749_824, "llama-3.1-8b": 8_030_261_248, "smollm2-135m": 134_515_008,
        "smollm2-1.7b": 1_711_376_384, "smollm3-3b": 3_075_098_624, "gemma-3-270m": 268_098_176,
        "gemma-3-1b": 999_885_952, "phi-4-mini": 3_836_021_760, "mixtral-8x7b": 46_702_792_704,
    }.items()},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_shape_has_the_weights_that_its_files_have(name: str) -> None:
    count, raw = PUBLISHED[name]
    assert num_parameters(parse_model(raw)) == count


def stored(case: Made, folder: Path, quant: str) -> Path:
    """A store of the checkpoint, with a tokenizer."""
    model = parse_model(raw_config(case.folder))
    checkpoint = with_config(case.folder, raw_config(case.folder), folder / "checkpoint")
    for file, content in byte_tokenizer_files(model).items():
        (checkpoint / file).write_bytes(content)
    return convert(checkpoint, folder / "store", quant)


@pytest.mark.parametrize("name", CASES)
def test_every_family_becomes_a_store_and_runs_or_is_refused_by_a_field(name: str, made: Any, tmp_path: Path) -> None:
    case = made(name)
    model = parse_model(raw_config(case.folder))
    try:
        check_supported(model)
    except ConfigError:
        store = stored(case, tmp_path, "q8_0")
        with Store.open(store) as opened:
            assert model.family in inspection_text(describe(opened))
        with pytest.raises(ConfigError, match="this engine has no arithmetic for that"):
            Engine(store)
        return
    store = stored(case, tmp_path, "f32")
    with Store.open(store) as opened:
        assert model.family in inspection_text(describe(opened))
    with Engine(store) as engine:
        found = engine.all_logits(case.tokens[0].tolist())
    assert np.abs(found - case.logits.numpy()).max() < 3e-3 * float(case.logits.max() - case.logits.min())
