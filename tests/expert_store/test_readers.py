"""Both readers give the file's bytes, and say where when they can't."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from smallthinker import host
from smallthinker.errors import StoreReadError
from smallthinker.expert_store.readers import DirectReader, MmapReader, Reader, open_reader
from smallthinker.expert_store.store import Store

KINDS = [MmapReader, DirectReader]


def slot(store: Store) -> memoryview:
    return memoryview(host.aligned_buffer(store.record_bytes))


def open_kind(kind: type[MmapReader] | type[DirectReader], store: Store) -> Reader:
    try:
        return kind(store)
    except StoreReadError as e:
        pytest.skip(f"no direct reads here: {e}")


@pytest.mark.parametrize("is_cold", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_record_is_the_files_bytes(kind: type[MmapReader], opened: Store, is_cold: bool) -> None:
    raw = opened.experts_file.path.read_bytes()
    reader = open_kind(kind, opened)
    for index in reversed(range(opened.num_experts)):
        buffer = slot(opened)
        if is_cold:
            with opened.experts_file.path.open("rb") as file:
                host.drop_file_cache(file.fileno(), 0, 0)
        reader.read_into(index, buffer)
        offset = opened.record_offset(index)
        assert bytes(buffer) == raw[offset : offset + opened.record_bytes]
    assert reader.bytes_read == opened.num_experts * opened.record_bytes
    reader.close()
    reader.close()


def test_direct_reads_take_from_the_page_cache_what_is_there_and_bring_nothing_in(opened: Store) -> None:
    path = opened.experts_file.path
    reader = open_kind(DirectReader, opened)
    assert isinstance(reader, DirectReader)
    with path.open("rb") as file:
        fd, at = file.fileno(), (opened.record_offset(1), opened.record_bytes)
        file.read()
        if not host.is_cached(fd, *at):
            pytest.skip("this system doesn't say what its page cache holds")
        used: list[int] = []
        whole = host.read_at

        def noting(fd: int, into: memoryview, offset: int) -> int:
            used.append(fd)
            return whole(fd, into, offset)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(host, "read_at", noting)
            reader.read_into(1, slot(opened))
            host.drop_file_cache(fd, 0, 0)
            if host.is_cached(fd, *at):
                pytest.skip("this file system keeps its pages")
            reader.read_into(1, slot(opened))
        assert used[0] != used[1]
        assert not host.is_cached(fd, *at)
    reader.close()


@pytest.mark.parametrize("kind", KINDS)
def test_short_reads_are_continued(kind: type[MmapReader], opened: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = open_kind(kind, opened)
    expected, buffer = slot(opened), slot(opened)
    reader.read_into(1, expected)
    whole = host.read_at
    monkeypatch.setattr(host, "read_at", lambda fd, into, offset: min(whole(fd, into, offset), 5000))  # in mid-block
    reader.read_into(1, buffer)
    assert buffer == expected
    reader.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_after_opening_is_an_error_and_no_crash(kind: type[MmapReader], opened: Store) -> None:
    reader = open_kind(kind, opened)
    last = opened.num_experts - 1
    with opened.experts_file.path.open("r+b") as file:
        file.truncate(opened.record_offset(last) + 100)
    with pytest.raises(StoreReadError, match=rf"experts\.safetensors: byte {opened.record_offset(last)}"):
        reader.read_into(last, slot(opened))
    reader.close()
    with pytest.raises(StoreReadError, match="changed since opening"):
        kind(opened)


def test_an_io_error_has_path_and_offset(opened: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = open_kind(DirectReader, opened)

    def fail(fd: int, into: memoryview, offset: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(host, "read_at", fail)
    offset = opened.record_offset(2)
    with pytest.raises(StoreReadError, match=rf"experts\.safetensors: byte {offset}: .*Input/output error"):
        reader.read_into(2, slot(opened))
    reader.close()


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_buffers_and_records_are_refused(kind: type[MmapReader], opened: Store) -> None:
    reader = open_kind(kind, opened)
    with pytest.raises(ValueError, match="expected a writable buffer"):
        reader.read_into(0, slot(opened)[:-1])
    with pytest.raises(ValueError, match="expected a writable buffer"):
        reader.read_into(0, slot(opened).toreadonly())
    for index in (-1, opened.num_experts):
        with pytest.raises(IndexError):
            reader.read_into(index, slot(opened))
    reader.close()
    with pytest.raises(StoreReadError, match="closed"):
        reader.read_into(0, slot(opened))


def test_direct_reads_refuse_unaligned_memory(opened: Store) -> None:
    reader = open_kind(DirectReader, opened)
    unaligned = memoryview(host.aligned_buffer(opened.record_bytes + 4096))[64 : 64 + opened.record_bytes]
    with pytest.raises(ValueError, match="aligned to 4096"):
        reader.read_into(0, unaligned)
    reader.close()


def test_where_direct_reads_are_refused_auto_takes_the_map(opened: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "open_direct", lambda path: None)
    with pytest.raises(StoreReadError, match="use the mmap reader"):
        open_reader("direct", opened)
    reader = open_reader("auto", opened)
    assert reader.name == "mmap"
    reader.close()


@pytest.mark.parametrize("kind", ["auto", "mmap"])
def test_readers_open_by_name(kind: str, opened: Store) -> None:
    reader = open_reader(kind, opened)  # type: ignore[arg-type]
    assert reader.name in ("mmap", "direct")
    buffer = slot(opened)
    reader.read_into(0, buffer)
    reader.close()
    with pytest.raises(ValueError, match="one of mmap, direct, auto"):
        open_reader("tape", opened)  # type: ignore[arg-type]


@pytest.mark.parametrize("direct", [True, False])
def test_dense_weights_are_the_same_mapped_and_in_memory(
    tiny_store: Path, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not direct:
        monkeypatch.setattr(host, "open_direct", lambda path: None)
    with Store.open(tiny_store) as mapped, Store.open(tiny_store) as loaded:
        mapped.load_dense("mapped")
        loaded.load_dense("anonymous")
        raw = mapped.dense_file.path.read_bytes()
        for tensor in mapped.dense_file.tensors:
            a, b = mapped.dense(tensor.spec.name), loaded.dense(tensor.spec.name)
            expected = raw[tensor.offset : tensor.offset + tensor.spec.content_bytes]
            assert a.tobytes() == b.tobytes() == expected
            assert a.dtype == b.dtype == ("float32" if tensor.spec.quant is None else "uint8")
            assert not a.flags.writeable
            assert not b.flags.writeable


@pytest.mark.parametrize("mode", ["mapped", "anonymous"])
def test_dense_weights_cut_after_opening_are_an_error(opened: Store, mode: str) -> None:
    with opened.dense_file.path.open("r+b") as file:
        file.truncate(opened.dense_file.file_bytes - 4096)
    with pytest.raises(StoreReadError, match=r"dense\.safetensors"):
        opened.load_dense(mode)  # type: ignore[arg-type]
