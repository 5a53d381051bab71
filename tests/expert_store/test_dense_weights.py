"""Dense weights: the file's bytes, mapped or in memory, or an error that says where."""

from __future__ import annotations

from pathlib import Path

import pytest

from smallthinker import host
from smallthinker.errors import StoreReadError
from smallthinker.expert_store.store import Store


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


def test_dense_weights_that_are_wrong_once_are_read_again_and_refused_if_they_stay_so(
    tiny_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(tiny_store) as store:
        tensor, whole, path = store.dense_file.tensors[1], store.dense_file.path.read_bytes(), store.dense_file.path
    read_at, wrong = host.read_at, [tensor.offset]

    def read_badly(fd: int, into: memoryview, offset: int) -> int:
        count = read_at(fd, into, offset)
        if wrong and offset <= wrong[0] < offset + count:
            into[wrong.pop() - offset] ^= 1
        return count

    with Store.open(tiny_store) as store, monkeypatch.context() as patch:
        patch.setattr(host, "read_at", read_badly)
        store.load_dense()
        assert not wrong
        assert store.dense(tensor.spec.name).tobytes() == whole[tensor.offset :][: tensor.spec.content_bytes]
    damaged = bytearray(whole)
    damaged[tensor.offset + tensor.nbytes - 1] ^= 1  # padding, which nothing computes with, is looked at, too
    path.write_bytes(damaged)
    with Store.open(tiny_store) as store:
        where = f"byte {tensor.offset}: checksum of tensor '{tensor.spec.name}', bytes {tensor.offset} to "
        with pytest.raises(
            StoreReadError, match=f"{where}{tensor.offset + tensor.nbytes}: expected {tensor.crc32:08x}"
        ):
            store.load_dense()
        store.load_dense(verify=False)
