from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from random_inputs import F32, bits, normal

from smallthinker import _kernels

d, H, K, D, CAPACITY = 64, 4, 2, 32, 48
PAIRS = 20  # columns of angles: 4 of another layer's, then 16
EPS = 1e-6


Cache = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]
Quants = tuple["_kernels.Quant", "_kernels.Quant", "_kernels.Quant", "_kernels.Quant"]  # of q, k, v and o


def kv_layer(cache: Cache) -> _kernels.KvLayer:
    return _kernels.KvLayer("f16", *cache, D)


class Kind(NamedTuple):
    """What a layer has. norms: by projection, how many numbers are normed together."""

    rope: tuple[int, int, _kernels.Pairing] | None = None
    window: int = 0
    scale: float | None = None
    biases: str = ""
    norms: Mapping[str, int] = {}
    clip: float = 0.0
    softcap: float = 0.0
    has_sinks: bool = False
    chunk: int = 0
    growth: tuple[float, int, int] | None = None
    has_after: bool = False
    residual_scale: float = 1.0
    is_parallel: bool = False
    has_input_norm: bool = True
    has_values: bool = True


PLAIN = [Kind((4, D, "half")), Kind((4, D, "half"), window=5), Kind(), Kind(window=5)]
OTHERS = [
    Kind((0, 8, "half"), scale=0.3),
    Kind((4, D, "interleaved"), biases="qkv"),
    Kind((6, 10, "interleaved"), norms={"q": D, "k": D}),
    Kind((4, D, "half"), 5, norms={"q": H * D, "k": K * D}, clip=0.9),
    Kind(biases="qkvo", norms={"q": D, "k": D, "v": D}, clip=1.5, has_after=True),
    Kind((4, D, "half"), softcap=3.0, has_sinks=True, residual_scale=0.3),
    Kind((4, D, "half"), chunk=7, growth=(0.1, 5, 1), is_parallel=True),
    Kind(
        biases="qk", norms={"k": D, "v": D}, has_values=False, has_input_norm=False, has_after=True, residual_scale=2.0
    ),
]


class Layer:
    """One random layer twice: as the fused call, and as the kernels that it is made of."""

    def __init__(self, pool: _kernels.ThreadPool, quants: Quants, kind: Kind) -> None:
        self.pool, self.kind = pool, kind
        self.input_norm = _kernels.Norm(d, EPS, normal(1, d)) if kind.has_input_norm else None
        self.after = _kernels.Norm(d, EPS, normal(13, d)) if kind.has_after else None
        self.sinks = normal(14, H) if kind.has_sinks else None
        self.post_norm = _kernels.Norm(d, 1e-3, normal(2, d), normal(12, d), "layer")
        shapes = {"q": (H * D, d), "k": (K * D, d), "v": (K * D, d), "o": (d, H * D)}
        self.shapes = shapes
        self.quants = dict(zip(shapes, quants, strict=True))
        self.packed = {
            name: _kernels.pack(self.quants[name], "tiles", normal(3 + i, *shape))
            for i, (name, shape) in enumerate(shapes.items())
        }
        self.biases = {name: normal(ord(name), shapes[name][0]) for name in kind.biases}
        self.norms = {
            name: _kernels.Norm(size, 1e-2, normal(ord(name) + 1, size) if name != "v" else None)
            for name, size in kind.norms.items()
        }
        if not kind.has_values and "k" in self.biases:
            self.biases["v"] = self.biases["k"]
        self.fused_cache, self.cache = self.empty_cache(), self.empty_cache()
        self.fused = _kernels.AttentionLayer(
            pool,
            quants,
            self.input_norm,
            self.packed["q"],
            self.packed["k"],
            self.packed["v"] if kind.has_values else None,
            self.packed["o"],
            self.post_norm,
            d,
            H,
            K,
            D,
            kind.window,
            kind.rope,
            kind.scale,
            tuple(self.biases.get(name) for name in "qkvo"),  # type: ignore[arg-type]
            tuple(self.norms.get(name) for name in "qkv"),  # type: ignore[arg-type]
            kind.clip,
            kind.softcap,
            self.sinks,
            kind.chunk,
            kind.growth,
            _kernels.Residual(self.after, kind.residual_scale) if kind.has_after or kind.residual_scale != 1 else None,
            kind.is_parallel,
        )

    @staticmethod
    def empty_cache() -> Cache:
        group = _kernels.packed_bytes("f16", "tiles", _kernels.KV_GROUP, D)
        shape = (K, CAPACITY // _kernels.KV_GROUP, group)
        return np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)

    def projected(self, name: str, x: F32) -> F32:
        """With its bias and norm."""
        matrix = "k" if name == "v" and not self.kind.has_values else name
        rows, cols = self.shapes[matrix]
        out = np.empty((len(x), rows), np.float32)
        _kernels.linear(self.pool, self.quants[matrix], self.packed[matrix], rows, cols, x, out)
        if name in self.biases:
            out += self.biases[name]
        if name in self.norms:
            rows_of_norm = out.reshape(-1, self.kind.norms[name])
            _kernels.norm(self.norms[name], rows_of_norm, rows_of_norm)
        return out

    def by_parts(self, x: F32, start: int, cos: F32, sin: F32) -> F32:
        h, kind = x.copy(), self.kind
        if self.input_norm is not None:
            _kernels.norm(self.input_norm, x, h)
        q, k, v = (self.projected(name, h).reshape(len(x), -1, D) for name in "qkv")
        if kind.clip:
            q, k, v = (np.clip(y, -np.float32(kind.clip), np.float32(kind.clip)) for y in (q, k, v))
        if kind.rope is not None:
            first, size, pairing = kind.rope
            of_layer = slice(first, first + size // 2)
            for y in (q, k):
                _kernels.rope(y, cos[:, of_layer].copy(), sin[:, of_layer].copy(), pairing)
        _kernels.kv_append(self.pool, "f16", k, v, *self.cache, start)
        if kind.growth is not None:
            beta, every, offset = kind.growth
            steps = (np.arange(start, start + len(x)) + offset) // every
            q *= (1 + beta * np.log1p(steps)).astype(np.float32)[:, None, None]
        attended = np.empty_like(q)
        scores = kind.scale, kind.softcap, self.sinks, kind.chunk
        _kernels.attention(self.pool, "f16", q, *self.cache, start, kind.window, attended, *scores)
        out = self.projected("o", attended.reshape(len(x), -1))
        if self.after is not None:
            _kernels.norm(self.after, out, out)
        _kernels.add(x, out * np.float32(kind.residual_scale))
        if not kind.is_parallel:
            _kernels.norm(self.post_norm, x, h)
        return h


def angles(positions: npt.NDArray[np.int64]) -> tuple[F32, F32]:
    cos, sin = np.empty((2, len(positions), PAIRS), np.float32)
    _kernels.rope_angles(positions, 1e4 ** -(np.arange(PAIRS) / PAIRS), np.linspace(0.9, 1.1, PAIRS), cos, sin)
    return cos, sin


def check_bits_of_parts(pool: _kernels.ThreadPool, quants: Quants, kind: Kind) -> None:
    layer = Layer(pool, quants, kind)
    start = 0
    for tokens in (11, 1, 1, 9):  # a prompt, two steps, the next turn
        x = normal(20 + start, tokens, d)
        expected, normed = x.copy(), np.empty_like(x)
        cos, sin = angles(np.arange(start, start + tokens, dtype=np.int64))
        expected_normed = layer.by_parts(expected, start, cos, sin)
        layer.fused.forward(x, [kv_layer(layer.fused_cache)], [start], [tokens], cos, sin, normed)
        np.testing.assert_array_equal(bits(x), bits(expected))
        np.testing.assert_array_equal(bits(normed), bits(expected_normed))
        start += tokens
    for fused, separate in zip(layer.fused_cache, layer.cache, strict=True):
        np.testing.assert_array_equal(fused, separate)


@pytest.mark.parametrize(
    "quants",
    [
        *((quant,) * 4 for quant in ("f32", "f16", "bf16", "q8_0", "q4_0")),
        ("q4_0", "q8_0", "f16", "bf16"),
        ("f32", "q4_0", "q8_0", "q8_0"),
    ],
)
@pytest.mark.parametrize("kind", PLAIN)
def test_a_layer_has_the_bits_of_the_kernels_that_it_is_made_of(
    pool: _kernels.ThreadPool, quants: Quants, kind: Kind
) -> None:
    check_bits_of_parts(pool, quants, kind)


@pytest.mark.parametrize("kind", OTHERS)
def test_and_so_has_one_with_biases_norms_of_heads_limits_and_other_angles(
    pool: _kernels.ThreadPool, kind: Kind
) -> None:
    check_bits_of_parts(pool, ("q8_0", "f16", "q4_0", "bf16"), kind)


@pytest.mark.parametrize("kind", [PLAIN[1], OTHERS[3]])
def test_tokens_of_several_sequences_in_one_call_have_the_bits_of_each_alone(
    pool: _kernels.ThreadPool, quant: _kernels.Quant, kind: Kind
) -> None:
    layer = Layer(pool, (quant,) * 4, kind)
    alone, together = ([layer.empty_cache() for _ in range(3)] for _ in range(2))
    starts = [0, 0, 0]
    for step, counts in enumerate(([4, 1, 2], [1, 1, 1], [1, 12, 1], [3, 1, 1])):
        tokens, normed = sum(counts), np.empty((sum(counts), d), np.float32)
        x = normal(20 + step, tokens, d)
        positions = np.concatenate([np.arange(s, s + n, dtype=np.int64) for s, n in zip(starts, counts, strict=True)])
        cos, sin = angles(positions)
        expected, expected_normed, at = x.copy(), np.empty_like(x), 0
        for cache, start, n in zip(alone, starts, counts, strict=True):
            rows = slice(at, at + n)
            layer.fused.forward(
                expected[rows], [kv_layer(cache)], [start], [n], cos[rows], sin[rows], expected_normed[rows]
            )
            at += n
        layer.fused.forward(x, [kv_layer(cache) for cache in together], starts, counts, cos, sin, normed)
        np.testing.assert_array_equal(bits(x), bits(expected))
        np.testing.assert_array_equal(bits(normed), bits(expected_normed))
        starts = [s + n for s, n in zip(starts, counts, strict=True)]
    np.testing.assert_array_equal(together, alone)


def test_norms_of_both_kinds_match_the_reference_with_and_without_weight_and_bias() -> None:
    x, weight, bias = normal(0, 9, 70) * np.float32(3) + np.float32(0.5), normal(1, 70), normal(2, 70)
    for kind in ("rms", "layer"):
        wide = x.astype(np.float64)
        wide = wide - wide.mean(-1, keepdims=True) if kind == "layer" else wide
        expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-3)
        for how, wanted in (
            (_kernels.Norm(70, 1e-3, kind=kind), expected),
            (_kernels.Norm(70, 1e-3, weight, kind=kind), expected * weight),
            (_kernels.Norm(70, 1e-3, weight, bias, kind), expected * weight + bias),
        ):
            out = np.empty_like(x)
            _kernels.norm(how, x, out)
            np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-5)
            for t in range(len(x)):
                _kernels.norm(how, x[t : t + 1], x_alone := np.empty((1, 70), np.float32))
                np.testing.assert_array_equal(bits(x_alone[0]), bits(out[t]))
