"""Every kernel again in numpy, from its description alone: slow, in float64 where it can be, one obvious way.

Byte layouts are written here by index arithmetic and never by calling the kernels, so that a mistake in one is a
difference between the two. Shape letters as in _kernels.pyi.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]
NOTHING: F32 = np.empty(0, np.float32)
ELEMENTS = ("f32", "f16", "bf16")  # formats without blocks
MADE = (*ELEMENTS, "q8_0", "q4_0")  # that pack and unpack know


def blocks_q4_0(w: F32) -> tuple[npt.NDArray[np.float16], U8]:
    """Scales [rows, blocks] and nibbles 0..15 [rows, blocks, 32]: as ggml rounds, or searched where that errs less."""
    x = w.reshape(len(w), -1, 32)
    plain, n = plain_q4_0(w)
    usable = np.isfinite(plain) & (plain != 0)
    extreme = np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1)[..., 0]
    scale = np.where(usable, extreme / np.float32(-8), np.float32(1)).astype(np.float32)
    x = np.where(usable[..., None], x, 0)
    in_64ths = (x * (np.float32(64) / scale)[..., None] + np.float32(512.5)).astype(np.int32) - 512
    counts = counts_q4_0(in_64ths)
    best, most = np.ones_like(scale), np.zeros_like(scale)
    for tried in range(24, 37):
        level = np.clip((in_64ths * tried + 1024) >> 11, -8, 7)
        products = (counts * level * in_64ths).sum(-1).astype(np.float32)
        slope = products / np.maximum((counts * level * level).sum(-1), 1).astype(np.float32)
        better = products * slope > most
        most, best = np.where(better, products * slope, most), np.where(better, slope / np.float32(64), best)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        level = levels_q4_0(x, scale * best)
        counted = level * counts.astype(np.float32)
        fitted = sum_of_lanes(counted * x) / sum_of_lanes(counted * level)
        searched = fitted.astype(np.float16)
        levels = (levels_q4_0(x, searched.astype(np.float32)) + 8).astype(np.uint8)
        better = usable & (error_q4_0(x, counts, searched, levels) < error_q4_0(x, counts, plain, n))
    return np.where(better, searched, plain), np.where(better[..., None], levels, n)


def counts_q4_0(in_64ths: I32) -> I32:
    """How much an error of each weight counts: as the root of its square and the block's mean square."""
    squares = in_64ths**2
    of = np.sqrt((squares.sum(-1, keepdims=True) // 32 + squares).astype(np.float32)) * np.float32(0.125)
    return of.astype(np.int32)


def error_q4_0(x: F32, counts: I32, scale: npt.NDArray[np.float16], n: U8) -> F32:
    """Of blocks."""
    off = scale.astype(np.float32)[..., None] * (n.astype(np.float32) - 8) - x
    return sum_of_lanes(off * off * counts.astype(np.float32))


def levels_q4_0(x: F32, scale: F32) -> F32:
    levels: F32 = np.rint(np.clip(np.nan_to_num(x * (np.float32(1) / scale)[..., None]), -8, 7))
    return levels


def sum_of_lanes(x: F32) -> F32:
    """Of 32, in the one order that there is: eight lanes, then their sum."""
    of = x.reshape(*x.shape[:-1], 4, 8)
    lane = ((of[..., 0, :] + of[..., 1, :]) + of[..., 2, :]) + of[..., 3, :]
    half = lane[..., :4] + lane[..., 4:]
    total: F32 = (half[..., 0] + half[..., 1]) + (half[..., 2] + half[..., 3])
    return total


def plain_q4_0(w: F32) -> tuple[npt.NDArray[np.float16], U8]:
    """As ggml rounds: the largest magnitude is -8."""
    x = w.reshape(len(w), -1, 32)
    extreme = np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1)[..., 0]
    scale = extreme / np.float32(-8)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inverse = np.where(np.isfinite(1 / scale), 1 / scale, 0).astype(np.float32)
        scale16 = np.where(inverse == 0, 0, scale).astype(np.float16)
        n = np.clip(np.floor(x * inverse[..., None] + np.float32(8.5)), 0, 15).astype(np.uint8)
    return scale16, n


def blocks_q8_0(w: F32) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.int8]]:
    """Scales [rows, blocks] and integers -127..127 [rows, blocks, 32]."""
    x = w.reshape(len(w), -1, 32)
    scale = np.abs(x).max(-1) / np.float32(127)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inverse = np.where(np.isfinite(1 / scale), 1 / scale, 0).astype(np.float32)
        scale16 = np.where(inverse == 0, 0, scale).astype(np.float16)
        y = x * inverse[..., None]
        q = np.clip(np.trunc(y + np.copysign(np.float32(0.5), y)), -127, 127).astype(np.int8)
    return scale16, q


def bf16_bits(w: F32) -> npt.NDArray[np.uint16]:
    """The upper half of each f32, to nearest even; a NaN stays one."""
    whole = np.ascontiguousarray(w).view(np.uint32).astype(np.uint64)
    rounded = np.where(np.isnan(w), whole | 0x400000, whole + 0x7FFF + (whole >> 16 & 1))
    return (rounded >> 16).astype(np.uint16)


def pack(quant: str, layout: str, w: F32) -> U8:
    if layout == "tiles":
        w = np.vstack([w, np.zeros((-len(w) % 16, w.shape[1]), np.float32)])
    rows, cols = w.shape
    if quant in ELEMENTS:
        values = bf16_bits(w) if quant == "bf16" else w.astype(np.float16 if quant == "f16" else np.float32)
        if layout == "tiles":
            values = values.reshape(rows // 16, 16, cols).transpose(0, 2, 1)
        return np.frombuffer(values.tobytes(), np.uint8)
    out = bytearray()
    if quant == "q4_0":
        scale, n = blocks_q4_0(w)
        stored = n[..., :16] | n[..., 16:] << 4  # [rows, blocks, 16] bytes
    else:
        scale, q = blocks_q8_0(w)
        stored = (q.astype(np.int16) + 128).astype(np.uint8) if layout == "tiles" else q.view(np.uint8)
    if layout == "rows":
        for row in range(rows):
            out += stored[row].tobytes() + scale[row].tobytes()
        return np.frombuffer(bytes(out), np.uint8)
    for group in range(0, rows, 16):
        for block in range(cols // 32):
            out += scale[group : group + 16, block].tobytes()
            for j in range(stored.shape[-1] // 4):
                for row in range(group, group + 16):
                    out += stored[row, block, 4 * j : 4 * j + 4].tobytes()
    return np.frombuffer(bytes(out), np.uint8)


def unpack(quant: str, w: F32) -> F32:
    """What pack keeps of w."""
    if quant == "f32":
        return w
    if quant == "f16":
        return w.astype(np.float16).astype(np.float32)
    if quant == "bf16":
        return (bf16_bits(w).astype(np.uint32) << 16).view(np.float32)
    scale, q = blocks_q4_0(w) if quant == "q4_0" else blocks_q8_0(w)
    offset = 8 if quant == "q4_0" else 0
    return (scale.astype(np.float32)[..., None] * (q.astype(np.float32) - offset)).reshape(w.shape)


def quantize_activations(x: F32) -> F64:
    """x [T, cols] rounded to int8 with a scale per 32 columns, and back."""
    blocks = x.reshape(len(x), -1, 32)
    amax = np.abs(blocks).max(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inverse = np.where(amax < np.float32(1e-30), 0, np.float32(127) / amax).astype(np.float32)
        q = np.rint(blocks * inverse)
    scale = np.where(amax < np.float32(1e-30), 0, amax / np.float32(127))
    kept: F64 = (q.astype(np.float64) * scale).reshape(x.shape)
    return kept


def activations(quant: str, x: F32) -> F64:
    return x.astype(np.float64) if quant in ELEMENTS else quantize_activations(x)


def linear(quant: str, w: F32, x: F32) -> F64:
    """w is what unpack gives."""
    product: F64 = activations(quant, x) @ w.T.astype(np.float64)
    return product


def rmsnorm(x: F32, weight: F32, eps: float) -> F64:
    wide = x.astype(np.float64)
    normal: F64 = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + eps) * weight
    return normal


def rope_angles(positions: npt.NDArray[np.int64], frequencies: F64, factors: F64) -> tuple[F64, F64]:
    angle = positions[:, None] * frequencies
    return np.cos(angle) * factors, np.sin(angle) * factors


def rope(x: F32, cos: F32, sin: F32, pairing: str = "half") -> F64:
    out = x.astype(np.float64)
    pairs = cos.shape[-1]
    first = slice(0, 2 * pairs, 2) if pairing == "interleaved" else slice(0, pairs)
    second = slice(1, 2 * pairs, 2) if pairing == "interleaved" else slice(pairs, 2 * pairs)
    a, b = x[..., first].astype(np.float64), x[..., second].astype(np.float64)
    cos, sin = cos[:, None], sin[:, None]
    out[..., first], out[..., second] = a * cos - b * sin, b * cos + a * sin
    return out


def route(
    logits: F32,
    k: int,
    gating: str,
    over_all: bool = False,
    normalise: bool = True,
    bias: F32 = NOTHING,
    bias_chooses: bool = False,
    groups: int = 1,
    kept_groups: int = 1,
    scale: float = 1.0,
    expert_scale: F32 = NOTHING,
) -> tuple[I32, F64]:
    own = logits + bias if bias.size and not bias_chooses else logits
    wide = own.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        e = np.exp(wide - wide.max(-1, keepdims=True))
        scores = e / e.sum(-1, keepdims=True) if gating == "softmax" else 1 / (1 + np.exp(-wide))
    choice = scores.astype(np.float32) + bias if bias.size and bias_chooses else own
    grouped = choice.reshape(len(choice), groups, -1)
    sums = np.sort(grouped, -1)[..., -2:].sum(-1) if groups > 1 else grouped[..., 0]
    is_kept = np.zeros(sums.shape, bool)
    np.put_along_axis(is_kept, np.argsort(-sums, -1, kind="stable")[:, :kept_groups], True, -1)
    is_out = ~np.repeat(is_kept, grouped.shape[-1], -1)
    key = np.where(np.isnan(choice), -np.inf, choice.astype(np.float64))
    order = [np.lexsort((np.isnan(row), -of, out)) for row, of, out in zip(choice, key, is_out, strict=True)]
    ids = np.stack(order)[:, :k].astype(np.int32)
    v = np.take_along_axis(wide, ids, -1)
    weights = np.take_along_axis(scores, ids, -1)
    with np.errstate(over="ignore", invalid="ignore"):
        if gating == "softmax" and (normalise or not over_all):
            weights = np.exp(v - v.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
        elif normalise:
            weights = weights / weights.sum(-1, keepdims=True)
    return ids, weights * scale * (expert_scale.astype(np.float64)[ids] if expert_scale.size else 1)


def blocks_kv(x: F32) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.int8]]:
    """Scales [rows, blocks] and integers [rows, blocks, 32] of the KV cache in q8_0: rounded to nearest even."""
    blocks = x.reshape(len(x), -1, 32)
    amax = np.abs(blocks).max(-1, keepdims=True)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(amax < np.float32(1e-30), 0, np.float32(127) / amax).astype(np.float32)
        scale = np.where(amax < np.float32(1e-30), 0, amax / np.float32(127)).astype(np.float16)
    return scale[..., 0], np.rint(blocks * inverse).astype(np.int8)


def kept_by_cache(quant: str, x: F32) -> F32:
    """What the KV cache keeps of keys or values x [..., D]."""
    if quant == "f16":
        return x.astype(np.float16).astype(np.float32)
    scale, n = blocks_kv(x.reshape(-1, x.shape[-1]))
    return (scale.astype(np.float32)[..., None] * n).reshape(x.shape)


def attention(
    q: F32,
    k: F32,
    v: F32,
    start: int,
    window: int,
    quant: str = "f16",
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: F32 | None = None,
    chunk: int = 0,
) -> F64:
    """q [T, H, D] from position `start`; k, v [S, K, D] of positions 0..S-1, before the cache rounds them."""
    tokens, heads, dim = q.shape
    out = np.empty(q.shape)
    k, v = kept_by_cache(quant, k), kept_by_cache(quant, v)
    scale = 1 / np.sqrt(dim) if scale is None else scale
    q = (q * np.float32(scale)).reshape(-1, dim)  # as the kernel does, or int8 would round another way
    queries = (quantize_activations(q) if quant == "q8_0" else q.astype(np.float64)).reshape(out.shape)
    for t in range(tokens):
        last = start + t
        first = max(0, last - window + 1) if window else 0
        first = max(first, last // chunk * chunk) if chunk else first
        for h in range(heads):
            kv = h // (heads // k.shape[1])
            keys, values = (c[first : last + 1, kv].astype(np.float64) for c in (k, v))
            score = keys @ queries[t, h]
            score = softcap * np.tanh(score / softcap) if softcap else score
            sink = -np.inf if sinks is None else float(sinks[h])
            most = max(score.max(), sink)
            p = np.exp(score - most)
            out[t, h] = p / (p.sum() + np.exp(sink - most)) @ values
    return out


def expert(quants: tuple[str, str, str], gate: F32, up: F32, down: F32, x: F32) -> tuple[F64, F64]:
    """gate, up [ffn, hidden] and down [hidden, ffn] as unpacked, in quants; x [T, hidden].

    The second result bounds what one factor of each chunk makes of a value when it is rounded the other way.
    """
    neurons: F64 = np.maximum(linear(quants[0], gate, x), 0) * linear(quants[1], up, x)
    quant = quants[2]
    if quant not in ("q4_0", "q8_0"):
        product: F64 = neurons @ down.T.astype(np.float64)
        return product, np.zeros_like(product)
    rows = np.ascontiguousarray(down.T)
    scale, q = blocks_q4_0(rows) if quant == "q4_0" else blocks_q8_0(rows)
    weights = q.astype(np.float64) - (8 if quant == "q4_0" else 0)  # [ffn, blocks, 32]
    out, rounding = np.zeros((2, len(x), *weights.shape[1:]))
    for first in range(0, len(rows), 64):  # a chunk of neurons shares a scale for each block of columns
        chunk = slice(first, first + 64)
        factor = neurons[:, chunk, None] * scale[chunk].astype(np.float64)  # [T, neurons, blocks]
        step = np.abs(factor).max(1, keepdims=True) / 127
        kept = np.rint(factor / np.where(step == 0, 1, step)) * step
        out += np.einsum("tnb,nbc->tbc", kept, weights[chunk])
        rounding += step[:, 0, :, None] * np.abs(weights[chunk]).max(0)
    return out.reshape(len(x), -1), rounding.reshape(len(x), -1)


def activated(activation: str, x: F64) -> F64:
    if activation in ("relu", "relu2"):
        return np.maximum(x, 0) ** (2 if activation == "relu2" else 1)
    with np.errstate(over="ignore"):
        if activation == "silu":
            return x / (1 + np.exp(-x))
        if activation == "gelu_tanh":  # (1 + tanh u) / 2 is 1 / (1 + e^-2u)
            return x / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    tail: F64 = x * np.vectorize(math.erfc)(-x / np.sqrt(2)) / 2
    return tail


def dense_expert(
    quants: tuple[str, str, str], activation: str, gate: F32 | None, up: F32, down: F32, x: F32
) -> tuple[F64, F64]:
    """gate, up [ffn, hidden] and down [hidden, ffn] as unpacked, in quants; x [T, hidden]. No gate: None.

    The second result bounds what neurons make of a value when they are rounded to int8 the other way, or are kept and
    added as floats: a square's are large, and a value may be the small difference of many.
    """
    neurons = linear(quants[1], up, x)
    if gate is None:
        neurons = activated(activation, neurons)
    else:
        neurons = activated(activation, linear(quants[0], gate, x)) * neurons
    narrow = neurons.astype(np.float32)
    may_differ = np.zeros_like(neurons)
    if quants[2] not in ELEMENTS:
        blocks = narrow.reshape(len(x), -1, 32)
        step = np.abs(blocks).max(-1, keepdims=True).astype(np.float64) / 127
        steps = np.abs(blocks / np.where(step == 0, 1, step))
        may_differ = np.where(np.abs(steps % 1 - 0.5) < 0.01, step, 0).reshape(neurons.shape)
    rounding: F64 = (may_differ + 2e-6 * np.abs(neurons)) @ np.abs(down).T.astype(np.float64)
    return linear(quants[2], down, narrow), rounding


def order_of_logits(logits: F32) -> I32:
    """All ids, the largest logit first, ties by lower id, NaN last."""
    key = np.where(np.isnan(logits), -np.inf, logits.astype(np.float64))
    return np.lexsort((np.isnan(logits), -key)).astype(np.int32)


def sampling_weights(logits: F32, temperature: float) -> list[int]:
    """2**42 times exp((logit - largest) / temperature), rounded, as the kernels come by it."""
    x, largest = logits.astype(np.float64), float(logits.max())
    if largest == np.inf:
        return [2**42 if value == largest else 0 for value in x]
    with np.errstate(over="ignore", divide="ignore"):
        scale = min(float(np.float64(1.4426950408889634) / np.float64(temperature)), np.finfo(np.float64).max)
        y = np.maximum((x - largest) * scale, -64.0)
    y = (y + 1.5 * 2**20) - 1.5 * 2**20
    whole = np.rint(y)
    f = y - whole
    p = np.full_like(f, 1.325522748285568e-06)
    for c in (1.530370233650616e-05, 0.00015403455844844975, 0.0013333478467507799, 0.009618129159407306,
              0.055504109063317625, 0.24022650695812983, 0.6931471805568316, 1.0):  # fmt: skip
        p = p * f + c
    return [int(w) for w in np.rint(np.ldexp(p, 42 + whole.astype(np.int32)))]


def sample(logits: F32, temperature: float, top_k: int, top_p: float, min_p: float, u: float) -> int:
    """The plain definition: sort, filter one after the other, add up. Whole numbers, so that sums are exact."""
    if logits.max() == -np.inf:
        return -1
    order = order_of_logits(logits)[:top_k].tolist()
    all_weights = sampling_weights(logits, temperature)
    weights = [all_weights[id] for id in order]
    needed = max(1, int(np.ceil(top_p * float(sum(weights)))))
    sums = np.cumsum(np.array(weights, np.uint64)).tolist()
    if top_p < 1:
        weights = weights[: next((i for i, total in enumerate(sums) if total >= needed), len(sums)) + 1]
    if min_p > 0:
        weights = [w for w in weights if w >= np.ceil(min_p * 2.0**42)]
    target = min(int(u * float(sum(weights))), sum(weights) - 1)
    total = 0
    for id, weight in zip(order, weights, strict=False):
        total += weight
        if total > target:
            return int(id)
    raise AssertionError
