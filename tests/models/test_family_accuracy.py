"""The engine against the reference past the window, a prompt and decoded: what it errs by is what f16 rounds.

From a store and from a GGUF file where it lies; which experts are chosen, too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_checkpoints import make_checkpoint
from gguf_families import ARCHITECTURES, write

from smallthinker import reference
from smallthinker.calibration.tracing import record
from smallthinker.engine import Engine
from smallthinker.expert_store.convert import convert
from smallthinker.expert_store.sources.checkpoint import Checkpoint
from smallthinker.expert_store.synthetic.byte_tokenizer import byte_tokenizer_files
from smallthinker.models.registry import parse_model

# Of each case, seeds of its weights. With those of experts no router is near a tie.
CASES: dict[str, tuple[int | None, ...]] = {
    **dict.fromkeys(
        ("llama 3", "mistral", "qwen2", "qwen3", "smollm3", "gemma3", "phi3", "ministral3", "llama4",
         "gemma4 shared keys", "gemma4 small"), (0, 1, 2),
    ),
    **dict.fromkeys(("qwen3_moe", "olmoe", "mixtral whole", "gpt_oss limits as published", "glm4_moe"), (0, 1, 2)),
    "gemma4 narrow inputs": (0,),
    "gemma4 experts": (2, 5, 14),
}  # fmt: skip
CLEAR_GAP = 1e-3  # of a router's choice


def rounded_logits(folder: Path, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The reference's in float64, with matrices, keys and values as the engine keeps them: in f16."""
    attention = reference.attention

    def rounding(h: Any, how: Any, of: Any, past: Any, given: Any = None) -> Any:
        _, (k, v) = attention(h, how, of, past, given)
        held = k.half().double(), v.half().double()
        return attention(h, how, of, past, held)

    monkeypatch.setattr(reference, "attention", rounding)
    with Checkpoint(folder) as source:
        model = reference.ReferenceModel(source.config).double()
        with torch.no_grad():
            for name, weight in model.named_weights().items():
                values = torch.from_numpy(source.read(name))
                weight.copy_(values.half() if values.dim() > 1 and "router" not in name else values)
            logits = model(tokens)[0][0].numpy()
    return logits


class Choices:
    """Of each layer with a router, the values that the reference chose by [T, E] and what it chose [T, k]."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[tuple[Any, Any]] = []
        route = reference.route

        def recording(r: Any, how: Any, of: Any) -> Any:
            logits, weights, ids = route(r, how, of)
            choice = logits.sigmoid() + of("router_bias") if how.bias == "choice" else logits
            self.made.append((choice.numpy(), ids.numpy()))
            return logits, weights, ids

        monkeypatch.setattr(reference, "route", recording)

    def agree(self, engine: Engine, tokens: list[int]) -> None:
        """The engine's are the same wherever the last chosen expert is clear of the next."""
        found = record(engine, [tokens]).ids
        for row, (choice, ids) in enumerate(self.made):
            k = ids.shape[-1]
            ranked = np.sort(choice, -1)[:, ::-1]
            clear = ranked[:, k - 1] - ranked[:, k] > CLEAR_GAP
            assert (np.sort(found[:, row], -1) == np.sort(ids, -1))[clear].all(), row


@pytest.mark.parametrize(("name", "seed"), [(name, seed) for name, seeds in CASES.items() for seed in seeds])
def test_what_the_engine_errs_by_is_f16(
    name: str, seed: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_checkpoint(name, tmp_path / "checkpoint", seed)
    for file, content in byte_tokenizer_files(
        parse_model(json.loads((case.folder / "config.json").read_text()))
    ).items():
        (case.folder / file).write_bytes(content)
    choices = Choices(monkeypatch)
    expected, tokens = rounded_logits(case.folder, case.tokens, monkeypatch), case.tokens[0].tolist()
    spread = expected.max(-1) - expected.min(-1)
    with Engine(convert(case.folder, tmp_path / "store", "f16")) as engine:
        prompt = engine.all_logits(tokens)
        decoded = np.stack([engine.prefill(tokens[:5])[0], *(engine.decode(token) for token in tokens[5:])])
        if engine.config.routed_layers:
            choices.agree(engine, tokens)
    assert (np.abs(prompt - expected).max(-1) / spread).max() < 1e-3
    assert (np.abs(decoded - expected[4:]).max(-1) / spread[4:]).max() < 1e-3
    largest = np.sort(expected, -1)
    clear = largest[:, -1] - largest[:, -2] > 1e-2 * spread
    assert (prompt.argmax(-1) == expected.argmax(-1))[clear].all()
    if name in ARCHITECTURES:
        path = write(case.folder, tmp_path / "tiny.gguf", ARCHITECTURES[name], "F16")
        with Engine(path) as engine:
            from_file = engine.all_logits(tokens)
        assert (np.abs(from_file - expected).max(-1) / spread).max() < 1e-3
