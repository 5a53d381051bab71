"""Errors travel: out of a worker process, and into a copy."""

from __future__ import annotations

import copy
import errno
import importlib
import pickle
import pkgutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import smallthinker
from smallthinker import LLM, AsyncLLM, errors
from smallthinker.errors import MemoryBudgetError, NotPicklableError, QueueFullError, StoreReadError, StoreWriteError
from smallthinker.server.errors import ApiError

WAYS: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle {n}": lambda e, n=n: pickle.loads(pickle.dumps(e, n)) for n in range(pickle.HIGHEST_PROTOCOL + 1)},
}
MORE: dict[type, tuple[Any, ...]] = {MemoryBudgetError: (123,), QueueFullError: (4.5,)}  # arguments after the message


def of_the_package() -> list[type[Exception]]:
    """Every class of exceptions that any module of the package defines."""
    found = set()
    for module in pkgutil.walk_packages(smallthinker.__path__, "smallthinker."):
        if module.name.endswith("__main__"):
            continue
        try:
            values = vars(importlib.import_module(module.name)).values()
        except ModuleNotFoundError as e:
            if e.name in ("ray", "grpc"):  # of an extra: only who has it comes to this module
                continue
            raise
        found |= {v for v in values if isinstance(v, type) and issubclass(v, Exception)}
    return sorted((c for c in found if c.__module__.startswith("smallthinker")), key=lambda c: c.__name__)


def made(kind: type[Exception], message: str) -> Exception:
    error = ApiError(429, message, param="n") if kind is ApiError else kind(message, *MORE.get(kind, ()))
    error.add_note("a note")
    return error


def same(a: BaseException, b: BaseException) -> None:
    assert type(a) is type(b) and a is not b
    assert (a.args, str(a), vars(a)) == (b.args, str(b), vars(b))
    assert (a.errno, a.strerror, a.filename) == (b.errno, b.strerror, b.filename) if isinstance(a, OSError) else True


def test_every_class_of_the_package_is_looked_at() -> None:
    found = of_the_package()
    assert {c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Exception)} < set(found)
    assert ApiError in found


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@settings(max_examples=20)
@given(st.text())
def test_any_error_with_any_message_is_the_same_on_the_other_side(way: Callable[[Any], Any], message: str) -> None:
    for kind in of_the_package():
        error = made(kind, message)
        same(way(error), error)


@pytest.mark.parametrize("kind", [StoreReadError, StoreWriteError, errors.DownloadError])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_an_error_of_the_system_keeps_its_number_and_its_file(way: Callable[[Any], Any], kind: type[OSError]) -> None:
    error = kind(errno.ENOSPC, "disk full", "/a/file")
    assert way(error).errno == errno.ENOSPC
    same(way(error), error)


def test_what_stays_in_its_process_says_so_when_it_is_sent_or_copied() -> None:
    with LLM(context=256, threads=1) as llm, llm.stream("x", max_tokens=1) as stream:
        for kept in (llm, AsyncLLM(llm), stream, stream.request, llm.scheduler, llm._engine, [llm]):
            for way in WAYS.values():
                if isinstance(kept, list) and way is copy.copy:
                    continue  # the list alone
                with pytest.raises(NotPicklableError, match=r"can't be pickled .* EngineOptions") as caught:
                    way(kept)
                assert isinstance(caught.value, TypeError)


def fail() -> None:
    raise QueueFullError("queue: full; try again in 4 s", 4.0)


def test_a_process_pool_survives_an_error_of_a_worker() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with pytest.raises(QueueFullError, match="try again") as caught:
            pool.submit(fail).result()
        assert caught.value.retry_after_sec == 4.0
        assert pool.submit(abs, -1).result() == 1
