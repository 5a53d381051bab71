"""Which formats a conversion gives a store's matrices, and that kept blocks mean what they meant in the file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reading import unpack_expert

from smallthinker import _kernels
from smallthinker.errors import CheckpointError, ConfigError
from smallthinker.expert_store.convert import convert, open_checkpoint
from smallthinker.expert_store.format import Formats
from smallthinker.expert_store.own_formats import formats_of
from smallthinker.expert_store.store import Store
from smallthinker.expert_store.synthetic.synth import synth
from smallthinker.llm import LLM
from smallthinker.models.description import Head
from smallthinker.models.published import PUBLISHED
from smallthinker.models.registry import parse_model

gguf = pytest.importorskip("gguf", reason="needs smallthinker[gguf]")

from gguf_files import write_gguf  # noqa: E402
from tiny_model import TINY  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*taken")
WIDE = TINY | {"hidden_size": 256, "moe_ffn_hidden_size": 256, "num_attention_heads": 16}
KINDS = ("Q4_K", "Q6_K", "Q5_K", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS", "Q2_K", "Q3_K", "MXFP4")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    (folder / "config.json").write_text(json.dumps(WIDE))
    return synth(str(folder / "config.json"), folder / "checkpoint", "none")


def random_blocks(kind: Any, shape: tuple[int, ...], seed: int) -> np.ndarray[Any, Any]:
    """Of any levels, with scales small enough for an answer."""
    size, nbytes = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (int(np.prod(shape)) // size, nbytes), dtype=np.uint8)
    halves: tuple[int, ...] = (0, 2) if kind.name in ("Q4_1", "Q5_1", "Q4_K", "Q5_K") else (0,)
    halves = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "TQ2_0": (64,), "MXFP4": ()}.get(kind.name, halves)
    for at in halves:
        blocks[:, at : at + 2] = rng.uniform(-1e-4, 1e-4, len(blocks)).astype("<f2").view(np.uint8).reshape(-1, 2)
    if kind.name == "MXFP4":
        blocks[:, 0] = 118
    return blocks.reshape(*shape[:-1], -1)


def mixed_file(checkpoint: Path, path: Path, kinds: tuple[str, ...]) -> Path:
    """A GGUF file whose matrices have these kinds in turn."""
    plain = gguf.GGUFReader(write_gguf(checkpoint, path.with_name("plain.gguf")))
    matrices = [t for t in plain.tensors if len(t.shape) > 1 and "gate_inp" not in t.name]
    tensors = {}
    for number, tensor in enumerate(matrices):
        kind = gguf.GGMLQuantizationType[kinds[number % len(kinds)]]
        tensors[tensor.name] = random_blocks(kind, tuple(reversed(tensor.shape.tolist())), number), kind
    return write_gguf(checkpoint, path, tensors=tensors)


@pytest.mark.parametrize("quant", [None, "keep"])
def test_a_file_of_many_formats_stays_what_it_is_to_the_bit(
    checkpoint: Path, tmp_path: Path, quant: str | None
) -> None:
    path = mixed_file(checkpoint, tmp_path / "mixed.gguf", KINDS)
    source = open_checkpoint(path)
    with Store.open(convert(path, tmp_path / "store", quant)) as store:
        store.verify()
        found = set()
        for name in store.dense_names():
            spec = store.dense_spec(name)
            if spec.quant not in (None, "f32"):
                found.add(spec.quant)
                kept = _kernels.unpack(spec.quant, "tiles", store.dense(name).copy(), *spec.shape)
                np.testing.assert_array_equal(kept, source.read(name))
        for layer in range(2):
            for role, kept in zip(("gate", "up", "down"), unpack_expert(store, layer, 1), strict=True):
                np.testing.assert_array_equal(kept, source.read(f"layers.{layer}.{role}.1"))
            found.update(store.formats.of_experts(layer))
        assert found == {kind.lower() for kind in KINDS}
    with LLM(tmp_path / "store", memory="4GiB") as llm:
        answer = llm.generate("a sea", max_tokens=8, ignore_eos=True, temperature=0)
    assert len(answer.token_ids) == 8


def test_numbers_become_the_default_format_and_stay_when_told(checkpoint: Path, tmp_path: Path) -> None:
    path = write_gguf(checkpoint, tmp_path / "numbers.gguf", "F16")
    for quant, expected in ((None, "q4_0"), ("keep", "f16"), ("q8_0", "q8_0")):
        with Store.open(convert(path, tmp_path / f"store-{quant}", quant)) as store:
            assert str(store.formats) == expected
    with Store.open(convert(checkpoint, tmp_path / "bf16", "keep")) as store:
        assert str(store.formats) == "bf16"


def test_a_format_that_no_kernel_reads_becomes_the_default_and_says_so(checkpoint: Path, tmp_path: Path) -> None:
    path = mixed_file(checkpoint, tmp_path / "rare.gguf", ("TQ2_0", "Q4_K"))
    notes: list[str] = []
    with Store.open(convert(path, tmp_path / "store", notice=notes.append)) as store:
        assert {store.formats.quant, *store.formats.others.values()} == {"q4_0", "q4_k"}
    assert any("matrices can't stay as they are" in note and "q4_0" in note for note in notes)


def test_a_block_whose_scale_is_no_number_is_told_by_the_tensor(checkpoint: Path, tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.Q4_K
    raw = random_blocks(kind, (256, 256), 0)
    raw[7, 2:4] = np.array([np.inf], "<f2").view(np.uint8)  # a min
    path = write_gguf(checkpoint, tmp_path / "bad.gguf", tensors={"blk.0.attn_q.weight": (raw, kind)})
    with pytest.raises(CheckpointError, match="expected finite scales of q4_k blocks"):
        convert(path, tmp_path / "store")


def test_formats_that_cannot_be_made_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"quantisation: expected one of .*q4_k.*, found 'q5_1'"):
        convert(checkpoint, tmp_path / "store", "q5_1")
    with pytest.raises(ConfigError, match=r"quantisation: expected one of .*q4_k_m, found 'mxfp4'"):
        convert(checkpoint, tmp_path / "store", "mxfp4")
    with pytest.raises(ConfigError, match=r"down: expected columns in multiples of 256 for q4_k, found 96"):
        Formats("q4_k").check(parse_model(WIDE | {"moe_ffn_hidden_size": 96}))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(("quant", "expected"), [("q4_k", "q4_k, down q4_0"), ("q6_k", "q6_k, down q8_0")])
def test_rows_that_are_no_whole_blocks_of_256_become_blocks_of_32(tmp_path: Path, quant: str, expected: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(WIDE | {"moe_ffn_hidden_size": 96}))
    narrow, notes = synth(str(tmp_path / "config.json"), tmp_path / "narrow", "none"), list[str]()
    with Store.open(convert(narrow, tmp_path / "store", quant, notice=notes.append)) as store:
        assert str(store.formats) == expected
    assert any("multiples of 256" in note and expected in note for note in notes)


def test_a_mix_gives_the_head_more_bits_and_leaves_neurons_that_can_be_skipped_in_rows() -> None:
    model, dense = parse_model(WIDE), parse_model(PUBLISHED["olmoe"])
    attention = "k_proj q4_k, lm_head q6_k, o_proj q4_k, q_proj q4_k, v_proj q6_k"
    assert str(formats_of(model, "q4_k_m")) == f"q4_0, embed_tokens q4_k, {attention}"
    assert str(formats_of(dense, "q4_k_m")) == "q4_k, down q6_k, lm_head q6_k, v_proj q6_k"
    assert str(formats_of(dense, "q4_k_s")) == "q4_k, lm_head q6_k"
    tied = formats_of(replace(dense, head=Head(tied=True)), "q4_k_m")
    assert str(tied) == "q4_k, down q6_k, embed_tokens q6_k, v_proj q6_k"
    assert str(formats_of(model, "mxfp4")) == (
        "mxfp4, embed_tokens q8_0, k_proj q8_0, lm_head q8_0, o_proj q8_0, q_proj q8_0, v_proj q8_0"
    )


def test_a_store_in_q4_k_and_q6_k_answers(checkpoint: Path, tmp_path: Path) -> None:
    for quant in ("q4_k", "q6_k"):
        with LLM(convert(checkpoint, tmp_path / quant, quant), memory="4GiB") as llm:
            assert len(llm.generate("a sea", max_tokens=8, ignore_eos=True, temperature=0).token_ids) == 8


def test_four_bits_are_blocks_of_256_where_a_model_can_use_them() -> None:
    def named(shape: str) -> str:
        model = parse_model(PUBLISHED[shape])
        assert formats_of(model, "q4") in (formats_of(model, "q4_0"), formats_of(model, "q4_k_s"))
        return "q4_0" if formats_of(model, "q4") == formats_of(model, "q4_0") else "q4_k_s"

    assert {shape: named(shape) for shape in ("qwen3-30b-a3b", "llama-3.2-1b")} == {
        "qwen3-30b-a3b": "q4_k_s",
        "llama-3.2-1b": "q4_k_s",
    }
    assert named("4b") == "q4_0"  # of which dead neurons stay unread
    assert named("smollm2-135m") == "q4_0"  # 576 columns
