"""Conversations on disk: a sequence's state and the tokens that it holds, one safetensors file each, for another run.

Owns the files of one folder, who may trust them and how much room they take together. A file holds for one model (by
its checksums), one instruction set (floats differ between them) and one shape of the state; others are left alone. It
holds private text, so only its owner may read it. No more than a hint: what can't be read is computed again.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt

from smallthinker import host
from smallthinker.cache.conversations import shared_prefix
from smallthinker.cache.sequence_state import SequenceShape, SequenceState
from smallthinker.errors import RequestError, StoreFormatError
from smallthinker.expert_store.header import encode_header, read_header
from smallthinker.expert_store.store import Store
from smallthinker.expert_store.writer import TensorFileWriter
from smallthinker.files import open_regular

LEAST_TOKENS = 32  # fewer are computed about as fast as they are read
_SUFFIX = ".kv.safetensors"
_NAME = re.compile(rf"[0-9a-f]{{32}}{re.escape(_SUFFIX)}")
_FORMAT, _ALIGN = "smallthinker-kv-1", 64
_MAX_HEADER_BYTES = 1 << 20
_TOKENS = "tokens"


def model_key(store: Store, isa: str, shape: SequenceShape, rotary: str = "") -> str:
    """What a file must have been written for, 64 hexadecimal digits. rotary: how its keys were rotated, where a model
    can do so in several ways."""
    key = f"{_FORMAT} {store.quant} {shape.kind} {isa} {shape.saved_as}{rotary}"
    return sha256(f"{key}{store.identity()}".encode()).hexdigest()


@dataclass(frozen=True)
class Saved:
    """A file that was found fit. `written`: positions that the state had been written up to, `tokens` or more."""

    path: Path
    tokens: list[int]
    written: int


class SavedConversations:
    """At most `max_bytes` in `folder`; the files saved or read least recently make room."""

    def __init__(
        self, folder: Path, model: str, shape: SequenceShape, context: int, vocab_size: int, max_bytes: int
    ) -> None:
        """Raises RequestError where the folder can't be made or written."""
        self._folder, self._model, self._shape, self._max_bytes = folder, model, shape, max_bytes
        self._context, self._vocab_size = context, vocab_size
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = sorted(self._files())
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError("no permission to write")
        except OSError as e:
            raise RequestError(
                f"kv_dir: {folder}: expected a folder for saved conversations that can be written: "
                f"{e.strerror or e}; give another one"
            ) from None
        self._saved = [saved for path in found if (saved := self._read(path)) is not None]

    def longest(self, prompt: Sequence[int], longer_than: int) -> tuple[Saved, int] | None:
        """The file that holds the longest beginning of the prompt, its last token left out, and how long that is."""
        best: tuple[Saved, int] | None = None
        for saved in self._saved:
            shared = shared_prefix(saved.tokens, prompt[:-1])
            if shared >= longer_than + LEAST_TOKENS and self._shape.can_continue(shared, saved.written):
                best, longer_than = (saved, shared), shared - LEAST_TOKENS + 1
        return best

    def load(self, saved: Saved, state: SequenceState) -> bool:
        """Fill a state. False, and the file gone, where it is damaged: the state is empty then."""
        state.rewind(0)
        try:
            header = read_header(saved.path, _MAX_HEADER_BYTES)
            arrays = dict(state.arrays(saved.written))
            crcs = header.metadata["crc32"].split()
            wanted = [*arrays, _TOKENS]
            if list(header.tensors) != wanted or len(crcs) != len(wanted):
                raise ValueError
            fd = host.open_buffered(saved.path)
            try:
                for (name, pieces), crc in zip(arrays.items(), crcs, strict=False):
                    entry = header.tensors[name]
                    if entry.stop - entry.start != sum(piece.nbytes for piece in pieces):
                        raise ValueError
                    if f"{_read_pieces(fd, entry.start, pieces):08x}" != crc:
                        raise ValueError
                host.drop_file_cache(fd, 0, 0)
            finally:
                os.close(fd)
        except (OSError, StoreFormatError, ValueError, KeyError):
            self._remove(saved.path)
            state.rewind(0)
            return False
        state.restore(len(saved.tokens), saved.written)
        with contextlib.suppress(OSError):
            os.utime(saved.path)
        self._saved.append(self._saved.pop(self._saved.index(saved)))
        return True

    def save(self, state: SequenceState, tokens: Sequence[int]) -> None:
        """Keep it, whole or not at all, unless a file holds as much already. A full disk is no error."""
        if len(tokens) < LEAST_TOKENS or any(shared_prefix(s.tokens, tokens) == len(tokens) for s in self._saved):
            return
        written = state.touched_after(0)
        arrays = dict(state.arrays(written))
        sizes = [(name, sum(piece.nbytes for piece in pieces)) for name, pieces in arrays.items()]
        sizes.append((_TOKENS, 4 * len(tokens)))

        def header(crcs: list[int], _: list[int]) -> bytes:
            metadata = {"format": _FORMAT, "model": self._model, "written": str(written)}
            shapes = [(name, "U8", (n,)) for name, n in sizes[:-1]] + [(_TOKENS, "I32", (len(tokens),))]
            return encode_header(shapes, metadata | {"crc32": " ".join(f"{crc:08x}" for crc in crcs)}, _ALIGN)

        earlier = [s.path for s in self._saved if shared_prefix(s.tokens, tokens) == len(s.tokens)]  # turns of the same
        if not self._make_room(len(header([0] * len(sizes), [])) + sum(n for _, n in sizes), earlier):
            return
        name = sha256(self._model.encode() + np.asarray(tokens, "<i4").tobytes()).hexdigest()[:32]
        path = self._folder / f"{name}{_SUFFIX}"
        temporary = path.with_name(f".{name}.{secrets.token_hex(8)}")
        try:
            writer = TensorFileWriter(temporary, sizes, header)
            try:
                temporary.chmod(0o600)  # nothing private has been written yet
                for name, pieces in arrays.items():
                    writer.write(name, (piece.data for piece in pieces))
                writer.write(_TOKENS, [np.asarray(tokens, "<i4").data])
                writer.finish()
            finally:
                writer.close()
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            return
        for older in earlier:
            self._remove(older)
        self._saved.append(Saved(path, list(tokens), written))

    def _make_room(self, nbytes: int, first: Sequence[Path]) -> bool:
        """Remove files, `first` and then those used least recently, whoever wrote them, until `nbytes` more fit."""
        found = []
        for path in self._files():
            with contextlib.suppress(OSError):
                stat = path.stat()
                found.append((path not in first, stat.st_mtime_ns, path, stat.st_size))
        total = sum(size for *_, size in found)
        if nbytes > self._max_bytes:
            return False
        for _, _, path, size in sorted(found):
            if total + nbytes <= self._max_bytes:
                break
            self._remove(path)
            total -= size
        return True

    def _files(self) -> list[Path]:
        """Those with names that `save` gives: nobody else's are read or removed."""
        return [path for path in self._folder.glob(f"*{_SUFFIX}") if _NAME.fullmatch(path.name)]

    def _remove(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        self._saved = [saved for saved in self._saved if saved.path != path]

    def _read(self, path: Path) -> Saved | None:
        """What a file says of itself, if it is one of ours for this model and says what can be."""
        try:
            header = read_header(path, _MAX_HEADER_BYTES)
            meta, entry = header.metadata, header.tensors.get(_TOKENS)
            if (meta.get("format"), meta.get("model")) != (_FORMAT, self._model) or entry is None:
                return None
            if entry.dtype != "I32" or len(entry.shape) != 1 or not LEAST_TOKENS <= entry.shape[0] <= self._context:
                return None
            with open_regular(path) as file:
                file.seek(entry.start)
                data = file.read(entry.stop - entry.start)
            ids, written = np.frombuffer(data, "<i4"), int(meta.get("written", ""))
        except (OSError, StoreFormatError, ValueError):
            return None
        if len(ids) != entry.shape[0] or ids.min() < 0 or ids.max() >= self._vocab_size:
            return None
        if not len(ids) <= written <= self._context:
            return None
        if f"{zlib.crc32(data):08x}" != meta.get("crc32", "").split(" ")[-1]:
            return None
        return Saved(path, ids.tolist(), written)


def _read_pieces(fd: int, offset: int, pieces: Sequence[npt.NDArray[np.uint8]]) -> int:
    """Fill the arrays, which follow each other in the file -> their CRC-32. Raises OSError for a short file."""
    crc = 0
    for piece in pieces:
        view = piece.reshape(-1).data
        done = 0
        while done < len(view):
            n = host.read_at(fd, view[done:], offset + done)
            if n <= 0:
                raise OSError("the file is cut short")
            done += n
        crc = zlib.crc32(view, crc)
        offset += len(view)
    return crc
