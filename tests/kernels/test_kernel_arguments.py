"""Every argument of every kernel, wrong in every way that would touch memory it shouldn't."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from smallthinker import _kernels

POOL = _kernels.ThreadPool(1)
f32, i32, i64, u8 = np.float32, np.int32, np.int64, np.uint8
FFN_QUANTS: _kernels.FfnQuants = ("q4_0", "q4_0", "q4_0")
RECORD_BYTES = 2 * 2 * 288 + 2 * 32 * 36  # of the expert that has the sections
FFN_SECTIONS = _kernels.record_sections(FFN_QUANTS, 64, 32, "relu", True)


def zeros(*shape: int, dtype: Any = f32) -> np.ndarray:
    return np.zeros(shape, dtype)


NORM = _kernels.Norm(64, 1e-6, zeros(64))
OF_32 = _kernels.Residual(_kernels.Norm(32, 1e-6))
# d 64, H 4, K 2, D 8
ATTENTION_LAYER: dict[str, Any] = {
    "pool": POOL,
    "quants": ("q4_0",) * 4,
    "input_norm": NORM,
    "q": zeros(2 * 2 * 288, dtype=u8),
    "k": zeros(2 * 288, dtype=u8),
    "v": zeros(2 * 288, dtype=u8),
    "o": zeros(4 * 288, dtype=u8),
    "post_norm": NORM,
    "hidden": 64,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 8,
    "window": 0,
    "rope": (0, 8, "half"),
}


def kv_layer(heads: int = 2, head_dim: int = 8) -> _kernels.KvLayer:
    keys, values = zeros(heads, 1, 32 * head_dim, dtype=u8), zeros(heads, 1, 32 * head_dim, dtype=u8)
    return _kernels.KvLayer("f16", keys, values, head_dim)


KV_LAYER = kv_layer()

SCORING = _kernels.Scoring(8, 2, "softmax")
SHARED: dict[str, Any] = {
    "quants": ("q4_0",) * 4,
    "hidden": 64,
    "width": 32,
    "activation": "silu",
    "gate": zeros(2 * 288 * 2, dtype=u8),
    "up": zeros(2 * 288 * 2, dtype=u8),
    "down": zeros(4 * 288, dtype=u8),
    "output_gate": zeros(2 * 288, dtype=u8),
}
FFN = _kernels.Ffn(FFN_QUANTS, 64, 32, "relu", True, 8, 2, SCORING, zeros(16 * 64, dtype=f32).view(u8))
FORWARD = _kernels.Forward(
    POOL, [_kernels.AttentionLayer(**ATTENTION_LAYER)] * 2, [FFN] * 2, zeros(3, RECORD_BYTES, dtype=u8)
)
FORWARD.compute(0, zeros(3, 64), [[0, 2, 4], [1, 3, 5]], [2, 0])  # so that there is something to combine

# A right call of each kernel. `k` of route and the counts of experts are chosen so that every dimension differs.
RIGHT: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "unpack": (
        _kernels.unpack,
        {"quant": "q4_0", "layout": "rows", "data": zeros(3 * 36, dtype=u8), "rows": 3, "cols": 64},
    ),
    "repack": (_kernels.repack, {"quant": "q4_0", "layout": "tiles", "blocks": zeros(3, 36, dtype=u8)}),
    "pack": (_kernels.pack, {"quant": "q4_0", "layout": "tiles", "w": zeros(3, 64)}),
    "embed": (
        _kernels.embed,
        {
            "quant": "f32",
            "data": zeros(16 * 20, dtype=f32).view(u8),
            "rows": 5,
            "cols": 20,
            "ids": zeros(2, dtype=i32),
            "out": zeros(2, 20),
        },
    ),
    "rmsnorm": (_kernels.rmsnorm, {"x": zeros(2, 20), "weight": zeros(20), "eps": 1e-6, "out": zeros(2, 20)}),
    "norm": (_kernels.norm, {"how": _kernels.Norm(20, 1e-6, zeros(20)), "x": zeros(2, 20), "out": zeros(2, 20)}),
    "norm_object": (
        _kernels.Norm,
        {"size": 20, "eps": 1e-6, "weight": zeros(20), "bias": zeros(20), "kind": "layer"},
    ),
    "linear": (
        _kernels.linear,
        {
            "pool": POOL,
            "quant": "q4_0",
            "data": zeros(2 * 288, dtype=u8),
            "rows": 5,
            "cols": 64,
            "x": zeros(3, 64),
            "out": zeros(3, 5),
        },
    ),
    "linear_groups": (
        _kernels.linear_groups,
        {
            "pool": POOL,
            "quant": "q4_0",
            "data": zeros(4 * 288, dtype=u8),
            "rows": 21,
            "cols": 64,
            "groups": np.array([0, 1], i32),
            "x": zeros(3, 64),
            "out": zeros(3, 21),
        },
    ),
    "finish_logits": (
        _kernels.finish_logits,
        {"pool": POOL, "logits": zeros(3, 20), "bias": zeros(20), "scale": 0.5, "softcap": 30.0},
    ),
    "rope_angles": (
        _kernels.rope_angles,
        {
            "positions": zeros(3, dtype=i64),
            "frequencies": zeros(4, dtype=np.float64),
            "factors": zeros(4, dtype=np.float64),
            "cos": zeros(3, 4),
            "sin": zeros(3, 4),
        },
    ),
    "rope": (_kernels.rope, {"x": zeros(3, 2, 8), "cos": zeros(3, 4), "sin": zeros(3, 4), "pairing": "interleaved"}),
    "route": (
        _kernels.route,
        {
            "logits": zeros(3, 8),
            "k": 2,
            "gating": "softmax",
            "ids": zeros(3, 2, dtype=i32),
            "weights": zeros(3, 2),
            "bias": zeros(8),
            "expert_scale": zeros(8),
        },
    ),
    "scoring": (
        _kernels.Scoring,
        {"experts": 8, "k": 2, "gating": "softmax", "bias": zeros(8), "expert_scale": zeros(8)},
    ),
    "shared_ffn": (_kernels.SharedFfn, SHARED),
    "sample": (
        _kernels.sample,
        {"pool": POOL, "logits": zeros(8), "temperature": 1.0, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "u": 0.5},
    ),
    "top_ids": (_kernels.top_ids, {"pool": POOL, "logits": zeros(8), "ids": zeros(3, dtype=i32)}),
    "log_sum_exp": (_kernels.log_sum_exp, {"pool": POOL, "logits": zeros(8)}),
    "penalize": (_kernels.penalize, {"logits": zeros(8), "recent": zeros(3, dtype=i32), "penalty": 1.1}),
    "kv_append": (
        _kernels.kv_append,
        {
            "pool": POOL,
            "quant": "f16",
            "k": zeros(3, 2, 8),
            "v": zeros(3, 2, 8),
            "keys": zeros(2, 1, 256, dtype=u8),
            "values": zeros(2, 1, 256, dtype=u8),
            "start": 0,
        },
    ),
    "attention": (
        _kernels.attention,
        {
            "pool": POOL,
            "quant": "f16",
            "q": zeros(3, 4, 8),
            "keys": zeros(2, 1, 256, dtype=u8),
            "values": zeros(2, 1, 256, dtype=u8),
            "start": 13,
            "window": 0,
            "out": zeros(3, 4, 8),
            "sinks": zeros(4),
        },
    ),
    "experts": (
        _kernels.experts,
        {
            "pool": POOL,
            "quants": FFN_QUANTS,
            "hidden": 64,
            "ffn": 32,
            "activation": "relu",
            "gated": True,
            "x": zeros(5, 64),
            "slots": zeros(3, RECORD_BYTES, dtype=u8),
            "slot_ids": np.array([2, 0], i32),
            "offsets": np.array([0, 1, 3], i32),
            "pairs": np.array([0, 4, 9], i32),
            "k": 2,
            "out": zeros(10, 64),
        },
    ),
    "ffn": (
        _kernels.Ffn,
        {
            "quants": FFN_QUANTS,
            "hidden": 64,
            "ffn": 32,
            "activation": "relu",
            "gated": True,
            "experts": 8,
            "k": 2,
            "scoring": SCORING,
            "router": zeros(16 * 64, dtype=f32).view(u8),
        },
    ),
    "forward.run": (
        FORWARD.run,
        {
            "first": 0,
            "last": 2,
            "x": zeros(3, 64),
            "normed": zeros(3, 64),
            "ids": zeros(3, 2, dtype=i32),
            "weights": zeros(3, 2),
            "slot_of": zeros(16, dtype=i32),
            "ahead": np.array([[-1, -1], [1, -1]], i32),
            "caches": [[kv_layer(), KV_LAYER], [kv_layer(), kv_layer()]],
            "starts": [13, 14],
            "counts": [1, 2],
            "cos": zeros(3, 4),
            "sin": zeros(3, 4),
        },
    ),
    "forward.guess": (FORWARD.guess, {"source": 0, "x": zeros(3, 64), "targets": [0]}),
    "forward.compute": (
        FORWARD.compute,
        {"layer": 0, "normed": zeros(3, 64), "pairs": [[0, 2, 4], [1, 3, 5]], "slots": [2, 0]},
    ),
    "forward.share": (FORWARD.share, {"layer": 0, "normed": zeros(3, 64)}),
    "forward.combine": (FORWARD.combine, {"layer": 0, "x": zeros(3, 64), "weights": zeros(3, 2)}),
    "combine": (
        _kernels.combine,
        {"pool": POOL, "x": zeros(3, 20), "contributions": zeros(6, 20), "weights": zeros(3, 2)},
    ),
    "kv_layer": (
        _kernels.KvLayer,
        {
            "quant": "f16",
            "keys": zeros(2, 1, 256, dtype=u8),
            "values": zeros(2, 1, 256, dtype=u8),
            "head_dim": 8,
        },
    ),
    "attention_layer": (_kernels.AttentionLayer, ATTENTION_LAYER),
    "attention_layer.forward": (
        _kernels.AttentionLayer(**ATTENTION_LAYER).forward,
        {
            "x": zeros(3, 64),
            "caches": [kv_layer(), KV_LAYER],
            "starts": [13, 14],
            "counts": [1, 2],
            "cos": zeros(3, 4),
            "sin": zeros(3, 4),
            "normed": zeros(3, 64),
        },
    ),
    "add": (_kernels.add, {"x": zeros(3, 20), "y": zeros(3, 20)}),
    "multiply_add": (_kernels.multiply_add, {"pool": POOL, "multiplications": 1000}),
    "read_memory": (_kernels.read_memory, {"pool": POOL, "data": zeros(20, dtype=u8)}),
}

ARRAYS = [
    (name, arg) for name, (_, args) in RIGHT.items() for arg, value in args.items() if isinstance(value, np.ndarray)
]
OUTPUTS = [
    (name, arg)
    for name, arg in ARRAYS
    if arg in ("out", "cos", "sin", "ids", "weights", "keys", "values", "x", "normed", "logits")
    and (name, arg)
    not in {
        ("linear", "x"),
        ("experts", "x"),
        ("rmsnorm", "x"),
        ("norm", "x"),
        ("embed", "ids"),
        ("combine", "weights"),
    }
    and (name, arg)
    not in {
        ("rope", "cos"),
        ("rope", "sin"),
        ("norm", "x"),
        ("linear_groups", "x"),
        ("forward.run", "cos"),
        ("forward.run", "sin"),
        ("forward.guess", "x"),
        ("forward.compute", "normed"),
        ("forward.share", "normed"),
        ("forward.combine", "weights"),
        ("attention_layer.forward", "cos"),
        ("attention_layer.forward", "sin"),
        ("attention", "keys"),
        ("attention", "values"),
        *((name, "logits") for name in ("route", "sample", "top_ids", "log_sum_exp")),
    }
]
# Dimensions that nothing else of the call has.
FREE = {
    ("forward.guess", "x", 0),
    ("forward.share", "normed", 0),
    ("forward.combine", "x", 0),
    ("experts", "slots", 0),
    ("rope", "x", 1),
    ("linear_groups", "groups", 0),
    ("route", "logits", 1),
    ("finish_logits", "logits", 0),
    *((name, "logits", 0) for name in ("sample", "top_ids", "log_sum_exp", "penalize")),
    ("top_ids", "ids", 0),
    ("penalize", "recent", 0),
}


def call(name: str, **changes: Any) -> Any:
    function, args = RIGHT[name]
    return function(**(args | changes))


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_call_passes(name: str) -> None:
    call(name)


@pytest.mark.parametrize(("name", "arg"), ARRAYS)
def test_another_type_is_refused(name: str, arg: str) -> None:
    value = RIGHT[name][1][arg]
    for dtype in {np.dtype(t) for t in (f32, np.float64, i32, i64, np.uint16, u8, value.dtype.newbyteorder())} - {
        value.dtype
    }:
        if dtype.itemsize > 1 or value.dtype.itemsize > 1:
            with pytest.raises(ValueError, match=f"{arg}: expected {value.dtype}"):
                call(name, **{arg: value.astype(dtype)})


@pytest.mark.parametrize(("name", "arg"), ARRAYS)
def test_another_number_of_dimensions_is_refused(name: str, arg: str) -> None:
    value = RIGHT[name][1][arg]
    for other in (value[None], value[0, ...]):
        with pytest.raises(ValueError, match=f"{arg}: expected"):
            call(name, **{arg: other})


@pytest.mark.parametrize(("name", "arg"), [a for a in ARRAYS if a[0] not in ("pack", "repack", "read_memory")])
def test_another_length_of_a_dimension_is_refused(name: str, arg: str) -> None:
    value = RIGHT[name][1][arg]
    for axis in range(value.ndim):
        if (name, arg, axis) in FREE:
            continue
        with pytest.raises(ValueError, match=r"expected|divide"):
            call(name, **{arg: np.delete(value, 0, axis)})


@pytest.mark.parametrize(("name", "arg"), ARRAYS)
def test_gaps_between_elements_are_refused(name: str, arg: str) -> None:
    value = RIGHT[name][1][arg]
    with pytest.raises(ValueError, match=f"{arg}: expected a C-contiguous array"):
        call(name, **{arg: np.repeat(value, 2, axis=-1)[..., ::2]})


@pytest.mark.parametrize(("name", "arg"), [(n, a) for n, a in ARRAYS if n not in ("repack", "read_memory")])
def test_misaligned_data_is_refused(name: str, arg: str) -> None:
    value = RIGHT[name][1][arg]
    buffer = np.zeros(value.nbytes + 1, u8)[1:]
    with pytest.raises(ValueError, match="aligned"):
        call(name, **{arg: buffer.view(value.dtype).reshape(value.shape)})


@pytest.mark.parametrize(("name", "arg"), OUTPUTS)
def test_a_read_only_output_is_refused(name: str, arg: str) -> None:
    value = RIGHT[name][1][arg].copy()
    value.flags.writeable = False
    with pytest.raises(ValueError, match=f"{arg}: expected a writeable array"):
        call(name, **{arg: value})


@pytest.mark.parametrize(
    ("name", "arg"), [(n, a) for n, (_, args) in RIGHT.items() for a in args if a in ("quant", "quants")]
)
def test_an_unknown_format_is_refused(name: str, arg: str) -> None:
    right = RIGHT[name][1][arg]
    wrong = "q9_9" if arg == "quant" else (*right[:-1], "q9_9")
    with pytest.raises(ValueError, match=r"quant: expected one of f32, f16, bf16, .*, q6_k, found 'q9_9'"):
        call(name, **{arg: wrong})


WRONG_VALUES: list[tuple[str, dict[str, Any], str]] = [
    ("unpack", {"rows": 0}, "rows: expected 1 to"),
    ("unpack", {"rows": 2**62}, "rows: expected 1 to"),
    ("unpack", {"cols": 2**62}, "cols: expected 1 to"),
    ("unpack", {"cols": 48}, "cols: expected a multiple of 32"),
    ("unpack", {"layout": "cols"}, "layout: expected tiles or rows"),
    ("pack", {"w": zeros(3, 40)}, "cols: expected a multiple of 32"),
    ("pack", {"quant": "q5_1"}, "quant: expected a format that can be made of numbers, found q5_1"),
    ("unpack", {"quant": "q6_k"}, "cols: expected a multiple of 256 for q6_k, found 64"),
    ("unpack", {"quant": "mxfp4"}, "layout: expected tiles, the only one of mxfp4, found rows"),
    ("repack", {"layout": "cols"}, "layout: expected tiles or rows"),
    ("repack", {"quant": "q6_k"}, "blocks: expected rows of whole blocks of 210 bytes, found 36"),
    ("pack", {"w": zeros(0, 64)}, "rows: expected 1 to"),
    ("embed", {"ids": np.array([0, 5], i32)}, r"ids\[1\]: expected 0 to 4, found 5"),
    ("embed", {"ids": np.array([-1, 0], i32)}, r"ids\[0\]: expected 0 to 4, found -1"),
    ("linear_groups", {"groups": np.array([0, 2], i32)}, r"groups\[1\]: expected 0 to 1, found 2"),
    ("linear_groups", {"groups": np.array([-1, 0], i32)}, r"groups\[0\]: expected 0 to 1, found -1"),
    ("linear_groups", {"groups": np.array([1, 1], i32)}, r"groups\[1\]: not above the one before"),
    ("rope", {"pairing": "neox"}, "pairing: expected half or interleaved, found 'neox'"),
    ("rope", {"cos": zeros(3, 5), "sin": zeros(3, 5)}, "cos: expected at most 4 columns, found 5"),
    ("rope", {"cos": zeros(3, 0), "sin": zeros(3, 0)}, "cos: expected at least 1 columns, found 0"),
    ("norm_object", {"size": 0}, "size: expected 1 to"),
    ("norm_object", {"kind": "group"}, "kind: expected rms or layer, found 'group'"),
    ("route", {"k": 9}, "k: expected 1 to 8"),
    ("route", {"k": 0}, "k: expected 1 to 8"),
    ("route", {"gating": "relu"}, "gating: expected softmax or sigmoid"),
    ("sample", {"logits": zeros(0)}, "logits: expected 1 to"),
    ("sample", {"temperature": 0.0}, "temperature: expected a number above 0"),
    ("sample", {"temperature": float("inf")}, "temperature: expected a number above 0"),
    ("sample", {"top_k": 0}, "top_k: expected 1 or more"),
    ("sample", {"top_p": 0.0}, "top_p: expected above 0"),
    ("sample", {"min_p": float("nan")}, "min_p: expected 0 or more"),
    ("sample", {"u": 1.0}, "u: expected 0 or more"),
    ("top_ids", {"ids": zeros(9, dtype=i32)}, "ids: expected at most 8, found 9"),
    ("penalize", {"recent": np.array([0, 8], i32)}, r"recent\[1\]: expected 0 to 7, found 8"),
    ("penalize", {"recent": np.array([-1], i32)}, r"recent\[0\]: expected 0 to 7, found -1"),
    ("penalize", {"penalty": -1.0}, "penalty: expected 0 or more"),
    ("kv_append", {"start": -1}, "start: expected 0 to"),
    ("kv_append", {"start": 2**31 - 3}, "start: expected 0 to"),
    ("attention", {"start": 14}, "capacity of at least 17 positions, found 16"),
    ("attention", {"start": 100, "window": 15}, "capacity of at least 17 positions, found 16"),
    ("attention", {"quant": "q8_0"}, "head_dim: expected a multiple of 32 for q8_0, found 8"),
    ("kv_append", {"quant": "q4_0"}, "quant: expected f16 or q8_0, found 'q4_0'"),
    ("kv_append", {"keys": zeros(2, 0, 256, dtype=u8), "values": zeros(2, 0, 256, dtype=u8)}, "capacity of at least 1"),
    ("attention", {"start": -1}, "start: expected 0 to"),
    ("attention", {"window": -1}, "window: expected 0"),
    ("attention", {"q": zeros(3, 5, 8), "out": zeros(3, 5, 8)}, "2 heads don't divide the 5"),
    ("kv_layer", {"quant": "q4_0"}, "quant: expected f16 or q8_0, found 'q4_0'"),
    ("attention_layer", {"heads": 5}, "2 heads don't divide the 5"),
    ("attention_layer", {"kv_heads": 0}, "kv_heads: expected 1 to"),
    ("attention_layer", {"post_norm": _kernels.Norm(32, 1e-6)}, "post_norm: expected a size of 64, found 32"),
    ("attention_layer", {"input_norm": _kernels.Norm(32, 1e-6)}, "input_norm: expected a size of 64, found 32"),
    ("attention_layer", {"residual": OF_32}, "residual: expected a norm of 64, found 32"),
    ("attention_layer", {"hidden": 0}, "hidden: expected 1 to"),
    ("attention_layer", {"sinks": zeros(3)}, r"sinks: expected float32 \[4\]"),
    ("attention_layer", {"chunk": -1}, "chunk: expected 0"),
    ("attention_layer", {"softcap": -1.0}, "softcap: expected 0"),
    ("attention_layer", {"growth": (0.1, 0, 0)}, "growth: expected a step every 1 position or more, found 0"),
    ("attention_layer", {"growth": (0.1, 1, -1)}, "growth: expected an offset of 0 to"),
    ("attention", {"chunk": -1}, "chunk: expected 0"),
    ("attention", {"softcap": float("nan")}, "softcap: expected 0"),
    ("finish_logits", {"softcap": -1.0}, "softcap: expected 0"),
    ("ffn", {"residual": OF_32}, "residual: expected a norm of 64, found 32"),
    ("attention_layer", {"rope": (0, 7, "half")}, "rope: expected 2 to 8 numbers, even, found 7"),
    ("attention_layer", {"rope": (0, 10, "half")}, "rope: expected 2 to 8 numbers, even, found 10"),
    ("attention_layer", {"rope": (0, 0, "half")}, "rope: expected 2 to 8 numbers, even, found 0"),
    ("attention_layer", {"rope": (-1, 8, "half")}, "rope: expected a column of 0 to"),
    ("attention_layer", {"rope": (0, 8, "neox")}, "pairing: expected half or interleaved"),
    ("attention_layer", {"clip": -1.0}, "clip: expected 0"),
    ("attention_layer", {"clip": float("nan")}, "clip: expected 0"),
    ("attention_layer", {"biases": (zeros(32), zeros(32), None, None)}, r"biases: k: expected float32 \[16\]"),
    ("attention_layer", {"biases": (None, None, None, zeros(63))}, r"biases: o: expected float32 \[64\]"),
    ("attention_layer", {"norms": (NORM, None, None)}, "norms: q: expected a size of 8 or 32, found 64"),
    ("attention_layer.forward", {"cos": zeros(3, 3), "sin": zeros(3, 3)}, "cos: expected at least 4 columns, found 3"),
    ("forward.run", {"cos": zeros(3, 3), "sin": zeros(3, 3)}, "cos: expected at least 4 columns, found 3"),
    ("attention_layer.forward", {"caches": [KV_LAYER, KV_LAYER]}, r"caches\[1\]: is there twice"),
    ("attention_layer.forward", {"caches": [KV_LAYER, None]}, r"caches\[1\]: expected a KvLayer"),
    ("attention_layer.forward", {"caches": [KV_LAYER]}, "starts: expected as many as caches, 1, found 2"),
    (
        "attention_layer.forward",
        {"caches": [KV_LAYER, kv_layer(1)]},
        r"caches\[1\]: expected 2 heads of 8, found 1 of 8",
    ),
    (
        "attention_layer.forward",
        {"caches": [KV_LAYER, kv_layer(2, 16)]},
        r"caches\[1\]: expected 2 heads of 8, found 2 of 16",
    ),
    ("attention_layer.forward", {"counts": [1]}, "counts: expected as many as caches, 2, found 1"),
    ("attention_layer.forward", {"counts": [1, 1]}, "counts: expected 3 tokens in all, found 2"),
    ("attention_layer.forward", {"counts": [1, 3]}, r"counts\[1\]: expected 1 to 2, found 3"),
    ("attention_layer.forward", {"counts": [0, 3]}, r"counts\[0\]: expected 1 to 3, found 0"),
    ("attention_layer.forward", {"starts": [13, 15]}, "capacity of at least 17 positions, found 16"),
    ("attention_layer.forward", {"starts": [-1, 0]}, "start: expected 0 to"),
    ("experts", {"hidden": 48}, "hidden: expected a multiple of 32"),
    ("experts", {"ffn": 16}, "ffn: expected a multiple of 32 for q4_0"),
    ("experts", {"ffn": 24}, "ffn: expected a multiple of 16"),
    ("experts", {"ffn": 64}, "slots: expected records of at least"),
    ("experts", {"k": 0}, "k: expected 1 to"),
    ("experts", {"slot_ids": np.array([3, 0], i32)}, r"slot_ids\[0\]: expected 0 to 2, found 3"),
    ("experts", {"slot_ids": np.array([0, -1], i32)}, r"slot_ids\[1\]: expected 0 to 2, found -1"),
    ("experts", {"offsets": np.array([0, 4, 3], i32)}, r"offsets\[2\]: less than"),
    ("experts", {"offsets": np.array([0, 1, 2], i32)}, "offsets: expected 0 to 3"),
    ("experts", {"offsets": np.array([1, 1, 3], i32)}, "offsets: expected 0 to 3"),
    ("experts", {"pairs": np.array([0, 4, 10], i32)}, r"pairs\[2\]: expected 0 to 9, found 10"),
    ("experts", {"pairs": np.array([-1, 4, 9], i32)}, r"pairs\[0\]: expected 0 to 9, found -1"),
    ("experts", {"pairs": np.array([0, 4, 4], i32)}, r"pairs\[2\]: 4 is there twice"),
    (
        "experts",
        {"activation": "elu"},
        "activation: expected one of relu, silu, gelu, gelu_tanh, relu2, clamped_swiglu, found 'elu'",
    ),
    ("experts", {"activation": "silu", "hidden": 48}, "hidden: expected a multiple of 32"),
    ("experts", {"activation": "silu", "ffn": 64}, "slots: expected records of at least 6912 bytes, found 3456"),
    ("experts", {"activation": "relu2", "gated": False, "ffn": 64}, "slots: expected records of at least"),
    ("experts", {"activation": "silu", "slots": zeros(3, 3455, dtype=u8)}, "slots: expected records of at least 3456"),
    ("experts", {"activation": "silu", "slot_ids": np.array([3, 0], i32)}, r"slot_ids\[0\]: expected 0 to 2, found 3"),
    ("ffn", {"k": 9}, "scoring: expected 9 of 8 experts, found 2 of 8"),
    ("ffn", {"experts": 0}, "experts: expected 1 to"),
    ("ffn", {"activation": "elu"}, "activation: expected one of relu, silu"),
    ("ffn", {"activation": "clamped_swiglu"}, "expected a gate, a limit and an alpha above 0 for clamped_swiglu"),
    ("ffn", {"router": None}, "scoring, router: expected both or neither"),
    ("ffn", {"scoring": None}, "scoring, router: expected both or neither"),
    ("ffn", {"scoring": None, "router": None}, "k: expected 8, all slices, without a router, found 2"),
    ("ffn", {"hidden": 96, "shared": _kernels.SharedFfn(**SHARED)}, "shared: expected a network of 96"),
    ("scoring", {"k": 9}, "k: expected 1 to 8"),
    ("scoring", {"gating": "relu"}, "gating: expected softmax or sigmoid"),
    ("scoring", {"groups": 3}, r"groups: expected a divisor of 8 \(experts\)"),
    ("scoring", {"groups": 8}, "groups: expected a divisor of 8 .* that leaves 2 or more to each, found 8"),
    ("scoring", {"kept_groups": 2}, "kept_groups: expected 1 to 1, found 2"),
    ("scoring", {"groups": 4, "k": 3}, "k: expected at most the 2 experts of the kept groups, found 3"),
    ("scoring", {"scale": float("inf")}, "scale: expected a finite number"),
    ("shared_ffn", {"width": 40}, "width: expected a multiple of 16, found 40"),
    ("shared_ffn", {"activation": "clamped_swiglu"}, "activation: expected one without a limit"),
    ("ffn", {"hidden": 48}, "hidden: expected a multiple of 32"),
    ("forward.run", {"first": -1}, "first, last: expected 0 to 2"),
    ("forward.run", {"last": 3}, "first, last: expected 0 to 2"),
    ("forward.run", {"first": 1, "last": 0}, "first, last: expected 0 to 2"),
    ("forward.run", {"caches": []}, "starts: expected as many as caches, 0, found 2"),
    ("forward.run", {"caches": [[KV_LAYER]] * 2}, "caches: expected those of 2 layers, found 1"),
    ("forward.run", {"caches": [[KV_LAYER] * 2] * 2}, r"caches\[1\]: is there twice"),
    ("forward.run", {"caches": [[KV_LAYER, None]] * 2}, r"caches\[\d\]: (expected a KvLayer|is there twice)"),
    ("forward.run", {"starts": [-1, 0]}, "start: expected 0 to"),
    ("forward.run", {"ahead": np.array([[0, 0], [0, 2]], i32)}, "ahead: expected less than 2, found 2"),
    ("forward.run", {"slot_of": np.full(16, 3, i32)}, r"slot_of\[\d+\]: expected 0 to 2, found 3"),
    ("forward.guess", {"targets": [2]}, "targets: expected 0 to 1, found 2"),
    ("forward.guess", {"source": -1}, "targets: no predictor of layer 0"),
    ("forward.compute", {"layer": -1}, "layer: expected 0 to 1, found -1"),
    ("forward.compute", {"layer": 2}, "layer: expected 0 to 1, found 2"),
    ("forward.compute", {"slots": [0]}, "slots: expected as many as pairs, 2, found 1"),
    ("forward.compute", {"slots": [0, 3]}, r"slots\[1\]: expected 0 to 2, found 3"),
    ("forward.compute", {"slots": [-1, 0]}, r"slots\[0\]: expected 0 to 2, found -1"),
    ("forward.compute", {"pairs": [[0], [6]]}, "pairs: expected 0 to 5, found 6"),
    ("forward.compute", {"pairs": [[0], [-1]]}, "pairs: expected 0 to 5, found -1"),
    ("forward.compute", {"pairs": [[0], [0]]}, "pairs: 0 is there twice"),
    ("forward.combine", {"x": zeros(4, 64), "weights": zeros(4, 2)}, "x: expected at most the tokens"),
]


@pytest.mark.parametrize(("name", "changes", "message"), WRONG_VALUES)
def test_a_value_out_of_range_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(name, **changes)


def test_an_output_over_its_input_is_refused() -> None:
    x = zeros(3, 64)
    with pytest.raises(ValueError, match="out: expected memory apart from that of x"):
        call("linear", data=zeros(4 * 4 * 288, dtype=u8)[: 4 * 2 * 288], rows=64, x=x, out=x)
    q = zeros(3, 4, 8)
    with pytest.raises(ValueError, match="out: expected memory apart from that of q"):
        call("attention", q=q, out=q)


def test_records_are_aligned_sections_one_after_the_other() -> None:
    for activation in _kernels.activations():
        for gated in (True,) if activation == "clamped_swiglu" else (True, False):
            sections = _kernels.record_sections(("q8_0", "q4_0", "f16"), 96, 32, activation, gated)
            assert len(sections) == 2 + gated and sections[0].offset == 0
            at = 0
            for quant, section in zip(("q8_0", "q4_0", "f16")[not gated :], sections, strict=True):
                assert section.offset == -(-at // 64) * 64
                assert section.nbytes == _kernels.packed_bytes(quant, section.layout, section.rows, section.cols)
                at = section.offset + section.nbytes
            shapes = [(section.layout, section.is_transposed, section.rows, section.cols) for section in sections]
            if (activation, gated) == ("relu", True):  # dead neurons are rows
                assert shapes == [("tiles", False, 32, 96), ("rows", False, 32, 96), ("rows", True, 32, 96)]
            else:
                assert shapes == [*[("tiles", False, 32, 96)] * (1 + gated), ("tiles", False, 96, 32)]
    assert FFN_SECTIONS[-1].offset + FFN_SECTIONS[-1].nbytes == RECORD_BYTES
