from __future__ import annotations

import os
from typing import cast

import pytest
from hypothesis import settings

import smallthinker
from smallthinker import _kernels

# With a driver, every test here that says _kernels means the program that KERNELS_DRIVER starts. What tests the module
# itself stays out.
if command := os.environ.get("KERNELS_DRIVER"):
    from driver.client import DriverKernels

    smallthinker._kernels = _kernels = DriverKernels(command)  # type: ignore
    collect_ignore = [
        "test_attention_layer.py",
        "test_kernel_arguments.py",
        "test_thread_pool.py",
        "test_timings.py",
        "test_forward.py",
    ]
    settings.register_profile("driver", max_examples=8, deadline=None)  # a call by a pipe, emulated or checked, is slow


def pytest_report_header() -> str:
    isas = ", ".join(_kernels.available_isas())
    if command:
        return f"kernels: {isas} by {command}"
    return f"kernels: {isas}; not NEON and not with sanitizers: tests/run_foreign.sh, tests/run_sanitizers.sh"


@pytest.fixture(params=_kernels.available_isas(), scope="session")
def isa(request: pytest.FixtureRequest) -> str:
    """Every instruction set that this machine can run."""
    return cast(str, request.param)


@pytest.fixture(params=[quant for quant in _kernels.formats() if _kernels.has_rows(quant)], scope="session")
def quant(request: pytest.FixtureRequest) -> _kernels.Quant:
    """The formats that have both layouts and are made of numbers."""
    return cast("_kernels.Quant", request.param)


@pytest.fixture(params=list(_kernels.formats()), scope="session")
def any_quant(request: pytest.FixtureRequest) -> _kernels.Quant:
    return cast("_kernels.Quant", request.param)


@pytest.fixture(params=[quant for quant, (block, _) in _kernels.formats().items() if block > 1], scope="session")
def block_quant(request: pytest.FixtureRequest) -> _kernels.Quant:
    return cast("_kernels.Quant", request.param)


@pytest.fixture(params=["tiles", "rows"], scope="session")
def layout(request: pytest.FixtureRequest) -> _kernels.Layout:
    return cast("_kernels.Layout", request.param)


@pytest.fixture(scope="session")
def pools(isa: str) -> list[_kernels.ThreadPool]:
    """Pools of 1, 2 and 3 threads."""
    return [_kernels.ThreadPool(threads, isa) for threads in (1, 2, 3)]


@pytest.fixture(scope="session")
def pool(pools: list[_kernels.ThreadPool]) -> _kernels.ThreadPool:
    return pools[1]
