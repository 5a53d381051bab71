from __future__ import annotations

from typing import cast

import pytest

from smallthinker import _kernels


@pytest.fixture(params=_kernels.available_isas(), scope="session")
def isa(request: pytest.FixtureRequest) -> str:
    """Every instruction set that this machine can run."""
    return cast(str, request.param)


@pytest.fixture(params=["f32", "f16", "q8_0", "q4_0"], scope="session")
def quant(request: pytest.FixtureRequest) -> _kernels.Quant:
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
