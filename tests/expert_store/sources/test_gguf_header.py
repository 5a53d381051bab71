"""GGUF headers of hostile files: no length is believed, and each fault is one line."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallthinker.errors import CheckpointError

gguf = pytest.importorskip("gguf", reason="needs smallthinker[gguf]")

from smallthinker.expert_store.sources.gguf_header import GgufHeader, read_gguf_header  # noqa: E402


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def tensor(name: str = "x", shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def header(
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    values: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (tensor(),),
) -> bytes:
    counts = struct.pack("<IQQ", version, len(tensors), len(values))
    return magic + counts + b"".join(values) + b"".join(tensors)


def value(key: str | bytes, kind: int, data: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + data


def array(key: str, kind: int, count: int, data: bytes = b"") -> bytes:
    return value(key, 9, struct.pack("<IQ", kind, count) + data)


def read(data: bytes, file_bytes: int | None = None) -> GgufHeader:
    return read_gguf_header(io.BytesIO(data), "x.gguf", file_bytes or len(data))


def whole(data: bytes) -> bytes:
    """With the tensor's 128 bytes behind it."""
    return data + bytes(-len(data) % 32) + bytes(128)


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "byte 0: magic: expected 4 bytes, found 0 to the file's end"),
        (header(magic=b"PK\3\4"), r"magic: expected GGUF, found .*; it is not a GGUF file"),
        (header(version=1), "version: expected 2 or 3, found 1; convert the model again"),
        (header(version=3 << 24), "its numbers are big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "number of tensors: expected at most 65536, found"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "number of metadata keys: expected at most 65536, found"),
        (header(values=(struct.pack("<Q", 1 << 62),)), "metadata key: expected 4611686018427387904 bytes, found"),
        (header(values=(value("a", 8, struct.pack("<Q", 1 << 40)),)), "a: expected 1099511627776 bytes"),
        (header(values=(array("a", 0, 1 << 60),)), "length of a: expected at most 4194304, found 1152921504606846976"),
        (header(values=(array("a", 0, 1 << 22),)), "a: expected 4194304 bytes, found"),
        (header(values=(array("a", 12, 1 << 22),)), "a: expected 33554432 bytes, found"),
        (header(values=(array("a", 8, 1 << 22),)), "a: expected"),
        (header(values=(array("a", 9, 1),)), "a: expected an array of numbers or texts, found type 9"),
        (header(values=(value("a", 13, b""),)), "a: expected a value's type from 0 to 12, found 13"),
        (header(values=(value("a", 7, b"\2"),)), "a: expected 0 or 1, found 2"),
        (header(values=(value("a", 8, text(b"\xff")),)), "a: expected text in UTF-8, found byte 0xff"),
        (header(values=(value(b"\xff", 4, u32(1)),)), "metadata key: expected text in UTF-8"),
        (header(values=2 * (value("a", 4, u32(1)),)), "metadata: expected every key once, found 'a' twice"),
        (header(values=(value("general.alignment", 4, u32(0)),)), "alignment: expected a power of two, found 0"),
        (header(values=(value("general.alignment", 4, u32(48)),)), "expected a power of two, found 48"),
        (header(values=(value("general.alignment", 8, text("x")),)), "expected a power of two, found x"),
        (whole(header(tensors=2 * (tensor(),))), "tensors: expected every name once, found 'x' twice"),
        (header(tensors=(tensor(shape=5 * (2,)),)), "tensor 'x': dimensions: expected at most 4, found 5"),
        (header(tensors=(tensor(shape=()),)), r"shape: expected rows of whole blocks of 1 \(F32\), found \[\]"),
        (header(tensors=(tensor(shape=(0, 8)),)), r"shape: expected rows .*found \[8, 0\]"),
        (header(tensors=(tensor(shape=(48, 2), kind=2),)), r"rows of whole blocks of 32 \(Q4_0\), found \[2, 48\]"),
        (header(tensors=(tensor(shape=(1 << 63,)),)), "size: expected at most 9223372036854775807, found 92233"),
        (header(tensors=(tensor(shape=4 * (1 << 62,)),)), r"tensor 'x': expected \d{70,} bytes at byte"),
        (header(tensors=(tensor(kind=99),)), "type: expected one that the package gguf knows, found 99"),
        (whole(header(tensors=(tensor(offset=32),))), "tensor 'x': expected 128 bytes at byte 96, found a file of 192"),
        (header(tensors=(tensor(offset=(1 << 64) - 1),)), "tensor 'x': expected 128 bytes at byte"),
        (header(values=(value("\n\x1b", 13, b""),)), r"byte \d+: \\n\\x1b: expected a value's type"),
        (header(values=(value("general.alignment", 8, text("\n\x1b" * 99)),)), r"a power of two, found \\n\\x1b"),
        (header(tensors=(tensor("\n\x1b" * 90),)), r"tensor '\\n\\x1b"),
    ],
)  # fmt: skip
def test_a_hostile_header_is_one_clear_line(data: bytes, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        read(data)
    message = str(caught.value)
    assert message.startswith("x.gguf: byte ") and "\n" not in message and "\x1b" not in message and len(message) < 1000


def test_no_more_than_the_bound_of_a_header_is_read_from_a_large_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smallthinker.expert_store.sources.gguf_header.MAX_HEADER_BYTES", 100)
    data = whole(header(values=(value("a", 8, text("y" * 60)),)))
    with pytest.raises(CheckpointError, match="a: expected 60 bytes, found 55 to the bound of a header"):
        read(data)


VALUES: dict[str, tuple[bytes, Any]] = {
    "u8": (value("u8", 0, b"\xff"), 255),
    "i16": (value("i16", 3, b"\xfe\xff"), -2),
    "u64": (value("u64", 10, struct.pack("<Q", 1 << 63)), 1 << 63),
    "f32": (value("f32", 6, struct.pack("<f", 1e-6)), 1e-6),
    "f64": (value("f64", 12, struct.pack("<d", 0.1)), 0.1),
    "bool": (value("bool", 7, b"\1"), True),
    "text": (value("text", 8, text("é\n")), "é\n"),
    "texts": (array("texts", 8, 2, text("a") + text("")), ["a", ""]),
    "numbers": (array("numbers", 5, 3, struct.pack("<3i", -1, 0, 1)), [-1, 0, 1]),
    "flags": (array("flags", 7, 2, b"\1\0"), [True, False]),
    "none": (array("none", 8, 0), []),
}


def test_values_of_every_kind_are_python_values() -> None:
    data = whole(header(values=tuple(data for data, _ in VALUES.values())))
    found = read(data).metadata
    assert found == {key: expected for key, (_, expected) in VALUES.items()}
    assert {key: type(each) for key, each in found.items()} == {key: type(each) for key, (_, each) in VALUES.items()}


def test_only_the_header_is_read_from_a_stream() -> None:
    data = header(values=tuple(data for data, _ in VALUES.values()))
    stream = io.BytesIO(data)
    found = read_gguf_header(stream, "x.gguf", len(whole(data)))
    assert stream.tell() == len(data)
    assert found.tensors["x"].shape == (32,) and found.tensors["x"].start == len(whole(data)) - 128


SMALL = whole(header(values=tuple(data for data, _ in VALUES.values())))


@given(st.integers(0, len(SMALL) - 1))
def test_a_file_that_was_cut_short_anywhere_is_refused(length: int) -> None:
    with pytest.raises(CheckpointError, match=r"copy or download it again|not a GGUF file"):
        read(SMALL[:length])


@given(st.data())
def test_a_header_with_any_byte_changed_is_read_or_refused(data: st.DataObject) -> None:
    changed = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(SMALL) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(CheckpointError):
        found = read(bytes(changed))
        assert all(each.start + each.nbytes <= len(SMALL) for each in found.tensors.values())


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[: len(data) // 2], lambda data: data[:9]])
def test_a_model_that_was_cut_short_converts_to_nothing(
    tmp_path: Path, tiny_config: Path, damage: Callable[[bytes], bytes]
) -> None:
    from gguf_files import write_gguf

    from smallthinker.expert_store.convert import convert
    from smallthinker.expert_store.synthetic.synth import synth

    path = write_gguf(synth(str(tiny_config), tmp_path / "checkpoint", "none"), tmp_path / "tiny.gguf")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=f"^{path}: byte .*copy or download it again"):
        convert(path, tmp_path / "store", "q4_0")
    assert not (tmp_path / "store").exists()
