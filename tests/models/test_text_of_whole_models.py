"""Checkpoints of models that also see or hear: their text model is read out of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_checkpoints import BASE, CASES, EAGER

from smallthinker import reference
from smallthinker.errors import CheckpointError, ConfigError
from smallthinker.expert_store.sources.checkpoint import Checkpoint
from smallthinker.models.registry import parse_model, text_tensor

SEES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gemma3": ("gemma3", {"image_size": 28, "patch_size": 14}, {"mm_tokens_per_image": 4}),
    "gemma4 small": ("gemma4", {"head_dim": 16, "num_key_value_heads": 2}, {}),
}


def whole_model(name: str, folder: Path) -> tuple[list[int], Any]:
    """A random checkpoint; tokens, and what transformers makes of them in float64."""
    import transformers as hf

    kind, sees, more = SEES[name]
    text_kind, changes = CASES[name]
    # transformers' whole Gemma 3 has no softcap, nor has any that is published
    own = {"pad_token_id": 0} | ({"final_logit_softcapping": None} if kind == "gemma3" else {})
    text = hf.AutoConfig.for_model(text_kind, **(BASE | changes | own)).to_dict()
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2} | sees
    config = hf.AutoConfig.for_model(kind, text_config=text, vision_config=vision, eos_token_id=[299, 7], **more)
    torch.manual_seed(0)
    model = hf.AutoModelForImageTextToText.from_config(config, **EAGER).double().eval()
    tokens = torch.randint(8, 256, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight + torch.randn_like(weight) * (0.3 if weight.dim() < 2 else weight.shape[-1] ** -0.5))
        model.float().save_pretrained(folder)
        logits = model.double()(input_ids=tokens).logits[0].numpy()
    return tokens[0].tolist(), logits


@pytest.mark.parametrize("name", SEES)
def test_its_logits_are_those_of_the_whole_model_without_a_picture(name: str, tmp_path: Path) -> None:
    tokens, expected = whole_model(name, tmp_path)
    with Checkpoint(tmp_path) as source:
        assert source.config.tokens.eos == (299, 7)
        model = reference.ReferenceModel(source.config).double()
        with torch.no_grad():
            for role, weight in model.named_weights().items():
                weight.copy_(torch.from_numpy(source.read(role)))
            found = model(torch.tensor([tokens]))[0][0].numpy()
    # its angles of positions are float32
    assert np.abs(found - expected).max() < 1e-5 * (expected.max() - expected.min())


def test_a_text_model_that_is_not_known_and_blocks_that_are_not_are_refused(tmp_path: Path) -> None:
    raw = {"architectures": ["NewForConditionalGeneration"], "text_config": {"model_type": "new_text"}}
    with pytest.raises(ConfigError, match=r"text_config\.model_type: found 'new_text'; expected .*gemma3_text"):
        parse_model(raw)
    whole_model("gemma3", tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(ConfigError, match="quantization_config"):
        parse_model(raw | {"quantization_config": {"quant_method": "fp8"}})
    raw["text_config"]["num_hidden_layers"] += 1
    raw["text_config"]["layer_types"] += ["full_attention"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=r"'model\.layers\.\d\.[\w.]+' .* is missing"):
        Checkpoint(tmp_path)


def test_names_of_older_and_newer_files() -> None:
    for name in ("model.language_model.layers.0.x", "language_model.model.layers.0.x", "model.layers.0.x"):
        assert text_tensor(name) == "model.layers.0.x"
    assert text_tensor("language_model.lm_head.weight") == text_tensor("lm_head.weight") == "lm_head.weight"
    assert text_tensor("model.embed_tokens_per_layer.weight") == "model.embed_tokens_per_layer.weight"
    for name in ("vision_tower.x", "model.vision_tower.x", "model.audio_tower.x", "multi_modal_projector.x",
                 "model.embed_vision.x", "model.embed_audio.x"):  # fmt: skip
        assert text_tensor(name) is None
