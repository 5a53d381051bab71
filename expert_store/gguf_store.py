"""A GGUF file that is run where it lies: its experts are read from it, and repacked on their way into memory.

Owns what of a file stands for a store's own files, and where what is learned of it is kept. Which matrix lies where is
known to `sources.gguf_records`. Nothing is ever written beside the file, but by `verify`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from smallthinker import host
from smallthinker.errors import CheckpointError, StoreReadError
from smallthinker.expert_store.convert import dense_pieces, dense_rows
from smallthinker.expert_store.device.pacing import SequentialThrottle
from smallthinker.expert_store.device.storage_profile import StorageProfile
from smallthinker.expert_store.format import TILE_ROWS, TOKENIZER_FILE, TensorSpec
from smallthinker.expert_store.gguf_checksums import Checksums
from smallthinker.expert_store.own_formats import formats_in
from smallthinker.expert_store.progress import Progress, silent
from smallthinker.expert_store.records import Records
from smallthinker.expert_store.sidecar import SUFFIX
from smallthinker.expert_store.sources.gguf_checkpoint import GgufCheckpoint
from smallthinker.expert_store.sources.gguf_records import GgufRecords, in_one_piece
from smallthinker.expert_store.sources.gguf_tokenizer.tokenizer import TokenizerFacts
from smallthinker.expert_store.store import Store, Verified
from smallthinker.files import SmallFiles, name_of_path, parse_json, read_small, write_hint
from smallthinker.host import pages
from smallthinker.models.tensors import ROUTER

U8 = npt.NDArray[np.uint8]
_FACTS_FILE = "tokenizer-facts.json"
_MANY_WORDS = 16384  # fewer are read again in no time
_STRIP_BYTES = 4 << 20  # of float32 rows while dense weights are packed: beside all that a budget has planned for


class GgufStore(Store):
    """As `Store`."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError, ConfigError."""
        self._source = source = GgufCheckpoint(path, in_one_piece, _kept_facts(_hints_of(path) / _FACTS_FILE))
        try:
            super().__init__(path, source.config, formats_in(source.model))
            self._records = GgufRecords(source.model, self.formats, source.files)
        except BaseException:
            source.close()
            raise
        self.kind, self.on_disk_bytes = "GGUF", self._records.on_disk_bytes
        self.weight_files, self.notes = tuple(part for part, _ in source.files), source.notes
        self.small_files = _SmallFiles(path, source.small_files(), source.digest)
        if source.model.tokenizer is not None and source.config.vocab_size >= _MANY_WORDS:
            facts = {"source": source.digest, "facts": source.model.tokenizer_facts._asdict()}
            self.write_hint(_FACTS_FILE, json.dumps(facts).encode("ascii"))
        source.forget_tokenizer()
        self._chunk_bytes, self._made = 0, self._records.plain()
        self._checksums: Checksums | None = None  # once they have been looked for

    def close(self) -> None:
        super().close()
        self._source.close()

    def records(self, chunk_bytes: int) -> Records:
        if chunk_bytes != self._chunk_bytes:
            self._chunk_bytes, self._made = chunk_bytes, self._records(chunk_bytes, self.checksums.experts)
        return self._made

    def plain_records(self) -> Records:
        return self._records.plain()

    def dense(self, name: str) -> U8 | npt.NDArray[np.float32]:
        """A view as of any store, of memory of its own where nothing was loaded: a file can't be mapped."""
        if self._dense is not None:
            return super().dense(name)
        spec = self._dense_specs[name]
        packed = np.concatenate([np.frombuffer(piece, np.uint8) for piece in dense_pieces(self._source, spec)])
        return packed.view(np.float32) if spec.quant is None else packed

    def _load_dense(
        self,
        mode: Literal["anonymous", "mapped"],
        progress: Progress,
        storage: StorageProfile | None,
        reserved: Callable[[U8], None],
        verify: bool,
    ) -> U8:
        throttle = None if storage is None else SequentialThrottle(storage)
        memory = np.frombuffer(pages.weights_buffer(self.dense_bytes), np.uint8)[: self.dense_bytes]
        frozen: U8 = memory.view()
        frozen.flags.writeable = False
        reserved(frozen)
        threads, checksums = host.physical_cores(), self.checksums

        def pack(name: str) -> int:
            if verify:
                checksums.check_dense(name)
            at = self._start_of[name]
            for piece in dense_pieces(self._source, self._dense_specs[name], _STRIP_BYTES // threads):
                memory[at : at + len(piece)] = piece
                at += len(piece)
            return at

        with ThreadPoolExecutor(threads) as executor:
            try:
                for name, end in zip(self._dense_specs, executor.map(pack, self._dense_specs), strict=True):
                    if throttle is not None:
                        throttle.arrived(end - self._start_of[name])
                    progress(end, self.dense_bytes, name)
            except CheckpointError as e:
                raise StoreReadError(str(e)) from e
            finally:
                executor.shutdown(cancel_futures=True)
        self._source.drop_cached()  # the budget has no room for it, and experts are read past the cache
        return frozen

    def _table_rows(self, spec: TensorSpec, group: int) -> U8:
        if self._verifies:
            self.checksums.check_rows(spec.name, group)
        try:
            return dense_rows(self._source, spec, group * TILE_ROWS, (group + 1) * TILE_ROWS)
        except CheckpointError as e:
            raise StoreReadError(str(e)) from e

    @property
    def checksums(self) -> Checksums:
        """Those that `verify` left. Raises StoreFormatError, StoreReadError."""
        if self._checksums is None:
            places = self.path.with_name(self.path.name + SUFFIX), self.hint_path(SUFFIX[1:])
            self._checksums = Checksums(self._source, self._records, places)
        return self._checksums

    def check_small_files(self) -> None:
        self.checksums.check_headers()

    def verify(self, progress: Progress | None = None) -> Verified:
        return self.checksums.verify(progress or silent)

    def identity(self) -> str:
        stats = [path.stat() for path in self.weight_files]
        return "gguf " + " ".join(f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats) + str(self.formats)

    def router_checksums(self) -> list[int]:
        names = [name for name in self.dense_names() if name.endswith(f".{ROUTER}")]
        return [zlib.crc32(bytes(self.dense(name)).ljust(self.dense_spec(name).nbytes, b"\0")) for name in names]

    def hint_path(self, name: str) -> Path:
        return _hints_of(self.path) / name

    def write_hint(self, name: str, data: bytes) -> bool:
        path = self.hint_path(name)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            return False
        return write_hint(path, data)


class _SmallFiles(SmallFiles):
    """The tokenizer's file is handed out once, and made from the metadata again where somebody asks again: it has
    megabytes, which nobody needs once the tokenizer is there."""

    def __init__(self, path: Path, contents: dict[str, bytes], digest: str) -> None:
        self._gguf, self._once, self._digest = path, contents.pop(TOKENIZER_FILE, b""), digest
        super().__init__(path, contents)

    def read(self, name: str) -> bytes:
        if name != TOKENIZER_FILE:
            return super().read(name)
        found, self._once = self._once, b""
        if not found:
            with closing(GgufCheckpoint(self._gguf)) as source:
                found = source.small_files()[name]
        return found

    def digest(self, name: str) -> str:
        return f"gguf {self._digest}" if name == TOKENIZER_FILE else super().digest(name)


def _hints_of(path: Path) -> Path:
    """The folder of what is learned of a file: nothing is ever written beside it."""
    return host.cache_folder() / name_of_path(path)


def _kept_facts(path: Path) -> tuple[str, TokenizerFacts] | None:
    """Of the file with that digest; None where nothing whole is kept."""
    try:
        kept = parse_json(read_small(path))
        facts = TokenizerFacts(**kept["facts"])
        ids = [*facts.eos_token_ids, 0 if facts.bos_token_id is None else facts.bos_token_id]
        is_whole = all(type(id) is int and 0 <= id < facts.vocab_size for id in ids)
        return (str(kept["source"]), facts) if is_whole and isinstance(facts.settings, str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
