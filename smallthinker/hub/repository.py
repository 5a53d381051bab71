"""Files of a model repository on a Hugging Face hub: what there is, and each one whole and with the right checksum.

Owns resuming, retrying and checksums; addresses, tokens, sessions, the cache and environment variables are those of
huggingface_hub. That library resumes a file only within one call; here the next process goes on with it.
Knows nothing about models.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from smallthinker.errors import DownloadError
from smallthinker.files import open_regular, read_small

MOST_TRIES = 5  # that bring not one byte
_SILENCE_SEC = 30.0  # without a byte, then it is tried again
_PIECE_BYTES = 1 << 20
_HASH = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")  # of a git blob, or the SHA-256 of a large file

Arrived = Callable[[int], None]  # so many bytes more are here


@dataclass(frozen=True)
class HubFile:
    """A file of a repository. digest: hexadecimal, of 40 digits a git blob's SHA-1, of 64 the content's SHA-256."""

    name: str
    size: int
    digest: str


class Hub:
    """One revision of one repository; `commit` and `files` by name.

    endpoint: another hub than huggingface.co or HF_ENDPOINT. With HF_HUB_OFFLINE everything comes from the cache of
    huggingface_hub. pause: waits between tries. Raises DownloadError.
    """

    def __init__(
        self,
        repo: str,
        revision: str = "main",
        endpoint: str | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        if find_spec("huggingface_hub") is None:
            raise DownloadError(
                "expected the package huggingface_hub, found none; pip install 'smallthinker[hub]' brings it"
            )
        from huggingface_hub import constants

        self.repo, self.revision = repo, revision
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self.offline = bool(constants.HF_HUB_OFFLINE)
        self._pause = pause
        self.commit, listed = self._cached_listing() if self.offline else self._listing()
        self.files: dict[str, HubFile] = {file.name: file for file in listed}

    def _listing(self) -> tuple[str, list[HubFile]]:
        from huggingface_hub import HfApi

        with self._clear_errors():
            info = HfApi(endpoint=self.endpoint).model_info(
                self.repo, revision=self.revision, files_metadata=True, timeout=_SILENCE_SEC
            )
        if not info.sha or not _HASH.fullmatch(info.sha):
            raise DownloadError(f"{self.endpoint}: expected the commit of {self.repo}, found {info.sha!r}")
        files = []
        for entry in info.siblings or []:
            size, digest = (entry.size, entry.blob_id) if entry.lfs is None else (entry.lfs.size, entry.lfs.sha256)
            if size is not None and digest is not None and _HASH.fullmatch(digest):
                files.append(HubFile(entry.rfilename, size, digest))
        return info.sha, files

    def _cached_listing(self) -> tuple[str, list[HubFile]]:
        """What the cache has of the revision. Its blobs bear their digests as names."""
        from huggingface_hub import errors, snapshot_download

        try:
            with self._clear_errors():
                snapshot = Path(snapshot_download(self.repo, revision=self.revision, local_files_only=True))
        except errors.LocalEntryNotFoundError:
            raise DownloadError(
                f"{self.repo}: HF_HUB_OFFLINE is set, and revision {self.revision!r} is not in the cache; "
                "unset it to download"
            ) from None
        blobs = {
            path.relative_to(snapshot).as_posix(): path.resolve() for path in snapshot.rglob("*") if path.is_file()
        }
        files = [HubFile(n, b.stat().st_size, b.name) for n, b in blobs.items() if _HASH.fullmatch(b.name)]
        return snapshot.name, files

    def cached(self, file: HubFile) -> Path | None:
        """Where huggingface_hub's cache has this file."""
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self.repo, file.name, revision=self.commit)
        return Path(path) if isinstance(path, str) and Path(path).stat().st_size == file.size else None

    def read(self, file: HubFile, most_bytes: int) -> bytes:
        """A small file's content, its checksum compared."""
        if file.size > most_bytes:
            raise DownloadError(f"{self.repo}: {file.name}: expected at most {most_bytes} bytes, found {file.size}")
        cached = self.cached(file)
        content = read_small(cached, most_bytes) if cached else b"".join(self._pieces(file, 0))
        checksum = Checksum(file)
        checksum.add(content)
        checksum.compare(f"{self.repo}: {file.name}", "run the command again")
        return content

    @contextmanager
    def opened(self, file: HubFile) -> Iterator[BinaryIO]:
        """The file from its start on; what isn't read isn't fetched. Nothing is compared with its checksum."""
        cached = self.cached(file)
        if cached is not None:
            with open_regular(cached) as source:
                yield source
            return
        self._need_network(file)
        with closing(self._pieces(file, 0)) as pieces:
            yield io.BufferedReader(_PieceReader(pieces))

    def download(self, file: HubFile, path: Path, arrived: Arrived, *, replace: bool = True) -> None:
        """Have the file at `path`, from the cache, from an earlier try or from the hub, its checksum compared.

        What has come stays beside it as `part_of(path, file)` if this fails, unless the checksum says it is wrong.
        Raises DownloadError, also without `replace` where there is another file at `path`; OSError.
        """
        if path.is_file() and path.stat().st_size == file.size and _is(path, file, arrived):
            return
        if not replace and os.path.lexists(path):
            raise DownloadError(f"{path}: is another file than {self.repo} has; move it, or give `force`")
        path.unlink(missing_ok=True)
        cached = self.cached(file)
        if cached is not None and _is(cached, file, arrived):
            _link(cached.resolve(), path)
            return
        self._need_network(file)
        part, checksum = part_of(path, file), Checksum(file)
        with part.open("ab+") as sink:
            if sink.tell() > file.size:
                sink.truncate(0)
            sink.seek(0)
            while piece := sink.read(_PIECE_BYTES):
                checksum.add(piece)
                arrived(len(piece))
            for piece in self._pieces(file, sink.tell()):
                sink.write(piece)
                sink.flush()  # what has come survives a kill
                checksum.add(piece)
                arrived(len(piece))
            os.fsync(sink.fileno())
        try:
            checksum.compare(f"{self.repo}: {file.name}", "what came is deleted; run the command again")
        except DownloadError:
            part.unlink()
            raise
        part.replace(path)

    def _need_network(self, file: HubFile) -> None:
        if self.offline:
            raise DownloadError(
                f"{self.repo}: {file.name}: HF_HUB_OFFLINE is set, and the cache has no whole copy of it; "
                "unset it to download"
            )

    def _pieces(self, file: HubFile, done: int) -> Generator[bytes, None, None]:
        """The file's bytes from `done` on, over as many connections as it takes."""
        tries = 0
        while done < file.size:
            before = done
            try:
                with self._clear_errors():
                    for piece in self._connection(file, done):
                        done += len(piece)
                        if done > file.size:
                            where = f"{self.repo}: {file.name}"
                            raise DownloadError(
                                f"{where}: expected {file.size} bytes, found more; run the command again"
                            )
                        yield piece
                if done == before:
                    raise _TransientError(f"{self.repo}: {file.name}: the connection ended after {done} bytes")
            except _TransientError as e:
                tries = 1 if done > before else tries + 1
                if tries == MOST_TRIES:
                    raise DownloadError(f"{e}; run the command again, it goes on from there") from None
                self._pause(2.0 ** (tries - 1))

    def _connection(self, file: HubFile, start: int) -> Iterator[bytes]:
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

        url = hf_hub_url(self.repo, file.name, revision=self.commit, endpoint=self.endpoint)
        # encoded content would have other offsets
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        with get_session().stream("GET", url, headers=headers, timeout=_SILENCE_SEC) as response:
            hf_raise_for_status(response)
            skip = 0 if response.status_code == 206 else start  # a server that knows no ranges sends all of it again
            for piece in response.iter_bytes():  # in pieces of a set size, a dropped connection would lose the last
                if len(piece) > skip:
                    yield piece[skip:]
                skip = max(skip - len(piece), 0)

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """What huggingface_hub and the network raise, in one line that says what to do."""
        from huggingface_hub import errors

        # httpx's or httpx2's base of everything, after the version of huggingface_hub
        network_error: Any = errors.HfHubHTTPError.__bases__[0]
        what = f"{self.repo} at {self.endpoint}"
        try:
            yield
        except errors.HFValidationError as e:
            raise DownloadError(f"repository: expected OWNER/NAME, found {self.repo[:100]!r}: {e}") from None
        except errors.GatedRepoError:
            raise DownloadError(
                f"{what}: gated: accept its terms on its page, then set HF_TOKEN to a token of that account"
            ) from None
        except errors.RevisionNotFoundError:
            raise DownloadError(f"{what}: has no revision {self.revision!r}; `revision` takes another") from None
        except errors.RepositoryNotFoundError:
            raise DownloadError(f"{what}: no such model; if it is private, set HF_TOKEN") from None
        except errors.HfHubHTTPError as e:
            status = e.response.status_code
            kind = _TransientError if status in (408, 429) or status >= 500 else DownloadError
            raise kind(f"{what}: the server answered {status}: {_line(e)}") from None
        except network_error as e:
            raise _TransientError(f"{what}: no answer: {_line(e)}; check the network and the address") from None


class _PieceReader(io.RawIOBase):
    """What an iterator yields, as a file that can be read once."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._left = pieces, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = piece
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count


class _TransientError(DownloadError):
    """Worth another try."""


class Checksum:
    """Compares content with a digest of the hub's."""

    def __init__(self, file: HubFile) -> None:
        self._file = file
        self._hash: Any = hashlib.sha256() if len(file.digest) == 64 else hashlib.sha1(b"blob %d\0" % file.size)

    def add(self, piece: bytes) -> None:
        self._hash.update(piece)

    @property
    def is_right(self) -> bool:
        return bool(self._hash.hexdigest() == self._file.digest)

    def compare(self, what: str, remedy: str) -> None:
        if not self.is_right:
            raise DownloadError(
                f"{what}: expected checksum {self._file.digest}, found {self._hash.hexdigest()}; {remedy}"
            )


def part_of(path: Path, file: HubFile) -> Path:
    """Where the bytes of a file are until it is whole; another revision's file has another name."""
    return path.with_name(f"{path.name}.{file.digest[:16]}.part")


def _link(target: Path, path: Path) -> None:
    """A second name, if there can be one: it outlives a cache that is cleared, and takes no room."""
    for link in (os.link, os.symlink):
        with contextlib.suppress(OSError):  # another disk; a file system without links
            link(target, path)
            return
    shutil.copyfile(target, path)


def _is(path: Path, file: HubFile, arrived: Arrived) -> bool:
    """Whether a file on disk has the right checksum; if not, its bytes don't count as arrived."""
    checksum, done = Checksum(file), 0
    with open_regular(path) as source:
        while piece := source.read(_PIECE_BYTES):
            checksum.add(piece)
            arrived(len(piece))
            done += len(piece)
    if not checksum.is_right:
        arrived(-done)
    return checksum.is_right


def _line(e: BaseException) -> str:
    return " ".join(str(e).split())[:300] or type(e).__name__
