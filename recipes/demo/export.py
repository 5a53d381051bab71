"""From a training checkpoint to the bundled store: a Hugging Face folder in bfloat16 first, then the converter.

The same way that a published model takes, so that the demo exercises it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from smallthinker.expert_store.convert import convert
from smallthinker.models.registry import checkpoint_name, read_model, to_config


def write_checkpoint(state: dict[str, torch.Tensor], data: Path, out: Path) -> None:
    """config.json, model.safetensors and the tokenizer's files."""
    out.mkdir(parents=True)
    config = read_model(Path(__file__).parent / "model.json")
    (out / "config.json").write_text(json.dumps(to_config(config), indent=1), encoding="utf-8")
    names = {key: key.removeprefix("weights.").replace("/", ".") for key in state}  # as ReferenceModel has them
    weights = {checkpoint_name(config, names[key]): weight.bfloat16().contiguous() for key, weight in state.items()}
    save_file(weights, out / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(data / name, out / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="checkpoint.pt that train.py wrote")
    parser.add_argument("data", type=Path, help="folder that data.py wrote")
    parser.add_argument("hugging_face", type=Path, help="folder to write the Hugging Face checkpoint to")
    parser.add_argument("store", type=Path, help="store to write")
    parser.add_argument("--quant", default="q8_0")
    args = parser.parse_args()
    state = torch.load(args.checkpoint, map_location="cpu", weights_only=True)["model"]
    write_checkpoint(state, args.data, args.hugging_face)
    convert(args.hugging_face, args.store, args.quant, force=True)


if __name__ == "__main__":
    main()
