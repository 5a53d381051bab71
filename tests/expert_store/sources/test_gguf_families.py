"""The same weights from safetensors and from a GGUF file, with llama.cpp's names, rows and keys, are the same model."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from family_checkpoints import BASE, CASES, make_checkpoint
from gguf_families import ARCHITECTURES, metadata, write
from safetensors.numpy import load_file

from smallthinker.errors import CheckpointError, ConfigError
from smallthinker.expert_store.sources.checkpoint import Checkpoint
from smallthinker.expert_store.sources.gguf_checkpoint import GgufCheckpoint
from smallthinker.models import decoder
from smallthinker.models.description import Llama3Scaling
from smallthinker.models.gguf_keys import GgufFacts
from smallthinker.models.registry import checkpoint_places, gguf_model, parse_model
from smallthinker.rotary import frequencies


# Mistral's newest files say that they are Ministral, whose queries they don't scale.
@pytest.mark.parametrize(("name", "architecture"), [*ARCHITECTURES.items(), ("mistral nemo", gguf.MODEL_ARCH.MISTRAL3)])
def test_the_same_weights_are_the_same_model(name: str, architecture: gguf.MODEL_ARCH, tmp_path: Path) -> None:
    case = make_checkpoint(name, tmp_path / "checkpoint")
    path = write(case.folder, tmp_path / "tiny.gguf", architecture)
    with Checkpoint(case.folder) as expected, closing(GgufCheckpoint(path)) as found:
        assert_equal_but_for_rounding(asdict(found.config), asdict(expected.config) | {"family": found.config.family})
        for tensor, place in checkpoint_places(expected.config):
            for rows in ((), (0, 1), (1, 3)) if place.shape[0] > 1 else ((),):
                difference = np.abs(found.read(tensor, *rows) - expected.read(tensor, *rows))
                assert difference.max() <= (1e-6 if "norm" in tensor and "gemma" in name else 0), (tensor, place)


def assert_equal_but_for_rounding(found: Any, expected: Any) -> None:
    """GGUF has float32. What it has as factors of positions is another name for the same."""
    if isinstance(expected, dict) and "low_freq_factor" in expected:
        return
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_equal_but_for_rounding(found[key], expected[key])
    elif isinstance(expected, tuple):
        for ours, theirs in zip(found, expected, strict=True):
            assert_equal_but_for_rounding(ours, theirs)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-6)
    else:
        assert found == expected


def test_factors_of_rotary_positions_give_the_frequencies_of_llama3_scaling(tmp_path: Path) -> None:
    case = make_checkpoint("llama 3", tmp_path / "checkpoint")
    path = write(case.folder, tmp_path / "tiny.gguf", ARCHITECTURES["llama 3"])
    with Checkpoint(case.folder) as expected, closing(GgufCheckpoint(path)) as found:
        ours, theirs = (source.config.layers[0].attention.rope for source in (found, expected))
    assert ours is not None and theirs is not None and isinstance(theirs.scaling, Llama3Scaling)
    for context in (16, 256, 1 << 20):
        freqs, factor = frequencies(ours, context)
        assert factor == 1.0 and freqs == pytest.approx(frequencies(theirs, context)[0], rel=1e-6)


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0", "Q4_K"])
def test_slices_of_blocks_are_those_of_the_whole_matrix(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where down's blocks are wider than a slice: 256 columns and 64."""
    case = make_checkpoint("wide", tmp_path / "checkpoint")
    values, raw = load_file(case.folder / "model.safetensors"), {}
    rows = {role: values[f"model.layers.0.mlp.{role}_proj.weight"] for role in ("gate", "down")}
    if kind == "Q4_K":
        blocks = np.random.default_rng(0).integers(0, 256, (64, 2 * 144), np.uint8)
        blocks.reshape(64, 2, 144)[..., :4] = np.array([0.25, 0.125], np.float16).view(np.uint8)
        raw["blk.0.ffn_down.weight"] = blocks, gguf.GGMLQuantizationType.Q4_K
        rows["down"] = gguf.dequantize(blocks, gguf.GGMLQuantizationType.Q4_K)
    elif kind != "F32":
        qtype = gguf.GGMLQuantizationType[kind]
        rows = {role: gguf.dequantize(gguf.quantize(of, qtype), qtype) for role, of in rows.items()}
    path = write(case.folder, tmp_path / "tiny.gguf", gguf.MODEL_ARCH.LLAMA, "F32" if raw else kind, raw)
    monkeypatch.setattr(decoder, "_RECORD_BYTES", 3 * 64 * 64 * 4.5 / 8)
    with closing(GgufCheckpoint(path)) as source:
        assert source.config.layers[0].ffn is not None and source.config.layers[0].ffn.slices == 8
        for n in range(8):
            part = slice(64 * n, 64 * n + 64)
            for role, expected in (("gate", rows["gate"][part]), ("down", rows["down"][:, part])):
                name = f"layers.0.{role}.{n}"
                assert np.array_equal(source.read(name), expected)
                assert np.array_equal(source.read(name, 2, 9), expected[2:9])
                if kind in ("Q8_0", "Q4_0"):
                    found = source.blocks(name, kind.lower(), 2, 9)  # type: ignore[arg-type]
                    assert found is not None
                    flat = found.reshape(7, -1)
                    assert np.array_equal(gguf.dequantize(flat, gguf.GGMLQuantizationType[kind]), expected[2:9])


@pytest.mark.parametrize("factors", [np.ones((2, 4), np.float32), np.ones(2000, np.float32), np.ones(8, np.float16)])
def test_factors_that_are_not_a_few_numbers_are_refused_by_their_tensor(factors: np.ndarray, tmp_path: Path) -> None:
    case = make_checkpoint("smollm2", tmp_path / "checkpoint")
    more = {"rope_freqs.weight": factors}
    path = write(case.folder, tmp_path / "tiny.gguf", gguf.MODEL_ARCH.LLAMA, more=more)
    with pytest.raises(CheckpointError, match=r"tensor 'rope_freqs.weight': expected up to 1024 numbers of type F32"):
        GgufCheckpoint(path)


def test_factors_of_another_number_of_pairs_are_refused(tmp_path: Path) -> None:
    case = make_checkpoint("smollm2", tmp_path / "checkpoint")
    path = write(
        case.folder, tmp_path / "tiny.gguf", gguf.MODEL_ARCH.LLAMA, more={"rope_freqs.weight": np.ones(5, np.float32)}
    )
    with pytest.raises(ConfigError, match="short_factor: expected a list of 8 numbers, one a rotary pair"):
        GgufCheckpoint(path)


@pytest.mark.parametrize("pattern", [[True] * 4, None])
def test_windows_up_to_the_last_layer_of_gemma_4_are_refused(pattern: list[bool] | None) -> None:
    kind, more = CASES["gemma4 experts"]
    facts = metadata(parse_model({"model_type": kind, **BASE, **more}))
    facts.pop("attention.sliding_window_pattern")  # then llama.cpp takes every sixth layer to have none
    facts |= {"attention.sliding_window_pattern": pattern} if pattern else {}
    file = {"general.architecture": "gemma4"} | {f"gemma4.{key}": value for key, value in facts.items()}
    with pytest.raises(ConfigError, match=r"gemma4\.attention\.sliding_window_pattern: expected a last layer without"):
        gguf_model(file, GgufFacts(300, True, None, []), "tiny.gguf")


def test_experts_as_gpt_oss_is_published_are_read(tmp_path: Path) -> None:
    case = make_checkpoint("gpt_oss limits as published", tmp_path / "checkpoint")
    path = write(case.folder, tmp_path / "tiny.gguf", gguf.MODEL_ARCH.GPT_OSS, "MXFP4")
    kind = gguf.GGMLQuantizationType.MXFP4
    with Checkpoint(case.folder) as expected, closing(GgufCheckpoint(path)) as found:
        for role in ("gate", "up", "down"):
            name = f"layers.1.{role}.3"
            blocks = gguf.quantize(expected.read(name), kind)
            assert np.array_equal(found.read(name), gguf.dequantize(blocks, kind))
