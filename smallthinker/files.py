"""Files: others' read with their kind and size checked first, our own written whole or not at all.

A leaf: knows nothing of what a file holds but that JSON is JSON. Faults are OSError and ValueError with a short text;
callers make them the project's own errors, with the path and what to do.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

MAX_SMALL_BYTES = 64 << 20
"""Over every configuration, template and tokenizer that is published (Gemma's tokenizer.json has 33 MB)."""

_HIDDEN_BYTES = 8  # of chance in a temporary's name
_MOST_NAME_BYTES = 200  # of a name that something is added to: file systems take 255

_MAX_DIGITS = 308  # of a whole number, so that every one is a double too; Python's limit is 4,300, and another error


def is_there(path: Path) -> bool:
    """Whether anything has this path. False, and no error, for one that can't be: too long, or with a zero byte."""
    return _mode(path) is not None


def is_folder(path: Path) -> bool:
    """Whether it is a folder, or a link to one; with no errors, as `is_there`."""
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return None


def open_fd(path: Path, more_flags: int = 0) -> int:
    """A descriptor to read an ordinary file by. Never waits for a pipe's writer.

    Raises OSError, also for a pipe, a device, a socket and a folder.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | more_flags
    try:
        fd = os.open(path, flags)
    except ValueError as e:  # a zero byte, or what the system's encoding lacks
        raise OSError(errno.EINVAL, str(e), str(path)) from None
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return fd
    os.close(fd)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "expected an ordinary file, found a pipe, socket or device", str(path))


@contextmanager
def open_regular(path: Path, max_bytes: int | None = None) -> Iterator[BinaryIO]:
    """The file, opened to be read, if it is an ordinary one and at most so large.

    Raises OSError as `open_fd`, and for a file over max_bytes.
    """
    with os.fdopen(open_fd(path), "rb") as file:
        nbytes = os.fstat(file.fileno()).st_size
        if max_bytes is not None and nbytes > max_bytes:
            raise OSError(errno.EFBIG, f"expected at most {max_bytes} bytes, found {nbytes}", str(path))
        yield file


def read_small(path: Path, max_bytes: int = MAX_SMALL_BYTES) -> bytes:
    """All of an ordinary file of at most max_bytes. Raises OSError, as `open_regular`."""
    with open_regular(path, max_bytes) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(min(size, max_bytes) + 1)  # a read takes memory for all that it is asked for
        if len(data) > size:  # it has grown since, or it is one of the kernel's, which have no size
            data += file.read(max_bytes + 1 - len(data))
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"expected at most {max_bytes} bytes, found more")
    return data


class SmallFiles:
    """Small files by name: those of a folder, or `contents` that something else at this path holds."""

    def __init__(self, where: Path, contents: Mapping[str, bytes] | None = None) -> None:
        self._where, self._contents = where, contents

    def path(self, name: str) -> Path:
        """What messages call it."""
        return self._where / name

    def digest(self, name: str) -> str:
        """What tells its contents from others, though not from what is made to look like them. Raises OSError, as
        `read_small`."""
        data = self.read(name)
        return f"{len(data)} {zlib.crc32(data):08x}"  # hashlib takes 4 MiB of a small budget

    def read(self, name: str) -> bytes:
        """Raises OSError, as `read_small`."""
        if self._contents is None:
            return read_small(self._where / name)
        try:
            return self._contents[name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "it has none", str(self.path(name))) from None


def parse_json(data: bytes | str) -> Any:
    """What JSON says, if it says one thing: no key twice, no NaN or Infinity, no number beyond a double's range,
    no nesting beyond the interpreter's stack. Raises ValueError, in one short line."""
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        return json.loads(
            text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_whole, parse_float=_number
        )
    except UnicodeDecodeError as e:
        raise ValueError(f"byte {e.start} is no UTF-8") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice[:80]!a} is there twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _whole(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _number(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"number {text[:20]} is beyond the range of a double")
    return value


def check_output(path: Path, inputs: Iterable[Path] = (), *, replace: bool = False) -> None:
    """Whether a file may be written there, asked before anything is computed for it.

    Raises OSError: its folder isn't there or can't be written; it is a folder, a pipe or a device; it is one of the
    inputs, by whatever name; it exists already and is not to be replaced.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is no folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"no permission to write in {folder}")
    try:
        status = path.stat()
    except FileNotFoundError:
        return
    for source in inputs:
        if _is_same(source, status):
            raise OSError(errno.EINVAL, f"it is {source}, which this command reads; give another name")
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder; give the name of a file")
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "expected no file or an ordinary one, found a pipe, socket or device")
    if not replace:
        raise FileExistsError(errno.EEXIST, "exists already; give another name, or `force` to replace it")


def _is_same(path: Path, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), status)
    except OSError:  # not there, or nothing that could be read
        return False


def lock_folder(path: Path, wait: bool) -> int | None:
    """Lock a folder, or a file, for this process; close the returned descriptor to unlock. None: another one holds it.

    The kernel unlocks when the process ends, however it ends. Windows: -1, no lock; open files can't be deleted there.
    """
    if sys.platform == "win32":
        return -1
    import fcntl

    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError:  # a network file system without locks
        pass
    return fd


def unlock_folder(lock: int) -> None:
    if lock >= 0:
        os.close(lock)


@contextmanager
def replacing(path: Path, *, replace: bool = True) -> Iterator[BinaryIO]:
    """A file to write that becomes `path` at the end, synced; an exception leaves `path` as it was.

    A link to a file stays, and what it leads to is replaced; what killed processes left of the same goes. Raises
    OSError: also for a pipe or device there, and without `replace` for whatever is there by then.
    """
    path = Path(os.path.realpath(path))
    check_output(path, replace=replace)
    _remove_stale(path)
    lock = None
    while lock is None:  # between its first moment and the lock, another process may have taken it for a stale one
        temporary = path.with_name(f"{hidden_name(path.name)}.{os.urandom(_HIDDEN_BYTES).hex()}")
        temporary.open("xb").close()
        lock = _locked(temporary)
    try:
        with temporary.open("r+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if replace or not _link(temporary, path):
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        unlock_folder(lock)


def _remove_stale(path: Path) -> None:
    """Temporaries of this file whose process is gone: the system has let go of their locks."""
    begins, digits = hidden_name(path.name) + ".", 2 * _HIDDEN_BYTES
    with suppress(OSError):
        for old in path.parent.iterdir():
            is_one = old.name.startswith(begins) and len(old.name) == len(begins) + digits
            if is_one and (lock := _locked(old)) is not None:
                old.unlink(missing_ok=True)
                unlock_folder(lock)


def _locked(path: Path) -> int | None:
    """None for a file that another process has, or that is gone."""
    try:
        lock = lock_folder(path, wait=False)
    except FileNotFoundError:
        return None
    if lock is not None and not path.exists():
        unlock_folder(lock)
        return None
    return lock


def _link(file: Path, name: Path) -> bool:
    """Give a file a second name that must be new. False on a file system without such, where it is new as of now."""
    try:
        os.link(file, name)
    except OSError:
        check_output(name)
        return False
    return True


def hidden_name(name: str) -> str:
    """What the temporary of a file or folder of this name begins with; short where nothing could be added to it."""
    if len(os.fsencode(name)) <= _MOST_NAME_BYTES:
        return f".{name}"
    from hashlib import sha256  # 5 ms that hardly anybody needs

    return f".{sha256(os.fsencode(name)).hexdigest()}"


def write_whole(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Write, or replace, a small file whole or not at all. Raises OSError."""
    with replacing(path, replace=replace) as file:
        file.write(data)


def name_of_path(path: Path) -> str:
    """For what is kept elsewhere of the file or folder that lies there."""
    from hashlib import sha256  # brings OpenSSL into a process that may have no other use for it

    return sha256(os.path.realpath(path).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def write_hint(path: Path, data: bytes) -> bool:
    """The same for a file that may as well not be there. False where it can't be written."""
    try:
        write_whole(path, data)
    except OSError:
        return False
    return True
