"""Converting GGUF: the same store as from the same values in safetensors, blocks kept bit by bit, clear refusals."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reading import unpack_expert
from tiny_model import TINY
from tiny_models import DENSE_ATTENTION, HYBRID_ATTENTION, tiny_config

from smallthinker import _kernels
from smallthinker.cli import main
from smallthinker.errors import CheckpointError, ConfigError
from smallthinker.expert_store.convert import convert, open_checkpoint
from smallthinker.expert_store.sources.checkpoint import Checkpoint
from smallthinker.expert_store.sources.gguf_checkpoint import GgufCheckpoint
from smallthinker.expert_store.store import Store
from smallthinker.expert_store.synthetic.synth import synth
from smallthinker.llm import LLM
from smallthinker.models.description import Model
from smallthinker.models.families.smallthinker import gguf_notes
from smallthinker.models.gguf_keys import GgufKeys
from smallthinker.models.published import PUBLISHED
from smallthinker.models.registry import checkpoint_tensors, parse_model, read_model, to_config
from smallthinker.text.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf", reason="needs smallthinker[gguf]")

from gguf_files import CHAT_TEMPLATE, rounded_checkpoint, write_gguf  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*taken")
Run = Callable[..., subprocess.CompletedProcess[str]]
WEIGHTS = ("dense.safetensors", "experts.safetensors")
KINDS = {"tied": DENSE_ATTENTION, "untied": HYBRID_ATTENTION | {"sliding_window_size": 12}}


def synthetic(folder: Path, config: Model | dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    raw = config if isinstance(config, dict) else to_config(config)
    (folder / "config.json").write_text(json.dumps(raw))
    return synth(str(folder / "config.json"), folder / "checkpoint", "none")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Untied, with windows; gate, up and down are no squares."""
    return synthetic(tmp_path / "source", tiny_config(**KINDS["untied"], moe_ffn_hidden_size=96))


def same_weights(a: Path, b: Path) -> bool:
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in WEIGHTS)


@pytest.mark.parametrize("quant", ["q4_0", "q8_0", "f16", "f32"])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
@pytest.mark.parametrize("model", KINDS)
def test_the_store_is_that_of_the_same_values_in_safetensors(tmp_path: Path, model: str, kind: str, quant: str) -> None:
    whole_tiles = {"vocab_size": 304}  # padding rows of kept blocks are other zeros
    checkpoint = synthetic(tmp_path / "source", tiny_config(**KINDS[model] | whole_tiles))
    rounded_checkpoint(checkpoint, kind)
    direct = convert(checkpoint, tmp_path / "direct", quant)
    store = convert(write_gguf(checkpoint, tmp_path / "tiny.gguf", kind), tmp_path / "store", quant)
    assert same_weights(direct, store)
    with Store.open(store) as opened:
        opened.verify()
        assert opened.config == read_model(checkpoint / "config.json")


@pytest.mark.parametrize("model", KINDS)
def test_the_engine_answers_from_a_converted_gguf_as_from_safetensors(tmp_path: Path, model: str) -> None:
    checkpoint = synthetic(tmp_path / "source", tiny_config(**KINDS[model]))
    rounded_checkpoint(checkpoint, "Q8_0")
    stores = [
        convert(checkpoint, tmp_path / "direct", "q4_0"),
        convert(write_gguf(checkpoint, tmp_path / "tiny.gguf", "Q8_0"), tmp_path / "store", "q4_0"),
    ]
    answers = []
    for store in stores:
        with LLM(store, memory="4GiB") as llm:
            answers.append(llm.generate("a sea", max_tokens=24, ignore_eos=True, temperature=0).token_ids)
    assert answers[0] == answers[1] and len(answers[0]) == 24


def test_a_vector_in_blocks_is_read_as_values(checkpoint: Path, tmp_path: Path) -> None:
    quantized = gguf.quantize(np.linspace(0.5, 1.5, 64, dtype=np.float32)[None], gguf.GGMLQuantizationType.Q4_0)
    tensors = {"blk.0.attn_norm.weight": (quantized[0], gguf.GGMLQuantizationType.Q4_0)}
    with closing(GgufCheckpoint(write_gguf(checkpoint, tmp_path / "tiny.gguf", "Q4_0", tensors=tensors))) as source:
        found = source.read("layers.0.input_layernorm")
        assert np.array_equal(found, gguf.dequantize(quantized, gguf.GGMLQuantizationType.Q4_0)[0])
        assert source.blocks("layers.0.input_layernorm", "q4_0") is None


@pytest.mark.parametrize(("kind", "quant"), [("Q4_0", "q4_0"), ("Q8_0", "q8_0")])
@pytest.mark.parametrize("transposed_down", [False, True])
def test_blocks_of_the_same_format_keep_every_value_whatever_chose_their_scales(
    checkpoint: Path, tmp_path: Path, kind: str, quant: str, transposed_down: bool
) -> None:
    """Scales as an importance matrix finds them: no block's largest weight is at the end of the range."""
    rng = np.random.default_rng(7)
    qtype = gguf.GGMLQuantizationType[kind]

    def blocks(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        count = int(np.prod(shape)) // 32
        made = np.empty((count, 2 + (16 if kind == "Q4_0" else 32)), np.uint8)
        made[:, :2] = rng.uniform(-0.1, 0.1, count).astype("<f2").view(np.uint8).reshape(-1, 2)
        low, high = (4, 12) if kind == "Q4_0" else (-90, 91)
        levels = rng.integers(low, high, (count, 32))
        made[:, 2:] = levels[:, :16] | levels[:, 16:] << 4 if kind == "Q4_0" else levels.astype(np.int8).view(np.uint8)
        made[::5, :2] = 0  # and some of zeros, which are one and the same to us
        return made.reshape(*shape[:-1], -1)

    shapes = {t.name: tuple(reversed(t.shape.tolist())) for t in gguf.GGUFReader(write_gguf(
        checkpoint, tmp_path / "plain.gguf", transposed_down=transposed_down)).tensors}  # fmt: skip
    made = {n: blocks(s) for n, s in shapes.items() if len(s) > 1 and "gate_inp" not in n}
    path = write_gguf(
        checkpoint,
        tmp_path / "tiny.gguf",
        tensors={name: (raw, qtype) for name, raw in made.items()},
        transposed_down=transposed_down,
    )
    exact = convert(path, tmp_path / "exact", "f32")
    kept = convert(path, tmp_path / "kept", quant)
    with Store.open(exact) as of_values, Store.open(kept) as of_blocks:
        for name in of_values.dense_names():
            spec, expected = of_blocks.dense_spec(name), of_values.dense(name)
            found = of_blocks.dense(name)
            if spec.quant == quant:
                found = _kernels.unpack(quant, "tiles", found.copy(), *spec.shape)  # type: ignore[arg-type]
                expected = _kernels.unpack("f32", "tiles", expected.copy(), *spec.shape)
            assert np.array_equal(found, expected), name
        for expert in range(of_values.config.experts_per_layer):
            parts = zip(unpack_expert(of_values, 1, expert), unpack_expert(of_blocks, 1, expert), strict=True)
            same = [np.array_equal(expected, found) for expected, found in parts]
            # down's blocks lie along F in the file and along d in a store, unless it is stored transposed
            assert same == [True, True, transposed_down]


def test_a_level_that_no_rounding_gives_stays_as_it_is(checkpoint: Path, tmp_path: Path) -> None:
    with Checkpoint(checkpoint) as source:
        q = source.read("layers.0.q_proj")
    raw = gguf.quantize(q, gguf.GGMLQuantizationType.Q8_0)
    raw[0, 2] = 0x80
    path = write_gguf(
        checkpoint, tmp_path / "tiny.gguf", tensors={"blk.0.attn_q.weight": (raw, gguf.GGMLQuantizationType.Q8_0)}
    )
    store = convert(path, tmp_path / "store", "q8_0")
    with Store.open(store) as opened:
        spec = opened.dense_spec("layers.0.q_proj")
        found = _kernels.unpack("q8_0", "tiles", opened.dense("layers.0.q_proj").copy(), *spec.shape)
    np.testing.assert_array_equal(found, gguf.dequantize(raw, gguf.GGMLQuantizationType.Q8_0))


def test_a_file_as_powerinfer_makes_it_is_read(tmp_path: Path) -> None:
    """down transposed, a predictor of the head, and no word about gates that are sigmoids."""
    checkpoint = synthetic(tmp_path / "source", tiny_config(**KINDS["tied"]))
    path = write_gguf(
        checkpoint,
        tmp_path / "tiny.gguf",
        metadata={"smallthinker.expert_gating_func": None},
        tensors={"lm_head_profiler.weight": np.zeros((1, 77), np.int8)},
        transposed_down=True,
    )
    notes: list[str] = []
    store = convert(path, tmp_path / "store", "q4_0", notice=notes.append)
    assert str(path) in notes[0] and "smallthinker.expert_gating_func: missing, taken as sigmoid" in notes[0]
    assert same_weights(store, convert(checkpoint, tmp_path / "direct", "q4_0", notice=notes.append))
    with Store.open(store) as opened:
        assert opened.config.layers[0].router.score == "sigmoid"


@pytest.mark.parametrize(("model", "said"), [("tied", "no layer taken"), ("untied", "the first of every four layers")])
def test_a_layout_that_a_gguf_file_cannot_say_otherwise_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, said: str
) -> None:
    path = write_gguf(synthetic(tmp_path / "source", tiny_config(**KINDS[model])), tmp_path / "tiny.gguf")
    with pytest.warns(UserWarning, match=f"attention.sliding_window: {said}"):
        convert(path, tmp_path / "store", "q4_0")
    assert main(["convert", str(path), str(tmp_path / "again"), "--json"]) == 0
    out, error = capsys.readouterr()
    (note,) = json.loads(out)["notes"]
    assert said in note and error == f"note: {note}\n"


def test_nothing_is_said_of_the_published_models_layouts() -> None:
    keys = GgufKeys({"smallthinker.expert_gating_func": 1}, "smallthinker", "x.gguf")
    for shape in ("4b", "21b"):
        config = parse_model(PUBLISHED[shape])
        assert gguf_notes(keys, config) == ()
        other = replace(config, layers=config.layers[:-1])
        assert "sliding_window" in gguf_notes(keys, other)[0]


def test_all_parts_of_a_split_model_are_read(checkpoint: Path, tmp_path: Path) -> None:
    whole = convert(write_gguf(checkpoint, tmp_path / "tiny.gguf"), tmp_path / "whole", "q8_0")
    first = write_gguf(checkpoint, tmp_path / "parts.gguf", part_tensors=9)
    parts = sorted(tmp_path.glob("parts-*.gguf"))
    assert len(parts) > 2 and parts[0] == first
    assert same_weights(convert(first, tmp_path / "store", "q8_0"), whole)

    def refused(path: Path, match: str) -> None:
        with pytest.raises(CheckpointError, match=match):
            convert(path, tmp_path / "none", "q8_0")

    refused(parts[1], f"expected the first of 1 to .*found part 2 of .*give {first.name}")
    content = parts[1].read_bytes()
    parts[1].write_bytes(parts[2].read_bytes())
    refused(first, r"expected split\.no 1 and split\.count \d, found 2 and")
    parts[1].unlink()
    refused(first, f"{parts[1].name}: cannot read: No such file .*side by side")
    parts[1].write_bytes(content)
    first.rename(tmp_path / "alone.gguf")
    refused(tmp_path / "alone.gguf", r"expected split\.no 0 and split\.count 1, found 0 and")


def test_the_tokenizer_and_the_chat_template_are_the_files_own(checkpoint: Path, tmp_path: Path) -> None:
    store = convert(write_gguf(checkpoint, tmp_path / "tiny.gguf"), tmp_path / "store", "q4_0")
    old, new = Tokenizer(checkpoint, 300), Tokenizer(store, 300)
    text = "It's 12 o'clock,\n\n  über <|im_end|> <tool>! "
    assert new.encode(text, special_tokens=True) == old.encode(text, special_tokens=True)
    assert new.decode(new.encode("cafe\u0301")) == "caf\u00e9"  # the normal form C
    (he, ll, o) = new.encode("hello")
    assert new.decode([he, ll, o]) == "hello"
    assert new.render_chat([{"role": "user", "content": "x"}]) == "user: x\nassistant:"
    settings = json.loads((store / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == CHAT_TEMPLATE and settings["eos_token"] == "<|endoftext|>"


def test_templates_by_name_are_kept(checkpoint: Path, tmp_path: Path) -> None:
    named = {"tokenizer.chat_templates": ["tool_use"], "tokenizer.chat_template.tool_use": "{{ tools | length }} tools"}
    store = convert(write_gguf(checkpoint, tmp_path / "tiny.gguf", metadata=named), tmp_path / "store", "q4_0")
    tokenizer = Tokenizer(store, 300)
    assert tokenizer.render_chat([{"role": "user", "content": "x"}]) == "user: x\nassistant:"
    assert tokenizer.render_chat([{"role": "user", "content": "x"}], tools=[{}]) == "1 tools"


def test_without_a_template_or_ends_the_store_is_whole_and_ends_are_found_by_name(
    checkpoint: Path, tmp_path: Path
) -> None:
    path = write_gguf(
        checkpoint,
        tmp_path / "tiny.gguf",
        metadata={"tokenizer.chat_template": None, "tokenizer.ggml.eos_token_id": None},
    )
    with Store.open(convert(path, tmp_path / "store", "q4_0")) as store:
        assert store.config.tokens.eos == (298, 299)
    assert "chat_template" not in json.loads((tmp_path / "store" / "tokenizer_config.json").read_text())


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ({"smallthinker.block_count": None}, r"smallthinker\.block_count: expected an integer, found nothing"),
        ({"smallthinker.block_count": 3}, r"unknown tensor 'blk\.3\."),
        ({"smallthinker.block_count": 5}, r"expected tensor 'blk\.4\.attn_norm\.weight' \[64\], found none"),
        ({"smallthinker.block_count": 2**31}, "num_hidden_layers: expected an integer from 1 to 1024"),
        ({"smallthinker.embedding_length": 128}, r"'token_embd\.weight': expected shape \[300, 128\].*found \[300, 64"),
        ({"smallthinker.expert_count": 7}, r"'blk\.0\.ffn_gate_inp\.weight': expected shape \[7, 64\]"),
        ({"smallthinker.attention.head_count": 0}, "num_attention_heads: expected an integer from 1"),
        ({"smallthinker.attention.head_count_kv": [2, 2, 2, 2]}, r"head_count_kv: expected an integer, found \[2, 2"),
        ({"smallthinker.attention.value_length": 8}, r"value_length: expected 16 \(attention\.key_length\), found 8"),
        ({"smallthinker.rope.dimension_count": 8}, r"rope\.dimension_count: expected 16 .*found 8"),
        ({"smallthinker.rope.freq_base": None}, r"rope\.freq_base: expected a number, found nothing"),
        ({"smallthinker.rope.freq_base_swa": 5.0}, r"rope\.freq_base_swa: expected 10000\.0 .*found 5"),
        ({"smallthinker.rope.scaling.type": "yarn"}, r"rope\.scaling\.type: expected 'none', found 'yarn'"),
        ({"smallthinker.expert_gating_func": None}, r"gating_func: expected 1 \(softmax\) or 2 .*found nothing"),
        ({"smallthinker.expert_gating_func": 3}, r"expected 1 \(softmax\) or 2 \(sigmoid\), found 3"),
        ({"smallthinker.expert_shared_count": 1}, "expert_shared_count: expected 0, found 1"),
        ({"smallthinker.attention.sliding_window_pattern": 2}, "expected 4: no window in the first of every four"),
        ({"smallthinker.vocab_size": 301}, r"vocab_size: expected 300 \(tokens\), found 301"),
        ({"smallthinker.logit_scale": 2.0}, r"smallthinker\.logit_scale: unknown key"),
        ({"tokenizer.ggml.model": "bert"}, r"tokenizer\.ggml\.model: expected 'gpt2' or .*, found 'bert'; convert"),
        ({"tokenizer.ggml.pre": "bloom"}, r"tokenizer\.ggml\.pre: expected 'qwen2' or .*, found 'bloom'"),
        ({"tokenizer.ggml.tokens": None}, r"ggml\.tokens: expected a list of texts, found nothing"),
        ({"tokenizer.ggml.token_type": [1, 3]}, r"token_type: expected 300 entries, one a token, found 2"),
        ({"tokenizer.ggml.merges": ["h e", "a  b"]}, r"merges: expected two tokens that make a third, found 'a  b'"),
        ({"tokenizer.ggml.merges": ["a b"]}, "two tokens that make a third, found 'a b'"),
        ({"tokenizer.ggml.merges": [1, 2]}, r"merges: expected a list of texts, found \[1, 2\]; the file is damaged"),
        ({"tokenizer.ggml.tokens": ["h", "e", "e"] * 100}, "expected every token once, not .* times, found 'e'"),
        ({"tokenizer.ggml.tokens": [f" {i}" for i in range(300)]}, "expected a token for '!', as for every byte of a"),
        ({"tokenizer.ggml.token_type": [7] * 300}, "expected kinds 1 to 6, found 7"),
        ({"tokenizer.ggml.eos_token_id": 300}, "expected the id of one of 300 tokens, found 300"),
        ({"tokenizer.chat_template": 7}, r"chat_template: expected a text, found 7"),
        ({"tokenizer.chat_templates": 7}, r"chat_templates: expected a list of names, found 7"),
    ],
)  # fmt: skip
def test_metadata_that_contradict_or_mean_another_model_are_one_clear_error(
    checkpoint: Path, tmp_path: Path, metadata: dict[str, Any], match: str
) -> None:
    path = write_gguf(checkpoint, tmp_path / "tiny.gguf", metadata=metadata)
    with pytest.raises((CheckpointError, ConfigError), match=match) as caught:
        convert(path, tmp_path / "store", "q4_0")
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"blk.1.attn_k.weight": None}, r"expected tensor 'blk\.1\.attn_k\.weight' \[32, 64\], found none"),
        ({"blk.1.attn_k.weight": np.zeros((64, 64), np.float32)}, r"expected shape \[32, 64\] .*found \[64, 64\]"),
        ({"blk.1.ffn_down_exps.weight": np.zeros((8, 64, 64), np.float32)},
         r"expected shape \[8, 64, 96\] or \[8, 96, 64\] .*found \[8, 64, 64\]"),
        ({"blk.1.attn_q.bias": np.zeros(64, np.float32)}, r"unknown tensor 'blk\.1\.attn_q\.bias'; this is another"),
        ({"blk.1.attn_k.weight": np.zeros((32, 64), np.int32)}, "that the package gguf can read .*found I32"),
        ({"blk.1.attn_norm.weight": np.full(64, np.nan, np.float32)}, r"input_layernorm.*found nan"),
    ],
)  # fmt: skip
def test_faulty_tensors_are_named(checkpoint: Path, tmp_path: Path, tensors: dict[str, Any], match: str) -> None:
    path = write_gguf(checkpoint, tmp_path / "tiny.gguf", tensors=tensors)
    with pytest.raises(CheckpointError, match=match) as caught:
        convert(path, tmp_path / "store", "f16")
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("quant", ["q4_0", "q8_0"])
def test_a_scale_that_is_no_number_is_refused_as_a_block_and_as_weights(
    checkpoint: Path, tmp_path: Path, quant: str
) -> None:
    raw = gguf.quantize(np.ones((32, 64), np.float32), gguf.GGMLQuantizationType.Q4_0)
    raw[3, :2] = np.array(np.inf, "<f2").reshape(1).view(np.uint8)
    path = write_gguf(
        checkpoint, tmp_path / "tiny.gguf", tensors={"blk.1.attn_k.weight": (raw, gguf.GGMLQuantizationType.Q4_0)}
    )
    with pytest.raises(CheckpointError, match=r"\.1\.self_attn\.k_proj\.weight': expected .*found (NaN|-?inf|nan)"):
        convert(path, tmp_path / "store", quant)
    assert not (tmp_path / "store").exists()


def test_another_architecture_and_a_missing_file_are_refused_by_name(checkpoint: Path, tmp_path: Path) -> None:
    path = write_gguf(checkpoint, tmp_path / "tiny.gguf", architecture="bloom")
    with pytest.raises(ConfigError, match=r"general\.architecture: expected one of smallthinker, .*, found 'bloom'"):
        open_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"none\.gguf: cannot read: No such file or directory; give"):
        open_checkpoint(tmp_path / "none.gguf")


def test_a_folder_that_holds_a_gguf_file_says_to_give_that(checkpoint: Path, tmp_path: Path) -> None:
    path = write_gguf(checkpoint, tmp_path / "tiny.gguf")
    for file in checkpoint.glob("model*"):
        file.unlink()
    path = path.rename(checkpoint / path.name)
    with pytest.raises(CheckpointError, match=f"give the GGUF file itself: {path}"):
        open_checkpoint(checkpoint)


def test_the_package_gguf_reads_the_same_tensors(checkpoint: Path, tmp_path: Path) -> None:
    """What its reader gives and what we do, from one file of many types."""
    path = write_gguf(checkpoint, tmp_path / "tiny.gguf", "Q5_0")
    by_library = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    q = by_library["blk.2.attn_q.weight"]
    gate = by_library["blk.2.ffn_gate_exps.weight"]
    source = open_checkpoint(path)
    try:
        found = source.read("layers.2.q_proj", 3, 7)
        assert np.array_equal(found, gguf.dequantize(q.data, q.tensor_type)[3:7])
        found = source.read("layers.2.gate.5")
        assert np.array_equal(found, gguf.dequantize(gate.data[5], gate.tensor_type))
        assert sum(1 for _ in checkpoint_tensors(source.config)) > len(by_library)
    finally:
        source.close()


def test_memory_of_a_conversion_does_not_grow_with_the_file(tmp_path: Path, run_python: Run) -> None:
    config = TINY | {"hidden_size": 512, "vocab_size": 60_000, "head_dim": 128, "tie_word_embeddings": True}
    checkpoint = synthetic(tmp_path / "source", config)
    path = write_gguf(checkpoint, tmp_path / "large.gguf", "F32")
    assert path.stat().st_size > 120 << 20
    script = """
import sys
import gguf
from smallthinker import host
from smallthinker.expert_store.convert import convert
before = host.peak_memory_bytes()
convert(sys.argv[1], sys.argv[2], "q4_0")
print(host.peak_memory_bytes() - before)
"""
    run = run_python(script, path, tmp_path / "store")
    assert int(run.stdout) < 110 << 20, run.stderr


def test_without_the_package_the_error_names_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(checkpoint, tmp_path / "tiny.gguf")
    monkeypatch.setattr("smallthinker.expert_store.sources.gguf_header.find_spec", lambda _: None)
    with pytest.raises(CheckpointError, match="found none; pip install gguf"):
        open_checkpoint(path)
