from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from random_inputs import F32, bits, normal

from smallthinker import _kernels

d, H, K, D, CAPACITY = 64, 4, 2, 32, 48
EPS, THETA = 1e-6, 1e4


Cache = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]
Quants = tuple["_kernels.Quant", "_kernels.Quant", "_kernels.Quant", "_kernels.Quant"]  # of q, k, v and o


def kv_layer(cache: Cache) -> _kernels.KvLayer:
    return _kernels.KvLayer("f16", *cache, D)


class Layer:
    """One random layer twice: as the fused call, and as the kernels that it is made of."""

    def __init__(self, pool: _kernels.ThreadPool, quants: Quants, use_rope: bool, window: int) -> None:
        self.pool, self.use_rope, self.window = pool, use_rope, window
        self.input_norm, self.post_norm = normal(1, d), normal(2, d)
        shapes = {"q": (H * D, d), "k": (K * D, d), "v": (K * D, d), "o": (d, H * D)}
        self.shapes = shapes
        self.quants = dict(zip(shapes, quants, strict=True))
        self.packed = {
            name: _kernels.pack(self.quants[name], "tiles", normal(3 + i, *shape))
            for i, (name, shape) in enumerate(shapes.items())
        }
        self.fused_cache, self.cache = self.empty_cache(), self.empty_cache()
        self.fused = _kernels.AttentionLayer(
            pool,
            quants,
            self.input_norm,
            *self.packed.values(),
            self.post_norm,
            H,
            K,
            D,
            EPS,
            use_rope,
            window,
        )

    @staticmethod
    def empty_cache() -> Cache:
        group = _kernels.packed_bytes("f16", "tiles", _kernels.KV_GROUP, D)
        shape = (K, CAPACITY // _kernels.KV_GROUP, group)
        return np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)

    def linear(self, name: str, x: F32) -> F32:
        rows, cols = self.shapes[name]
        out = np.empty((len(x), rows), np.float32)
        _kernels.linear(self.pool, self.quants[name], self.packed[name], rows, cols, x, out)
        return out

    def by_parts(self, x: F32, start: int, cos: F32, sin: F32) -> F32:
        h = np.empty_like(x)
        _kernels.rmsnorm(x, self.input_norm, EPS, h)
        q, k, v = (self.linear(name, h).reshape(len(x), -1, D) for name in ("q", "k", "v"))
        if self.use_rope:
            _kernels.rope(q, cos, sin)
            _kernels.rope(k, cos, sin)
        _kernels.kv_append(self.pool, "f16", k, v, *self.cache, start)
        attended = np.empty_like(q)
        _kernels.attention(self.pool, "f16", q, *self.cache, start, self.window, attended)
        _kernels.add(x, self.linear("o", attended.reshape(len(x), -1)))
        _kernels.rmsnorm(x, self.post_norm, EPS, h)
        return h


@pytest.mark.parametrize(
    "quants",
    [*((quant,) * 4 for quant in _kernels.formats()), ("q4_0", "q8_0", "f16", "bf16"), ("f32", "q4_0", "q8_0", "q8_0")],
)
@pytest.mark.parametrize("use_rope", [True, False])
@pytest.mark.parametrize("window", [0, 5])
def test_a_layer_has_the_bits_of_the_kernels_that_it_is_made_of(
    pool: _kernels.ThreadPool, quants: Quants, use_rope: bool, window: int
) -> None:
    layer = Layer(pool, quants, use_rope, window)
    start = 0
    for tokens in (11, 1, 1, 9):  # a prompt, two steps, the next turn
        x = normal(20 + start, tokens, d)
        expected, normed = x.copy(), np.empty_like(x)
        cos, sin = np.empty((2, tokens, D // 2), np.float32)
        _kernels.rope_angles(np.arange(start, start + tokens, dtype=np.int64), D, THETA, cos, sin)
        expected_normed = layer.by_parts(expected, start, cos, sin)
        layer.fused.forward(x, [kv_layer(layer.fused_cache)], [start], [tokens], cos, sin, normed)
        np.testing.assert_array_equal(bits(x), bits(expected))
        np.testing.assert_array_equal(bits(normed), bits(expected_normed))
        start += tokens
    for fused, separate in zip(layer.fused_cache, layer.cache, strict=True):
        np.testing.assert_array_equal(fused, separate)


def test_tokens_of_several_sequences_in_one_call_have_the_bits_of_each_alone(
    pool: _kernels.ThreadPool, quant: _kernels.Quant
) -> None:
    layer = Layer(pool, (quant,) * 4, True, 5)
    alone, together = ([layer.empty_cache() for _ in range(3)] for _ in range(2))
    starts = [0, 0, 0]
    for step, counts in enumerate(([4, 1, 2], [1, 1, 1], [1, 12, 1], [3, 1, 1])):
        tokens, normed = sum(counts), np.empty((sum(counts), d), np.float32)
        x = normal(20 + step, tokens, d)
        cos, sin = np.empty((2, tokens, D // 2), np.float32)
        positions = np.concatenate([np.arange(s, s + n, dtype=np.int64) for s, n in zip(starts, counts, strict=True)])
        _kernels.rope_angles(positions, D, THETA, cos, sin)
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
