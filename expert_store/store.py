"""An opened model on disk, whatever its files are.

Owns which records and dense tensors it has, where these lie in memory, and that memory. What the files hold is known to
`folder_store` and `gguf_store`; experts are read by `queues`. Knows nothing about caches or what the weights are for.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from smallthinker.expert_store.format import (
    Formats,
    TensorSpec,
    dense_table,
    lookup_table,
    record_bytes,
    record_layouts,
)
from smallthinker.expert_store.progress import Progress, silent
from smallthinker.files import SmallFiles, is_folder
from smallthinker.models.description import Model

if TYPE_CHECKING:
    from smallthinker.expert_store.device.storage_profile import StorageProfile
    from smallthinker.expert_store.records import Records

U8 = npt.NDArray[np.uint8]
GGUF_SUFFIX = ".gguf"


def is_gguf(path: Path) -> bool:
    """Whether a path means a GGUF file, or its first part, and not a folder."""
    return path.suffix.lower() == GGUF_SUFFIX and not is_folder(path)


class Verified(NamedTuple):
    """What was read and found whole, and how many checksums say so. notes: what they don't."""

    nbytes: int
    checksums: int
    notes: tuple[str, ...] = ()


class Store(ABC):
    """A checked model; use `Store.open`, and close it or use it as a context manager.

    config: the model; formats: of its matrices, quant: of most of them; dense_bytes: memory of the dense weights;
    table_bytes: what tables take on disk of which single rows are read; record_bytes: of one expert in memory, a
    multiple of 4096; num_experts: records of all layers together. is_compressed: experts are decompressed when they are
    read, num_compressed of them; on_disk_bytes: what they take in the files. kind: what the files are, for people.
    small_files: config.json and the tokenizer's. weight_files: those in which the experts lie. notes: what was taken
    for granted, since the files don't say it.
    """

    is_compressed = False
    num_compressed = 0
    on_disk_bytes: int
    kind: str
    engine_version = ""
    notes: tuple[str, ...] = ()
    small_files: SmallFiles
    weight_files: tuple[Path, ...]

    def __init__(self, path: Path, config: Model, formats: Formats) -> None:
        self.path, self.config = path, config
        self.formats, self.quant = formats, formats.quant
        self.record_layouts = record_layouts(config, formats)
        self.record_bytes = record_bytes(config, formats)
        self._first_of = list(accumulate(config.experts_of_layers, initial=0))
        self.num_experts = config.num_records
        specs = list(dense_table(config, formats))
        ends = list(accumulate(spec.nbytes for spec in specs))
        self.dense_bytes = ends[-1]
        self._dense_specs = {spec.name: spec for spec in specs}
        self._start_of = {spec.name: end - spec.nbytes for spec, end in zip(specs, ends, strict=True)}
        self._tables = {spec.name: spec for spec in lookup_table(config, formats)}
        self.table_bytes = sum(spec.nbytes for spec in self._tables.values())
        self._storage: StorageProfile | None = None
        self._verifies = True
        self._dense: U8 | None = None

    @staticmethod
    def open(path: str | Path) -> Store:
        """Open and check a store's folder or a GGUF file without reading any weights.

        Raises StoreFormatError (not a folder, a file missing, a header that doesn't fit), ConfigError, StoreReadError,
        or for a GGUF file CheckpointError.
        """
        path = Path(path)
        if is_gguf(path):
            from smallthinker.expert_store.gguf_store import GgufStore  # the package gguf takes a tenth of a second

            return GgufStore(path)
        from smallthinker.expert_store.folder_store import FolderStore

        return FolderStore.opened(path)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the dense weights; their memory goes when the last view of them does."""
        self._dense = None

    def expert_index(self, layer: int, expert: int) -> int:
        """The record's index, as readers count them. Raises IndexError."""
        experts = self.config.experts_of_layers
        if not (0 <= layer < len(experts) and 0 <= expert < experts[layer]):
            raise IndexError(
                f"layer {layer}, expert {expert}: the store has {len(experts)} layers of {experts} experts"
            )
        return self._first_of[layer] + expert

    def dense_spec(self, name: str) -> TensorSpec:
        """Rows, columns and quantisation of a dense tensor. Raises KeyError."""
        return self._dense_specs[name]

    def dense_names(self) -> list[str]:
        """Names of the dense tensors in file order."""
        return list(self._dense_specs)

    def load_dense(
        self,
        mode: Literal["anonymous", "mapped"] = "anonymous",
        progress: Progress | None = None,
        storage: StorageProfile | None = None,
        reserved: Callable[[U8], None] = lambda memory: None,
        verify: bool = True,
    ) -> None:
        """Bring the dense weights into memory; again, nothing happens.

        anonymous: read past the page cache into memory of our own, which the system can't drop and read again in the
        middle of a token; costs `dense_bytes`. mapped: starts at once, pages come from the file when first touched,
        where the file holds them as the kernels read them. storage: a slower device to emulate from now on; a map is
        read by the system, whenever it likes. reserved: gets the memory, uint8 [dense_bytes], before it is read into.
        verify: what is read, rows of tables too, is compared with the files' checksums, where they have some.
        Raises StoreReadError.
        """
        if self._dense is None:
            self._storage, self._verifies = storage, verify
            self._dense = self._load_dense(mode, progress or silent, storage, reserved, verify)

    def dense(self, name: str) -> U8 | npt.NDArray[np.float32]:
        """A read-only view of a dense tensor, 64-byte aligned: uint8 [packed bytes] of a matrix as the kernels take
        it (padding left out), float32 [size] of a norm. Maps the file if nothing was loaded.

        Raises KeyError, StoreReadError.
        """
        spec = self._dense_specs[name]
        self.load_dense("mapped")
        assert self._dense is not None
        start = self._start_of[name]
        view = self._dense[start : start + spec.content_bytes]
        return view.view(np.float32) if spec.quant is None else view

    def table_rows(self, name: str, group: int) -> U8:
        """Of a table of which single rows are read, rows 16 * group to 16 * group + 15 as a tile, those past its end
        zero: from the disk each time, past the page cache. Raises KeyError, StoreReadError."""
        began = time.perf_counter()
        found = self._table_rows(self._tables[name], group)
        if self._storage is not None:
            took = found.nbytes / self._storage.bytes_per_sec(found.nbytes)
            time.sleep(max(began + took - time.perf_counter(), 0.0))
        return found

    @abstractmethod
    def _table_rows(self, spec: TensorSpec, group: int) -> U8:
        """As `table_rows`, as fast as the disk is."""

    @abstractmethod
    def _load_dense(
        self,
        mode: Literal["anonymous", "mapped"],
        progress: Progress,
        storage: StorageProfile | None,
        reserved: Callable[[U8], None],
        verify: bool,
    ) -> U8:
        """All dense tensors, one after another as in `dense_table`, uint8 [dense_bytes], read-only."""

    @abstractmethod
    def records(self, chunk_bytes: int) -> Records:
        """Where the experts lie, for the read queue. chunk_bytes: about as much is read at a time, where the files
        leave a choice that the queue hasn't."""

    @abstractmethod
    def plain_records(self) -> Records:
        """Places in the experts' file of about a record's size, as they lie: what a probe reads of the disk."""

    @abstractmethod
    def check_small_files(self) -> None:
        """Compare what describes the model, headers and small files, with their checksums where there are some. Raises
        StoreFormatError, StoreReadError."""

    @abstractmethod
    def verify(self, progress: Progress | None = None) -> Verified:
        """Read the files in full, past the page cache, and compare every checksum that they have.

        Raises StoreFormatError that names file, tensor and bytes; StoreReadError.
        """

    @abstractmethod
    def identity(self) -> str:
        """What differs between two models' weights, as text of any length."""

    @abstractmethod
    def router_checksums(self) -> list[int]:
        """CRC-32 of each router, layer after layer: the same in every format that a model is stored in."""

    @abstractmethod
    def hint_path(self, name: str) -> Path:
        """Where a file lies, if it is there, that was learned of this model on this machine."""

    @abstractmethod
    def write_hint(self, name: str, data: bytes) -> bool:
        """Keep such a file for the next start, whole or not at all. False where it can't be written."""
