"""Files that torch wrote are read without torch; hostile ones are refused and nothing in them runs."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smallthinker.errors import CheckpointError
from smallthinker.expert_store.sources.torch_file import TorchFile

ROWS, COLS = 70, 32


def matrix(dtype: torch.dtype = torch.float32, rows: int = ROWS, seed: int = 0) -> torch.Tensor:
    return torch.randn((rows, COLS), generator=torch.Generator().manual_seed(seed)).to(dtype)


def saved(path: Path, state: Any, **options: Any) -> Path:
    torch.save(state, path, **options)
    return path


def read(path: Path, name: str = "w", strip: int = 16) -> np.ndarray:
    with TorchFile(path) as file:
        return np.concatenate(list(file.strips(name, strip)))


def refused(path: Path, *expected: str) -> None:
    with pytest.raises(CheckpointError) as error:
        read(path)
    message = str(error.value)
    assert str(path) in message and "\n" not in message
    for text in expected:
        assert text in message


def rewritten(path: Path, change: Callable[[dict[str, bytes]], None], compression: int = zipfile.ZIP_STORED) -> Path:
    """The archive with other members: `change` edits a dict of their contents."""
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, content in members.items():
            new.writestr(name, content)
    return path


def with_pickle(path: Path, content: bytes) -> Path:
    """A state dict's file whose pickle is another."""
    saved(path, {"w": matrix()})

    def change(members: dict[str, bytes]) -> None:
        members[next(name for name in members if name.endswith("/data.pkl"))] = content

    return rewritten(path, change)


def pickle_of(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_torch_saved_is_read_exactly(tmp_path: Path, dtype: torch.dtype, protocol: int) -> None:
    w = matrix(dtype)
    path = saved(tmp_path / "w.pt", OrderedDict(w=w, other=matrix(seed=1)), pickle_protocol=protocol)
    for strip in (1, 16, 1000):
        np.testing.assert_array_equal(read(path, strip=strip), w.float().numpy())
    np.testing.assert_array_equal(read(path, "other"), matrix(seed=1).numpy())


def test_a_modules_state_dict_its_parameters_and_a_slice_of_rows_are_read(tmp_path: Path) -> None:
    layer = torch.nn.Linear(COLS, ROWS, bias=False)
    expected = layer.weight.detach().numpy()
    np.testing.assert_array_equal(read(saved(tmp_path / "a.pt", layer.state_dict()), "weight"), expected)
    np.testing.assert_array_equal(read(saved(tmp_path / "b.pt", {"weight": layer.weight}), "weight"), expected)
    whole = matrix(rows=20_000)  # the slice lies over a megabyte into it
    np.testing.assert_array_equal(read(saved(tmp_path / "c.pt", {"w": whole[15_000:15_070]})), whole[15_000:15_070])


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path, protocol: int) -> None:
    made = tmp_path / "made"
    for i, state in enumerate((Bomb(made), {"w": Bomb(made)}, {"w": matrix(), "x": Bomb(made)})):
        path = saved(tmp_path / f"{i}.pt", state, pickle_protocol=protocol)
        refused(path, "nothing of it was run")
    assert not made.exists()
    pickle.loads(pickle.dumps(Bomb(made)))
    assert made.exists()  # it does work where pickles are run


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.",
        b"(ios\nsystem\n.",  # INST
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}\x81.",  # NEWOBJ
        b"\x82\x01.",  # EXT1
        b"ccollections\nOrderedDict\n(K\x01tR.",  # a known name with arguments that it doesn't take
    ],
)
def test_opcodes_and_names_that_a_state_dict_does_not_need_are_refused(tmp_path: Path, content: bytes) -> None:
    refused(with_pickle(tmp_path / "w.pt", content), "nothing of it was run")


def test_a_whole_module_is_refused_with_what_to_do(tmp_path: Path) -> None:
    refused(saved(tmp_path / "w.pt", torch.nn.Linear(2, 2)), "torch.nn.modules.linear.Linear")
    refused(saved(tmp_path / "t.pt", matrix()), "state_dict()")


def test_what_is_not_a_matrix_of_a_known_type_is_refused(tmp_path: Path) -> None:
    cases: list[tuple[Any, str]] = [
        (torch.zeros(3), "not a matrix"),
        (matrix().double(), "DoubleStorage"),
        (matrix().t(), "not contiguous"),
        (matrix()[:, :16], "not contiguous"),
        ({"deeper": matrix()}, "not a tensor"),
        (7, "not a tensor"),
    ]
    for i, (value, said) in enumerate(cases):
        refused(saved(tmp_path / f"{i}.pt", {"w": value}), said)


def test_the_old_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", {"w": matrix()}, _use_new_zipfile_serialization=False)
    refused(path, "before 1.6", "torch.save it again")


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x03\x04" + bytes(100), b"PK\x05\x06" + bytes(18), bytes(5000)])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(content)
    refused(path, "torch.save")
    refused(tmp_path / "nowhere.pt", "No such file")
    refused(tmp_path, "Is a directory")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", {"w": matrix()})
    content = path.read_bytes()
    for size in range(0, len(content), 97):
        path.write_bytes(content[:size])
        refused(path)


def test_numbers_that_were_changed_are_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", {"w": matrix()})
    content = bytearray(path.read_bytes())
    content[content.index(matrix().numpy().tobytes()) + 5000] ^= 1
    path.write_bytes(content)
    refused(path, "CRC")


def with_replaced(path: Path, old: bytes, new: bytes) -> Path:
    content = pickle_of(saved(path, {"w": matrix()}))
    assert content.count(old) == 1
    return with_pickle(path, content.replace(old, new))


def number(n: int) -> bytes:
    """As a pickle has it."""
    return pickle.dumps(n, 2)[2:-1]


def test_sizes_that_lie_are_refused(tmp_path: Path) -> None:
    path, shape = tmp_path / "w.pt", number(ROWS) + number(COLS) + pickle.TUPLE2
    stride = number(COLS) + number(1) + pickle.TUPLE2
    for rows in (ROWS + 1, 2**31 - 1, 2**62, 2**70, -1):
        refused(with_replaced(path, shape, number(rows) + number(COLS) + pickle.TUPLE2))
    refused(with_replaced(path, shape, number(-ROWS) + number(-COLS) + pickle.TUPLE2), "not a matrix")
    refused(with_replaced(path, shape, pickle.NEWTRUE + number(COLS) + pickle.TUPLE2), "not a matrix")
    refused(with_replaced(path, stride, number(0) + number(1) + pickle.TUPLE2), "not contiguous")
    for numel in (0, ROWS * COLS - 1, ROWS * COLS + 1, 2**62, 2**100, -1):
        refused(with_replaced(path, number(ROWS * COLS), number(numel)))
    for offset in (1, 2**62, -1):
        refused(with_replaced(path, pickle.BINPERSID + number(0), pickle.BINPERSID + number(offset)), "can't hold")


def test_a_storage_elsewhere_or_missing_is_refused(tmp_path: Path) -> None:
    for key in (b"1", b"/", b"."):
        old, new = (pickle.BINUNICODE + struct.pack("<I", 1) + k for k in (b"0", key))
        refused(with_replaced(tmp_path / "w.pt", old, new))


def test_compressed_members_and_large_pickles_and_directories_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", {"w": torch.zeros(5000, COLS)})
    refused(rewritten(path, lambda _: None, zipfile.ZIP_DEFLATED), "compressed")
    refused(with_pickle(path, pickle.dumps("x" * 100_000)), "100")
    many = saved(tmp_path / "many.pt", {"w": matrix()})
    refused(rewritten(many, lambda members: members.update({f"{i:0>60}": b"" for i in range(12_000)})), "directory")


def test_a_second_pickle_or_big_endian_numbers_are_refused(tmp_path: Path) -> None:
    def second(members: dict[str, bytes]) -> None:
        members["x/data.pkl"] = b"."

    def big_endian(members: dict[str, bytes]) -> None:
        members[next(name for name in members if name.endswith("/byteorder"))] = b"big"

    refused(rewritten(saved(tmp_path / "w.pt", {"w": matrix()}), second), "2 members")
    refused(rewritten(saved(tmp_path / "w.pt", {"w": matrix()}), big_endian), "big-endian")


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("fuzz") / "w.pt", {"w": matrix(rows=2)})


@settings(max_examples=400)
@given(data=st.data())
def test_any_bytes_changed_are_refused_or_read_in_bounds(small_file: Path, data: st.DataObject) -> None:
    content = bytearray(small_file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = small_file.with_name("changed.pt")
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError), TorchFile(path) as file:  # and nothing else is ever raised
        for name, matrix in file.matrices.items():
            assert np.concatenate(list(file.strips(name, 16))).shape == matrix.shape


@settings(max_examples=400)
@given(content=st.lists(st.sampled_from([op.code.encode("latin-1") for op in pickletools.opcodes]), max_size=20))
def test_any_program_of_opcodes_is_refused_or_is_an_empty_dict(small_file: Path, content: list[bytes]) -> None:
    with zipfile.ZipFile(small_file) as old, zipfile.ZipFile(buffer := io.BytesIO(), "w") as new:
        for name in old.namelist():
            new.writestr(name, b"".join(content) + b"." if name.endswith("data.pkl") else old.read(name))
    path = small_file.with_name("program.pt")
    path.write_bytes(buffer.getvalue())
    with contextlib.suppress(CheckpointError), TorchFile(path) as file:
        assert file.matrices == {}
