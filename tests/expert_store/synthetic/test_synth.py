"""Synthetic models: deterministic, of the promised statistics, with a tokenizer that round-trips any text."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import TINY
from tokenizers import Tokenizer

from smallthinker import _kernels
from smallthinker.errors import ConfigError
from smallthinker.expert_store.convert import convert
from smallthinker.expert_store.sources.checkpoint import Checkpoint
from smallthinker.expert_store.store import Store
from smallthinker.expert_store.synthetic.byte_tokenizer import byte_tokenizer_files
from smallthinker.expert_store.synthetic.synth import QUANTS, synth
from smallthinker.models.published import PUBLISHED
from smallthinker.models.registry import parse_model, read_model
from smallthinker.models.tensors import num_parameters
from smallthinker.prediction.needs import find_model, weight_bytes


def test_a_seed_gives_the_same_bytes_and_another_seed_others(tiny_config: Path, tmp_path: Path) -> None:
    a, b, c = (synth(str(tiny_config), tmp_path / name, "q4_0", seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    for name in ("dense.safetensors", "experts.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes() != (c / name).read_bytes()


WIDE = TINY | {"hidden_size": 256, "moe_ffn_hidden_size": 256, "num_attention_heads": 16}  # whole blocks of 256


@pytest.fixture
def config(tmp_path: Path, quant: str) -> str:
    """Whose matrices all can have the format."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY if quant in ("q4_0", "q8_0", "bf16", "f16", "f32") else WIDE))
    return str(path)


@pytest.mark.parametrize("quant", QUANTS)
def test_weights_are_zero_mean_of_the_stated_size_and_half_of_the_gates_are_zero(
    config: str, tmp_path: Path, quant: str
) -> None:
    store = Store.open(synth(config, tmp_path / "store", quant))
    store.verify()
    assert find_model(config, quant).formats == store.formats
    assert weight_bytes(store.config, quant) == (store.dense_bytes, store.record_bytes)
    rng, root = np.random.default_rng(0), store.config.hidden_size**0.5
    for name, std in (("embed_tokens", 2 / root), ("layers.1.q_proj", 0.8 / root), ("layers.0.o_proj", 0.1 / root)):
        spec = store.dense_spec(name)
        assert spec.quant is not None
        weights = _kernels.unpack(spec.quant, "tiles", store.dense(name).copy(), *spec.shape)
        assert abs(weights.mean()) < 4 * std / weights.size**0.5
        assert weights.std() == pytest.approx(std, rel=0.05)
    raw = store.experts_file.path.read_bytes()
    hidden, ffn = store.config.hidden_size, store.config.ffn_width
    zero = []
    for index in range(store.num_experts):
        record = np.frombuffer(raw, np.uint8, store.record_bytes, store.record_offset(index))
        kind = store.formats.of_experts(0)[0]
        nbytes = _kernels.packed_bytes(kind, "tiles", ffn, hidden)
        gate = _kernels.unpack(kind, "tiles", record[:nbytes].copy(), ffn, hidden)
        zero.append(np.mean(rng.standard_normal((50, hidden)) @ gate.T <= 0))
    assert np.mean(zero) == pytest.approx(0.5, abs=0.03)


def test_rows_of_padding_are_zero_so_that_repacking_gives_the_same_weights(tiny_store: Path) -> None:
    store = Store.open(tiny_store)
    spec = store.dense_spec("embed_tokens")
    padded = _kernels.unpack("q4_0", "tiles", store.dense("embed_tokens").copy(), 304, spec.shape[1])
    assert not padded[300:].any()
    assert padded[:300].any(axis=1).all()


def test_a_checkpoint_and_its_shards_are_those_of_the_config(tiny_config: Path, tmp_path: Path) -> None:
    path = synth(str(tiny_config), tmp_path / "checkpoint", "none", shard_bytes=100_000)
    with Checkpoint(path) as source:
        assert source.config == read_model(tiny_config)
        assert np.array_equal(source.read("norm"), np.ones(64))
    index = json.loads((path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in path.glob("model-*.safetensors")}
    synth(str(tiny_config), path, "none", force=True)  # a checkpoint may be replaced too
    assert (path / "model.safetensors").exists()


@pytest.mark.parametrize(("name", "parameters"), [("4b", 4_035_085_824), ("21b", 21_506_562_560)])
def test_the_published_configs_are_valid_and_of_the_known_size(name: str, parameters: int) -> None:
    assert num_parameters(parse_model(PUBLISHED[name])) == parameters


@pytest.mark.parametrize(
    ("shape", "quant", "seed"),
    [("5b", "q4_0", 0), ("4b", "q5_0", 0), ("4b", "q4_0", -1), ("no/config.json", "none", 0)],
)
def test_unknown_shapes_and_quantisations_are_refused(tmp_path: Path, shape: str, quant: str, seed: int) -> None:
    with pytest.raises(ConfigError, match="expected"):
        synth(shape, tmp_path / "store", quant, seed)
    assert not (tmp_path / "store").exists()


def tokenizer(**changes: object) -> Tokenizer:
    files = byte_tokenizer_files(parse_model(TINY | changes))
    return Tokenizer.from_str(files["tokenizer.json"].decode())


@given(st.text())
def test_any_text_survives_the_byte_tokenizer(text: str) -> None:
    t = tokenizer()
    ids = t.encode(text, add_special_tokens=False).ids
    assert t.decode(ids, skip_special_tokens=False) == text
    assert "<|" in text or len(ids) == len(text.encode())


@pytest.mark.parametrize("ends", [[297, 299], [299], 0, [3, 1], None, [299, 297, 298]])
def test_special_tokens_take_the_configured_ids(ends: object) -> None:
    t = tokenizer(eos_token_id=ends)
    first = ends[0] if isinstance(ends, list) else 299 if ends is None else ends
    assert t.token_to_id("<|endoftext|>") == first
    if isinstance(ends, list) and len(ends) > 1:
        assert t.token_to_id("<|im_end|>") == ends[1]
    ids = t.encode("hi<|im_start|>").ids
    assert ids[-1] == t.token_to_id("<|im_start|>")
    assert len(ids) == 3
    assert t.decode(t.encode("hi").ids) == "hi"


def test_ids_without_a_token_decode_to_nothing() -> None:
    t = tokenizer(vocab_size=151_936)
    assert t.decode([*t.encode("a").ids, 150_000, *t.encode("b").ids]) == "ab"


def test_a_vocabulary_too_small_for_bytes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"vocab_size: expected at least 259"):
        tokenizer(vocab_size=200, eos_token_id=[198, 199])


def unpacked(store: Store, name: str) -> np.ndarray:
    spec = store.dense_spec(name)
    assert spec.quant is not None
    return _kernels.unpack(spec.quant, "tiles", store.dense(name).copy(), *spec.shape)


@pytest.mark.parametrize("quant", QUANTS)
def test_a_skew_rides_on_a_coordinate_that_no_layer_touches(config: str, tmp_path: Path, quant: str) -> None:
    store = Store.open(synth(config, tmp_path / "store", quant, skew=1.3))
    embedding = unpacked(store, "embed_tokens")
    assert len(set(embedding[:, 0].tolist())) == 1 and embedding[0, 0] > 0
    assert np.std(embedding[:, 1]) > 0
    raw = store.experts_file.path.read_bytes()
    layout = store.record_layouts[0]
    assert layout is not None
    part = layout.sections[2]
    for layer in range(store.config.num_layers):
        output = unpacked(store, f"layers.{layer}.o_proj")
        assert not output[0].any() and output[1:].any(1).all()
        bias = unpacked(store, f"layers.{layer}.router")[:, 0] * embedding[0, 0]
        assert bias.mean() == pytest.approx(0, abs=1e-6)
    for index in range(store.num_experts):
        record = np.frombuffer(raw, np.uint8, store.record_bytes, store.record_offset(index))
        packed = record[part.offset :][: part.nbytes].copy()
        down = _kernels.unpack(part.quant, part.layout, packed, part.rows, part.cols)
        down = down if part.is_transposed else down.T
        assert not down[:, 0].any() and down[:, 1:].any(0).all()


def test_a_skewed_checkpoint_converts_to_the_same_biases_as_a_skewed_store(tiny_config: Path, tmp_path: Path) -> None:
    direct = Store.open(synth(str(tiny_config), tmp_path / "direct", "f16", 5, skew=2))
    checkpoint = synth(str(tiny_config), tmp_path / "checkpoint", "none", 5, skew=2)
    converted = Store.open(convert(checkpoint, tmp_path / "converted", "f16"))
    biases = [
        unpacked(store, "layers.1.router")[:, 0] * unpacked(store, "embed_tokens")[0, 0]
        for store in (direct, converted)
    ]
    assert biases[1] == pytest.approx(biases[0], rel=0.02)
    assert not unpacked(converted, "layers.1.o_proj")[0].any()


def test_without_skew_the_bytes_are_those_that_earlier_versions_wrote(tiny_config: Path, tmp_path: Path) -> None:
    path = synth(str(tiny_config), tmp_path / "store", "q4_0", 3)
    crcs = []
    for name in ("dense.safetensors", "experts.safetensors"):
        raw = (path / name).read_bytes()
        crcs.append(zlib.crc32(raw[8 + int.from_bytes(raw[:8], "little") :]))
    assert crcs == [0x25C2CD66, 0x5FE46279]


@pytest.mark.parametrize("skew", [-0.1, 17.0, float("nan"), float("inf")])
def test_a_skew_without_meaning_is_refused(tiny_config: Path, tmp_path: Path, skew: float) -> None:
    with pytest.raises(ConfigError, match="skew: expected a number from 0 to 16, found"):
        synth(str(tiny_config), tmp_path / "store", "q4_0", skew=skew)
