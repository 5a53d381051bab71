"""What pybind11 writes of a function is what its TypeErrors say."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest


def docs(holder: object) -> Iterator[str]:
    for member in vars(holder).values():
        if isinstance(member, type) and member.__module__.startswith("smallthinker."):
            yield from docs(member)
        yield getattr(member, "__doc__", None) or ""


@pytest.mark.parametrize("module", ["_kernels", "_storage", "_cache", "_bpe"])
def test_no_signature_names_a_type_of_cpp(module: str) -> None:
    signatures = list(docs(importlib.import_module(f"smallthinker.{module}")))
    assert any("->" in text for text in signatures)
    assert [text for text in signatures if "::" in text] == []
