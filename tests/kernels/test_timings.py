from __future__ import annotations

import numpy as np
import pytest
from random_inputs import linear, normal

from smallthinker import _kernels


def test_every_call_on_a_pool_is_counted_there_and_nowhere_else() -> None:
    pool, other = _kernels.ThreadPool(2), _kernels.ThreadPool(1)
    packed = _kernels.pack("f32", "tiles", normal(0, 16, 32))
    for _ in range(3):
        linear(pool, "f32", packed, 16, normal(1, 2, 32))
    calls, sec = pool.timings()["linear"]
    assert calls == 3 and sec > 0
    assert other.timings() == {}


def test_kernels_without_a_pool_are_counted_too() -> None:
    x = np.ones((1, 8), np.float32)
    before = _kernels.timings().get("add", (0, 0.0))
    _kernels.add(x, x.copy())
    calls, sec = _kernels.timings()["add"]
    assert calls == before[0] + 1 and sec >= before[1]


def test_what_is_refused_is_not_counted() -> None:
    before = _kernels.timings().get("add", (0, 0.0))
    with pytest.raises(ValueError, match="y"):
        _kernels.add(np.ones((1, 8), np.float32), np.ones((1, 9), np.float32))
    assert _kernels.timings().get("add", (0, 0.0)) == before
