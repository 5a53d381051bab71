"""A GGUF file of random weights and a published shape, Q4_0: what peers run beside a store that is converted from it.

python bench/random_gguf.py 4b|21b OUT.gguf [--skew 1.3] [--seed 0] [--transposed]

Zero-mean weights; 41 to 45 % of the ReLU gates are positive; routing depends on the token, near uniform or, with a
skew, as uneven as published (a constant bias of each expert, in units of what tokens make of its logit). Every word but
the 256 bytes and two pairs is "<tN>", N its id, so that a text of these names its tokens. --transposed stores `down`
as PowerInfer's converter does, the same values otherwise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from smallthinker.models.description import Model
from smallthinker.models.published import PUBLISHED
from smallthinker.models.registry import parse_model

Bytes = npt.NDArray[np.uint8]
_BLOCK, _BLOCK_BYTES = 32, 18
_STEP = 4.6  # standard deviation of the levels below: a weight's is `std`
_EVEN = np.array([8, *range(1, 16)], np.uint8)
_LEVELS = {
    "even": _EVEN,
    "gate": np.arange(16, dtype=np.uint8),  # mean -0.5 of a step
    "embedding": np.array([*range(1, 16), 15], np.uint8),  # +0.44: with the gates' mean, 41 to 45 % are positive
}


def q4_0(rng: np.random.Generator, *shape: int, std: float = 0.02, levels: str = "even") -> Bytes:
    """Blocks of one scale: [..., cols / 32 * 18]."""
    blocks = np.empty((int(np.prod(shape)) // _BLOCK, _BLOCK_BYTES), np.uint8)
    raw = np.frombuffer(rng.bytes(len(blocks) * 16), np.uint8)
    table = _LEVELS[levels]
    of_byte = table[np.arange(256) & 15] | (table[np.arange(256) >> 4] << 4)
    blocks[:, 2:] = of_byte[raw].reshape(-1, 16)
    blocks[:, :2] = np.full(len(blocks), std / _STEP, np.float16).view(np.uint8).reshape(-1, 2)
    return blocks.reshape(*shape[:-1], shape[-1] // _BLOCK * _BLOCK_BYTES)


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


def write_header(writer: gguf.GGUFWriter, c: Model) -> None:
    writer.add_block_count(c.num_layers)
    writer.add_context_length(c.context)
    writer.add_embedding_length(c.hidden_size)
    writer.add_head_count(c.layers[0].attention.heads)
    writer.add_head_count_kv(c.layers[0].attention.kv_heads)
    writer.add_key_length(c.layers[0].attention.head_dim)
    writer.add_value_length(c.layers[0].attention.head_dim)
    writer.add_rope_freq_base(1.5e6)
    writer.add_layer_norm_rms_eps(c.final_norm.eps)
    writer.add_expert_count(c.experts_per_layer)
    writer.add_expert_used_count(c.experts_per_token)
    writer.add_expert_feed_forward_length(c.ffn_width)
    writer.add_feed_forward_length(c.ffn_width)
    gating = (
        gguf.ExpertGatingFuncType.SOFTMAX
        if c.layers[0].router.score == "softmax"
        else gguf.ExpertGatingFuncType.SIGMOID
    )
    writer.add_expert_gating_func(gating)
    writer.add_sliding_window(4096)
    writer.add_vocab_size(c.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(words(c.vocab_size))
    writer.add_token_types([gguf.TokenType.NORMAL] * (c.vocab_size - 1) + [gguf.TokenType.CONTROL])
    writer.add_token_merges(["h e", "l l"])
    writer.add_eos_token_id(c.vocab_size - 1)
    writer.add_pad_token_id(c.vocab_size - 1)
    writer.add_add_bos_token(False)


def write_weights(writer: gguf.GGUFWriter, c: Model, rng: np.random.Generator, skew: float, turn: bool) -> None:
    d, ffn, experts, dim = c.hidden_size, c.ffn_width, c.experts_per_layer, c.layers[0].attention.head_dim

    def matrix(name: str, packed: Bytes) -> None:
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    matrix("token_embd", q4_0(rng, c.vocab_size, d, std=1.0, levels="embedding"))
    if not c.head.tied:
        matrix("output", q4_0(rng, c.vocab_size, d))
    writer.add_tensor("output_norm.weight", np.ones(d, np.float32))
    for layer in range(c.num_layers):
        name = f"blk.{layer}."
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{name}{norm}.weight", np.ones(d, np.float32))
        matrix(name + "attn_q", q4_0(rng, c.layers[0].attention.heads * dim, d))
        matrix(name + "attn_k", q4_0(rng, c.layers[0].attention.kv_heads * dim, d))
        matrix(name + "attn_v", q4_0(rng, c.layers[0].attention.kv_heads * dim, d))
        matrix(name + "attn_output", q4_0(rng, d, c.layers[0].attention.heads * dim))
        # the embedding's mean, 0.44 of a step in every dimension, turns a constant in a row into a bias
        bias = skew * 0.02 * d**0.5 / (0.44 / _STEP * d) * rng.standard_normal((experts, 1))
        router = rng.standard_normal((experts, d)) * 0.02 + bias
        writer.add_tensor(name + "ffn_gate_inp.weight", router.astype(np.float32))
        matrix(name + "ffn_gate_exps", q4_0(rng, experts, ffn, d, levels="gate"))
        matrix(name + "ffn_up_exps", q4_0(rng, experts, ffn, d))
        down = q4_0(rng, experts, d, ffn)
        matrix(name + "ffn_down_exps", transposed(down, d, ffn) if turn else down)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shape", choices=sorted(PUBLISHED))
    parser.add_argument("out", type=Path)
    parser.add_argument("--skew", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--transposed", action="store_true", help="store `down` transposed, as PowerInfer wants it")
    args = parser.parse_args()
    config = parse_model(PUBLISHED[args.shape])
    writer = gguf.GGUFWriter(args.out, "smallthinker")
    write_header(writer, config)
    write_weights(writer, config, np.random.default_rng(args.seed), args.skew, args.transposed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
