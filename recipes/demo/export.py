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

from smallthinker.config import ModelConfig
from smallthinker.expert_store.convert import convert


def write_checkpoint(state: dict[str, torch.Tensor], data: Path, out: Path) -> None:
    """config.json, model.safetensors and the tokenizer's files."""
    out.mkdir(parents=True)
    config = ModelConfig.from_json(Path(__file__).parent / "model.json")
    (out / "config.json").write_text(json.dumps(config.to_dict(), indent=1), encoding="utf-8")
    save_file({name: weight.bfloat16().contiguous() for name, weight in state.items()}, out / "model.safetensors")
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
