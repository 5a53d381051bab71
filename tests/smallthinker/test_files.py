"""Reading files of others and writing our own: what is no ordinary file, too large or ambiguous is refused first."""

import os
import socket
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallthinker.files import check_output, parse_json, read_small, replacing, write_whole

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**300), 10**300)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def test_a_pipe_without_a_writer_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="expected an ordinary file"):
        read_small(tmp_path / "pipe")


def test_devices_folders_and_sockets_are_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for path in (Path("/dev/zero"), tmp_path, tmp_path / "socket"):
            with pytest.raises(OSError, match=r"ordinary|directory|No such device"):
                read_small(path)


def test_a_file_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(20 << 30)
    with pytest.raises(OSError, match="expected at most 1024 bytes, found 21474836480"):
        read_small(path, 1024)


@given(value=JSON_VALUES)
def test_what_json_writes_is_read_as_it_was(value: object) -> None:
    import json

    assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 2}',
        '{"b": [{"a": 1, "c": 2, "a": 1}]}',
        "NaN",
        "[-Infinity]",
        "1" * 5000,
        "-" + "1" * 309,
        str(10**400),
        "1e400",
        "[" * 100_000,
        '{"a":' * 100_000,
        b'"\xff"',
        "",
        "{",
    ],
)
def test_json_that_says_no_one_thing_is_refused_in_a_short_line(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        parse_json(text)
    assert len(str(refused.value)) < 200


def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write(b"half of the ne")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(sys.platform == "win32", reason="an open file can't be removed there, and needs no lock")
def test_what_a_killed_process_left_goes_with_the_next_write_and_what_a_live_one_writes_stays(tmp_path: Path) -> None:
    path, left = tmp_path / "file", tmp_path / ".file.0123456789abcdef"
    others = [tmp_path / name for name in (".file.0123", ".file.0123456789abcdef0", ".filed.0123456789abcdef")]
    for each in (left, *others):
        each.write_bytes(b"half")
    with replacing(path) as one, replacing(path) as other:
        one.write(b"one")
        other.write(b"other")
    assert path.read_bytes() == b"one" and not left.exists()
    assert {each.name for each in tmp_path.iterdir()} == {"file", *(each.name for each in others)}


def test_a_write_replaces_what_a_link_leads_to_and_no_device_or_pipe(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("file")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_bytes() == b"new"
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null"), tmp_path):
        with pytest.raises(OSError, match=r"pipe, socket or device|it is a folder"):
            write_whole(path, b"new")
    assert not Path("/dev/null").is_file()


def test_what_must_be_new_never_takes_the_place_of_what_came_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(FileExistsError), replacing(path, replace=False) as file:
        file.write(b"ours")
        path.write_bytes(b"another's")
    assert path.read_bytes() == b"another's"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["x" * 255, "\u20ac" * 85])
def test_the_longest_names_can_be_written(tmp_path: Path, name: str) -> None:
    write_whole(tmp_path / name, b"whole", replace=False)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_an_output_is_no_input_under_any_name(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    (tmp_path / "soft").symlink_to(source)
    (tmp_path / "hard").hardlink_to(source)
    for name in ("source", "soft", "hard"):
        with pytest.raises(OSError, match="which this command reads"):
            check_output(tmp_path / name, [tmp_path / "nothing", source], replace=True)
    check_output(tmp_path / "new", [source])
    with pytest.raises(OSError, match="no folder"):
        check_output(source / "below", [])


def test_a_small_file_takes_no_more_memory_than_it_has_bytes(tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"x" * 100)
    tracemalloc.start()
    try:
        assert read_small(path) == b"x" * 100
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert read_small(Path("/proc/self/status")) if Path("/proc/self/status").exists() else True
