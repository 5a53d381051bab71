"""Which instruction sets are offered: a wheel that finds too few computes the same, 20 times slower."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from smallthinker import _kernels

NEEDS = {  # what Linux calls what each one's file is compiled for
    "avx2": "avx2 fma f16c",
    "avx2vnni": "avx2 fma f16c avx_vnni",
    "avx512": "avx2 fma f16c avx512f avx512bw avx512dq avx512vl avx512_vnni",
}


def expected_isas(built: list[str]) -> list[str]:
    if asked := os.environ.get("KERNELS_ISAS"):  # of an emulated CPU
        return asked.split()
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        pytest.skip("only Linux on x86 says independently what the CPU has")
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = set(next(line for line in lines if line.startswith("flags")).partition(":")[2].split())
    return ["portable", *(name for name, needs in NEEDS.items() if name in built and flags >= set(needs.split()))]


def test_every_set_that_the_cpu_has_is_offered_and_no_other() -> None:
    available = _kernels.available_isas()
    hidden = {"avx2vnni"} if "KERNELS_DRIVER" in os.environ else set()  # the driver finds it where a sandbox hides it
    expected = expected_isas(available if hidden else _kernels.built_isas())
    assert [name for name in available if name in expected or name not in hidden] == expected


def test_the_sets_offered_are_a_part_of_the_build_s_from_portable_on() -> None:
    if "KERNELS_DRIVER" in os.environ:
        pytest.skip("the driver doesn't say what was built")
    built, available = _kernels.built_isas(), _kernels.available_isas()
    assert built[0] == available[0] == "portable"
    assert available == [name for name in built if name in available]
