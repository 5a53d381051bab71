"""A GGUF file of random weights and a published shape: what peers run beside this engine, which runs the same file.

python bench/random_gguf.py SHAPE OUT.gguf [--type q4_0|q4_k_m|mxfp4] [--skew 1.3] [--seed 0] [--transposed]

Zero-mean weights; SmallThinker's ReLU gates are positive for 41 to 45 %; routing depends on the token, near uniform or,
with a skew, as uneven as published (a constant bias of each expert, in units of what tokens make of its logit). Types
mix as llama.cpp's quantiser mixes them: q4_k_m has v and down in Q6_K in half of the layers, and the head, rows that
256 doesn't divide in Q5_0 and Q8_0 instead; mxfp4 has experts in MXFP4 and the rest in Q8_0. Every word but the 256
bytes and two pairs is "<tN>", N its id, so that a text of these names its tokens. --transposed stores `down` as
PowerInfer's converter does, the same values otherwise.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type

from smallthinker.models.description import Model
from smallthinker.models.places import Stored
from smallthinker.models.published import PUBLISHED
from smallthinker.models.registry import FAMILIES, parse_model
from smallthinker.models.tensors import DOWN, EMBEDDING, EXPERT_ROLES, GATE, HEAD, Tensor, tensors

Bytes = npt.NDArray[np.uint8]
_BLOCK, _BLOCK_BYTES = 32, 18
_STEP = 4.6  # standard deviation of sixteen levels: a weight's is `std`
_OFFSET = 0.44  # of a step, the embedding's mean in every dimension
_EVEN = np.array([8, *range(1, 16)], np.uint8)
_LEVELS = {
    "even": _EVEN,
    "gate": np.arange(16, dtype=np.uint8),  # mean -0.5 of a step
    "embedding": np.array([*range(1, 16), 15], np.uint8),  # +0.44: with the gates' mean, 41 to 45 % are positive
}
_TYPES = {"q4_0": Type.Q4_0, "q4_k_m": Type.Q4_K, "mxfp4": Type.Q8_0}
_ARCHITECTURES = {
    "smallthinker": "smallthinker", "qwen2": "qwen2", "qwen3_moe": "qwen3moe", "gpt_oss": "gpt-oss",
    "gemma4_text": "gemma4",
}  # fmt: skip
_FALLBACKS = {Type.Q4_K: Type.Q5_0, Type.Q6_K: Type.Q8_0}


def f16(value: float, blocks: int) -> Bytes:
    return np.full(blocks, value, np.float16).view(np.uint8).reshape(blocks, 2)


def random_bytes(rng: np.random.Generator, blocks: int, bytes_each: int) -> Bytes:
    return np.frombuffer(rng.bytes(blocks * bytes_each), np.uint8).reshape(blocks, bytes_each)


def q4_0(rng: np.random.Generator, n: int, std: float, levels: str) -> Bytes:
    table = _LEVELS[levels]
    of_byte = table[np.arange(256) & 15] | (table[np.arange(256) >> 4] << 4)
    return np.hstack([f16(std / _STEP, n), of_byte[random_bytes(rng, n, 16)]])


def q5_0(rng: np.random.Generator, n: int, std: float, levels: str) -> Bytes:
    return np.hstack([f16(std / 9.2, n), random_bytes(rng, n, 20)])


def q8_0(rng: np.random.Generator, n: int, std: float, levels: str) -> Bytes:
    values = random_bytes(rng, n, 32)
    if levels == "embedding":  # the same share of a standard deviation
        values = (values.view(np.int8) // 2 + round(_OFFSET / _STEP * 37)).astype(np.int8).view(np.uint8)
    return np.hstack([f16(std / (37 if levels == "embedding" else 74), n), values])


def q4_k(rng: np.random.Generator, n: int, std: float, levels: str) -> Bytes:
    """All scales and mins of a block are 32 of 63."""
    d, mean = std / _STEP / 32, 7.5 - (_OFFSET if levels == "embedding" else 0.0)
    scales = np.tile(np.array([160] * 8 + [0] * 4, np.uint8), (n, 1))
    return np.hstack([f16(d, n), f16(d * mean, n), scales, random_bytes(rng, n, 128)])


def q6_k(rng: np.random.Generator, n: int, std: float, levels: str) -> Bytes:
    values = random_bytes(rng, n, 192).copy()
    if levels == "embedding":  # 16 levels more for 0.3 of those that haven't their second highest bit: the same share
        every = [random_bytes(rng, n, 64) for _ in range(6)]
        values[:, 128:] |= (every[0] & every[1] | every[2] & every[3] & every[4] & every[5]) & 0x55
    return np.hstack([values, np.full((n, 16), 32, np.uint8), f16(std / 18.5 / 32, n)])


def mxfp4(rng: np.random.Generator, n: int, std: float, levels: str) -> Bytes:
    """A power of two is near enough: 2.93 is the values' deviation."""
    exponent = np.full((n, 1), 127 + round(np.log2(std / 2.93)), np.uint8)
    return np.hstack([exponent, random_bytes(rng, n, 16)])


_MAKERS: dict[Type, Callable[[np.random.Generator, int, float, str], Bytes]] = {
    Type.Q4_0: q4_0, Type.Q5_0: q5_0, Type.Q8_0: q8_0, Type.Q4_K: q4_k, Type.Q6_K: q6_k, Type.MXFP4: mxfp4,
}  # fmt: skip


def type_of(tensor: Tensor, kind: str, model: Model) -> Type:
    n, layer = model.num_layers, tensor.layer or 0
    if kind == "q4_k_m":
        more_bits = layer < n // 8 or layer >= 7 * n // 8 or (layer - n // 8) % 3 == 2
        if tensor.role == HEAD or (tensor.role == EMBEDDING and model.head.tied):
            return Type.Q6_K
        wanted = Type.Q6_K if tensor.role in ("v_proj", DOWN, f"beside_{DOWN}") and more_bits else Type.Q4_K
        return wanted if tensor.shape[-1] % 256 == 0 else _FALLBACKS[wanted]
    return Type.MXFP4 if kind == "mxfp4" and tensor.role in EXPERT_ROLES else _TYPES[kind]


def transposed(packed: Bytes, rows: int, cols: int) -> Bytes:
    """[E, rows, cols / 32 * 18] -> the same matrices as [E, cols, rows / 32 * 18]: exact, since all scales are one."""
    out = np.empty((len(packed), cols, rows // _BLOCK * _BLOCK_BYTES), np.uint8)
    for matrix, turned in zip(packed, out, strict=True):
        nibbles = matrix.reshape(rows, cols // _BLOCK, _BLOCK_BYTES)[:, :, 2:]
        levels = np.concatenate([nibbles & 15, nibbles >> 4], -1).reshape(rows, cols)
        levels = np.ascontiguousarray(levels.T).reshape(cols, rows // _BLOCK, _BLOCK)
        blocks = turned.reshape(cols, rows // _BLOCK, _BLOCK_BYTES)
        blocks[:, :, 2:] = levels[:, :, :16] | (levels[:, :, 16:] << 4)
        blocks[:, :, :2] = matrix[0, :2]
    return out


def words(vocab: int) -> list[str]:
    """As GPT-2's vocabularies write bytes; then two pairs, so that there is something to merge; then "<tN>"."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    of_byte = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    first = [of_byte[byte] for byte in range(256)] + ["he", "ll"]
    return [*first, *(f"<t{id}>" for id in range(len(first), vocab - 1)), "<|endoftext|>"]


def header(model: Model) -> dict[str, Any]:
    """What the architecture's keys say, without their prefix."""
    attention, ffn = model.layers[0].attention, model.layers[0].ffn
    rope = next(layer.attention.rope for layer in model.layers if layer.attention.rope)
    assert ffn is not None
    found: dict[str, Any] = {
        "block_count": model.num_layers,
        "context_length": model.context,
        "embedding_length": model.hidden_size,
        "feed_forward_length": ffn.width * ffn.slices,
        "attention.head_count": attention.heads,
        "attention.head_count_kv": attention.kv_heads,
        "attention.key_length": attention.head_dim,
        "attention.value_length": attention.head_dim,
        "attention.layer_norm_rms_epsilon": model.final_norm.eps,
        "rope.freq_base": rope.theta,
        "vocab_size": model.vocab_size,
    }
    if ffn.router is not None:
        found |= {"expert_count": ffn.router.experts, "expert_used_count": ffn.router.k}
        found |= {"expert_feed_forward_length": ffn.width}
    if model.family == "smallthinker":
        softmax = ffn.router is not None and ffn.router.score == "softmax"
        gating = gguf.ExpertGatingFuncType.SOFTMAX if softmax else gguf.ExpertGatingFuncType.SIGMOID
        found |= {"expert_gating_func": int(gating), "attention.sliding_window": 4096}
    if model.family == "gpt_oss":
        found |= {"attention.sliding_window": 128, "rope.scaling.type": "yarn", "rope.scaling.factor": 32.0}
        found |= {"rope.scaling.original_context_length": 4096}
    if model.family == "gemma4_text":
        found |= gemma4(model)
    return found


def gemma4(model: Model) -> dict[str, Any]:
    """Of layers of two kinds, the last of them without a window."""
    mixers = [layer.attention for layer in model.layers]
    full, sliding = mixers[-1], mixers[0]
    assert full.rope is not None
    beside = model.layers[0].ffn.beside if model.layers[0].ffn is not None else None
    assert beside is not None
    return {
        "feed_forward_length": beside.ffn.width,
        "attention.head_count_kv": [mixer.kv_heads for mixer in mixers],
        **dict.fromkeys(("attention.key_length", "attention.value_length", "rope.dimension_count"), full.head_dim),
        **dict.fromkeys(
            ("attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa"), sliding.head_dim
        ),
        "rope.freq_base": full.rope.theta,
        "rope.freq_base_swa": 1e4,
        "attention.sliding_window": sliding.window,
        "attention.sliding_window_pattern": [mixer.window > 0 for mixer in mixers],
        "attention.shared_kv_layers": 0,
        "embedding_length_per_layer_input": 0,
        "final_logit_softcapping": model.head.softcap,
    }


def write_header(writer: gguf.GGUFWriter, model: Model, architecture: str) -> None:
    for key, value in header(model).items():
        adds = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
        adds[type(value)](f"{architecture}.{key}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(words(model.vocab_size))
    writer.add_token_types([gguf.TokenType.NORMAL] * (model.vocab_size - 1) + [gguf.TokenType.CONTROL])
    writer.add_token_merges(["h e", "l l"])
    writer.add_eos_token_id(model.vocab_size - 1)
    writer.add_pad_token_id(model.vocab_size - 1)
    writer.add_add_bos_token(False)


class RandomTensors:
    """Each by its name, made when it is written: a file may be larger than memory."""

    def __init__(self, model: Model, kind: str, seed: int, skew: float, turn: bool) -> None:
        self._model, self._kind, self._skew, self._turn = model, kind, skew, turn
        self._rng = np.random.default_rng(seed)
        self._names = FAMILIES[model.family].GGUF_NAMES

    def place(self, tensor: Tensor) -> tuple[str, tuple[int, ...], Type]:
        """Its name in the file, its shape there and its type."""
        role, shape = tensor.role, tensor.shape
        ffn = self._model.layers[tensor.layer or 0].ffn
        if role in EXPERT_ROLES and ffn is not None and ffn.router is None:
            role, wide = f"dense_{role}", (shape[0] * ffn.width, self._model.hidden_size)
            shape = wide[::-1] if tensor.role == DOWN else wide
        stored = self._names[role]
        if isinstance(stored, Stored) and stored.joined:
            shape = (shape[0], len(stored.joined) * shape[1], *shape[2:])
        name = (stored if isinstance(stored, str) else stored.name).format(layer=tensor.layer)
        plain = "bias" in role or role in ("router", "sinks") or len(shape) == 1
        return name, shape, Type.F32 if plain else type_of(tensor, self._kind, self._model)

    def is_part(self, tensor: Tensor) -> bool:
        """Whether another tensor of the file has it."""
        stored = self._names.get(tensor.role)
        return isinstance(stored, Stored) and tensor.role in stored.joined[1:]

    def info(self, writer: gguf.GGUFWriter, tensor: Tensor) -> None:
        name, shape, kind = self.place(tensor)
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        row = (shape[-1] // block * block_bytes,) if kind is not Type.F32 else (shape[-1],)
        dtype = np.dtype(np.float32 if kind is Type.F32 else np.uint8)
        nbytes = int(np.prod(shape[:-1])) * row[0] * dtype.itemsize
        writer.add_tensor_info(name, [*shape[:-1], *row], dtype, nbytes, None if kind is Type.F32 else kind)

    def values(self, tensor: Tensor) -> npt.NDArray[Any]:
        _, shape, kind = self.place(tensor)
        if kind is Type.F32:
            return self._floats(tensor, shape)
        levels = "embedding" if tensor.role == EMBEDDING else "gate" if self._is_relu_gate(tensor) else "even"
        blocks = int(np.prod(shape)) // gguf.GGML_QUANT_SIZES[kind][0]
        made = _MAKERS[kind](self._rng, blocks, 1.0 if tensor.role == EMBEDDING else 0.02, levels)
        made = made.reshape(*shape[:-1], -1)
        return transposed(made, shape[1], shape[2]) if self._turn and tensor.role == DOWN else made

    def _is_relu_gate(self, tensor: Tensor) -> bool:
        ffn = self._model.layers[tensor.layer or 0].ffn
        return tensor.role == GATE and ffn is not None and ffn.activation.kind == "relu"

    def _floats(self, tensor: Tensor, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        if tensor.role == "router":
            experts, d = shape
            # the embedding's mean turns a constant in a row into a bias
            bias = self._skew * 0.02 * d**0.5 / (_OFFSET / _STEP * d) * self._rng.standard_normal((experts, 1))
            return (self._rng.standard_normal(shape) * 0.02 + bias).astype(np.float32)
        is_one = ("norm" in tensor.role or "scale" in tensor.role) and "bias" not in tensor.role
        return np.full(shape, 1.0 if is_one else 0.0, np.float32)


def rope_factors(model: Model) -> npt.NDArray[np.float32] | None:
    """Of each pair of a head where some don't turn: by how much its frequency is divided."""
    rope = model.layers[-1].attention.rope
    if rope is None or rope.turning is None:
        return None
    return np.float32([1.0] * rope.turning + [1e30] * (rope.size // 2 - rope.turning))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shape", choices=sorted(PUBLISHED))
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", choices=sorted(_TYPES), default="q4_0")
    parser.add_argument("--skew", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--transposed", action="store_true", help="store `down` transposed, as PowerInfer wants it")
    args = parser.parse_args()
    model = parse_model(PUBLISHED[args.shape])
    if model.family not in _ARCHITECTURES:
        parser.error(f"shape: expected one of {', '.join(_ARCHITECTURES)}, found {model.family}")
    if args.transposed and args.type != "q4_0":
        parser.error("--transposed: only with --type q4_0")
    architecture = _ARCHITECTURES[model.family]
    writer = gguf.GGUFWriter(args.out, architecture)
    write_header(writer, model, architecture)
    random = RandomTensors(model, args.type, args.seed, args.skew, args.transposed)
    all_tensors, factors = [tensor for tensor in tensors(model) if not random.is_part(tensor)], rope_factors(model)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    for tensor in all_tensors:
        random.info(writer, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    for tensor in all_tensors:
        writer.write_tensor_data(random.values(tensor))
    writer.close()


if __name__ == "__main__":
    main()
