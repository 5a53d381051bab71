from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from smallthinker import LLM, _kernels
from smallthinker.engine import Engine
from smallthinker.measures.profile import Clocks, KernelTime, Profile


def test_kernels_disk_and_python_add_up_to_the_time_of_the_steps(hybrid_store: Path) -> None:
    x, angles = np.zeros((1, 1, 2), np.float32), np.zeros((1, 1), np.float32)
    for _ in range(1000):  # a kernel of the layers' that somebody else in this process has called more often
        _kernels.rope(x, angles, angles)
    with LLM(hybrid_store) as llm:
        answer = llm.generate("Once upon a time", max_tokens=6, ignore_eos=True, seed=0)
    for clocks in (answer.profile.prefill, answer.profile.decode):
        assert sum(clocks.parts().values()) == pytest.approx(clocks.wall_sec)
        assert clocks.stall_sec >= 0 and clocks.python_sec > 0
        # the smallest kernels of this model may end within a tick of the clock
        assert all(kernel.calls > 0 and kernel.sec >= 0 for kernel in clocks.kernels.values())
        assert sum(kernel.sec for kernel in clocks.kernels.values()) > 0
        assert {"linear", "experts"} <= set(clocks.kernels)
    assert answer.profile.prefill.tokens == answer.stats.prompt_tokens
    assert answer.profile.decode.tokens == answer.stats.new_tokens - 1


def test_an_answer_counts_only_itself(hybrid_store: Path) -> None:
    with LLM(hybrid_store) as llm:
        llm.generate("Once upon a time there was", max_tokens=20, ignore_eos=True, seed=0)
        answer = llm.generate("x", max_tokens=2, ignore_eos=True, seed=0)
    assert answer.profile.prefill.tokens == answer.profile.decode.tokens == 1
    assert {name: kernel.calls for name, kernel in answer.profile.prefill.kernels.items()} == {
        name: kernel.calls for name, kernel in answer.profile.decode.kernels.items()
    }


def test_the_engines_clocks_count_every_computed_token(hybrid_store: Path) -> None:
    with Engine(hybrid_store, chunk=4) as engine:
        engine.prefill([1, 2, 3, 4, 5])
        engine.prefill([1, 2, 3, 4, 5, 6])  # five of them are in the KV cache
        engine.decode(7)
        assert engine.clocks().tokens == 7


def test_a_difference_of_two_readings_has_only_what_happened_between_them() -> None:
    before = Clocks(2, 3.0, 1.0, {"linear": KernelTime(4, 0.5), "embed": KernelTime(1, 0.25)})
    after = Clocks(5, 7.0, 1.5, {"linear": KernelTime(6, 1.5), "embed": KernelTime(1, 0.25), "add": KernelTime(1, 0.5)})
    between = after - before
    assert between == Clocks(3, 4.0, 0.5, {"linear": KernelTime(2, 1.0), "add": KernelTime(1, 0.5)})
    assert between.python_sec == 2.0
    assert between.parts() == {"linear": 1.0, "add": 0.5, "waiting for the disk": 0.5, "Python": 2.0}


def test_the_table_says_milliseconds_and_shares_of_both_phases() -> None:
    prefill = Clocks(10, 1.0, 0.5, {"linear": KernelTime(1, 0.25), "gemm": KernelTime(1, 0.05)})
    profile = Profile(prefill, Clocks(), 0.002, 0.004, 2)
    lines = [line.split() for line in profile.table().splitlines()]
    assert lines[1] == ["linear", "25.000", "25%", "-"]
    assert ["waiting", "for", "the", "disk", "50.000", "50%", "-"] in lines
    assert ["Python", "20.000", "20%", "-"] in lines
    assert lines[-2] == ["all", "100.000", "100%", "-"]
    assert lines[-1][-3:] == ["1.000,", "text", "2.000"]
