"""Files that lie in several places at once, drawn by hypothesis: an answer or one line, and no more memory than a file
of that size can ask for. fuzz.py draws many more of them."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("gguf", reason="needs smallthinker[gguf]")
pytest.importorskip("torch", reason="needs smallthinker[train]")

from targets import TARGETS, Files, call

_MOST_BYTES = 24 << 20  # templates may take more, by their own meter; conversions are too slow for many


class Drawn:
    def __init__(self, data: st.DataObject) -> None:
        self._data = data

    def integer(self, low: int, high: int) -> int:
        return self._data.draw(st.integers(low, high))

    def data(self, most: int) -> bytes:
        return self._data.draw(st.binary(max_size=most))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("lies"))


@pytest.mark.parametrize("name", sorted(set(TARGETS) - {"template", "gguf_conversion"}))
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_file_that_lies_is_an_answer_or_one_line(files: Files, name: str, data: st.DataObject) -> None:
    tracemalloc.start()
    try:
        call(TARGETS[name], Drawn(data), files)
        assert tracemalloc.get_traced_memory()[1] < _MOST_BYTES
    finally:
        tracemalloc.stop()
