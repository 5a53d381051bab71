from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from random_inputs import bits, linear, normal

from smallthinker import _kernels


def test_two_python_threads_may_share_a_pool() -> None:
    pool = _kernels.ThreadPool(3)
    packed = _kernels.pack("q4_0", "tiles", normal(0, 400, 96))
    inputs = [normal(seed, 5, 96) for seed in range(4)]
    expected = [linear(pool, "q4_0", packed, 400, x) for x in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(200):
            if not np.array_equal(bits(linear(pool, "q4_0", packed, 400, inputs[i])), bits(expected[i])):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_pools_come_and_go_used_or_not() -> None:
    packed = _kernels.pack("f32", "tiles", np.eye(64, dtype=np.float32))
    x = normal(0, 2, 64)
    for threads in (1, 2, 5, 9) * 5:
        unused = _kernels.ThreadPool(threads)
        used = _kernels.ThreadPool(threads)
        np.testing.assert_array_equal(linear(used, "f32", packed, 64, x), x)
        del unused, used
    gc.collect()


def test_a_pool_says_what_it_is(isa: str) -> None:
    pool = _kernels.ThreadPool(3, isa)
    assert (pool.threads, pool.isa, pool.scratch_bytes) == (3, isa, 0)
    linear(pool, "q4_0", _kernels.pack("q4_0", "tiles", normal(0, 16, 64)), 16, normal(1, 2, 64))
    assert 0 < pool.scratch_bytes < 10_000
    pool.release_scratch()
    assert pool.scratch_bytes == 0
    assert _kernels.ThreadPool(1).isa == _kernels.isa()
    assert _kernels.isa() in _kernels.available_isas()


@pytest.mark.parametrize("threads", [0, -1, 257])
def test_a_pool_of_no_or_too_many_threads_is_refused(threads: int) -> None:
    with pytest.raises(ValueError, match="threads: expected 1 to 256"):
        _kernels.ThreadPool(threads)


def test_an_unknown_instruction_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'sse9'.*portable"):
        _kernels.ThreadPool(1, "sse9")


@pytest.mark.parametrize("name", _kernels.available_isas())
def test_the_environment_picks_the_instruction_set_at_import(name: str) -> None:
    assert import_with(name).stdout.strip() == name


def test_an_unknown_instruction_set_in_the_environment_fails_the_import() -> None:
    assert "SMALLTHINKER_ISA: instruction set 'sse9'" in import_with("sse9").stderr


def import_with(isa: str) -> subprocess.CompletedProcess[str]:
    code = "from smallthinker import _kernels; print(_kernels.ThreadPool(1).isa)"
    environment = os.environ | {"SMALLTHINKER_ISA": isa}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
