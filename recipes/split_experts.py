"""Makes a model with real routing of a dense one: each layer's feed-forward network is split into experts.

    python recipes/split_experts.py DENSE OUT --experts 16 --active 6

DENSE is a folder or a .gguf file of any dense family that `smallthinker convert` reads; OUT becomes a checkpoint of the
family `described`, for `smallthinker convert`. Neurons whose gate rows point the same way become one expert, all of one
size, and the router's row of an expert is the mean of its gate rows: an expert whose neurons a token would open is
chosen. Chosen experts count once, as in the dense network: their weights are 2 sigmoid(logit), with logits so small
that this is 1 but for a ten-thousandth. With all experts active the logits are zero and it is the dense model, but for
the order of its sums. Knows nothing about how good the result is: `smallthinker eval compare` does.
"""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from smallthinker.errors import ConfigError
from smallthinker.expert_store.convert import open_checkpoint
from smallthinker.expert_store.format import BLOCK, CONFIG_FILE
from smallthinker.expert_store.sources.checkpoint import INDEX_FILE, WeightSource
from smallthinker.models.description import Ffn, Layer, Model, Router
from smallthinker.models.families import described
from smallthinker.models.registry import to_config
from smallthinker.models.tensors import ROUTER, dense_tensors

F32 = npt.NDArray[np.float32]
ROUNDS = 8
LOGIT_SPREAD = 1e-4  # for inputs of unit variance


def split_model(model: Model, experts: int, active: int) -> Model:
    """The same with routers. Raises ConfigError where a layer isn't a dense network with a gate, or can't be split."""
    layers = []
    for number, layer in enumerate(model.layers):
        ffn = layer.ffn
        if ffn is None or ffn.router is not None or ffn.shared is not None or ffn.bias or not ffn.gated:
            raise ConfigError(f"layer {number}: expected a dense network with a gate and without biases")
        width = ffn.width * ffn.slices
        if width % (experts * BLOCK) or not 1 <= active <= experts:
            raise ConfigError(
                f"experts: expected a number that divides the width {width} into multiples of {BLOCK}, of which 1 to "
                f"all are active; found {experts}, {active} active"
            )
        router = Router(experts, active, "ffn_input", "sigmoid", over="all", normalise=False, scale=2.0)
        layers.append(replace(layer, ffn=Ffn(width // experts, ffn.activation, router=router)))
    return replace(model, family=described.MODEL_TYPE, layers=tuple(layers))


def balanced_clusters(rows: F32, count: int) -> npt.NDArray[np.intp]:
    """[rows] -> which of `count` clusters of one size, by the direction of the rows (spherical k-means with room)."""
    directions = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    size = len(rows) // count
    centres = directions[np.random.default_rng(0).permutation(len(rows))[:count]]
    of = np.zeros(len(rows), np.intp)
    for _ in range(ROUNDS):
        likeness = directions @ centres.T
        best = np.sort(likeness, axis=1)
        margin = best[:, -1] - best[:, -2] if count > 1 else best[:, -1]
        room = np.full(count, size)
        for row in np.argsort(-margin, kind="stable"):  # who would lose most by another cluster goes first
            of[row] = np.where(room > 0, likeness[row], -np.inf).argmax()
            room[of[row]] -= 1
        centres = np.stack([directions[of == cluster].mean(0) for cluster in range(count)])
    return of


def split_layer(source: WeightSource, number: int, layer: Layer, new: Ffn) -> dict[str, F32]:
    """The router and the experts' matrices of one layer, by the model's names."""
    assert layer.ffn is not None and new.router is not None
    prefix, experts = f"layers.{number}", new.router.experts
    whole = {
        role: np.concatenate(
            [source.read(f"{prefix}.{role}.{part}") for part in range(layer.ffn.slices)], int(role == "down")
        )
        for role in ("gate", "up", "down")
    }
    of = balanced_clusters(whole["gate"], experts)
    tensors = {}
    router = np.empty((experts, whole["gate"].shape[1]), np.float32)
    for expert in range(experts):
        neurons = np.flatnonzero(of == expert)
        router[expert] = whole["gate"][neurons].mean(0)
        tensors[f"{prefix}.gate.{expert}"] = whole["gate"][neurons]
        tensors[f"{prefix}.up.{expert}"] = whole["up"][neurons]
        tensors[f"{prefix}.down.{expert}"] = np.ascontiguousarray(whole["down"][:, neurons])
    spread = float(np.linalg.norm(router, axis=1).mean()) or 1.0
    is_whole = new.router.k == experts
    tensors[f"{prefix}.{ROUTER}"] = np.zeros_like(router) if is_whole else router * np.float32(LOGIT_SPREAD / spread)
    return tensors


def split(dense: Path, out: Path, experts: int, active: int) -> Model:
    """Write the checkpoint, a file a layer; holds one layer in memory."""
    with closing(open_checkpoint(dense)) as source:
        model = split_model(source.config, experts, active)
        out.mkdir(parents=True)
        beside = {tensor.name: source.read(tensor.name) for tensor in dense_tensors(source.config)}
        files = _save(out, "model-beside", beside)
        for number, layer in enumerate(source.config.layers):
            new = model.layers[number].ffn
            assert new is not None
            files |= _save(out, f"model-layer-{number:03d}", split_layer(source, number, layer, new))
        small = source.small_files() | {CONFIG_FILE: json.dumps(to_config(model), indent=1).encode("ascii")}
        for name, content in small.items():
            (out / name).write_bytes(content)
        (out / INDEX_FILE).write_text(json.dumps({"weight_map": files}))
    return model


def _save(out: Path, name: str, tensors: dict[str, F32]) -> dict[str, str]:
    save_file(tensors, out / f"{name}.safetensors")
    return dict.fromkeys(tensors, f"{name}.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--active", type=int, default=6)
    args = parser.parse_args()
    model = split(args.dense, args.out, args.experts, args.active)
    print(f"{args.out}: {model.num_layers} layers of {args.experts} experts, {args.active} a token")


if __name__ == "__main__":
    main()
