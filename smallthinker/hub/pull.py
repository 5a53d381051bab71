"""A store from a repository on a hub: plan, download, convert.

Owns which files are fetched (weights that are plain data, and the JSON that describes them, or a GGUF file, which
describes itself; never code or pickles) and where they are until the store is whole: in `STORE.download`, which a
second try goes on with.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from smallthinker import host
from smallthinker.errors import CheckpointError, ConfigError, DownloadError, MemoryBudgetError, StoreWriteError
from smallthinker.expert_store.convert import convert
from smallthinker.expert_store.folder import AtomicFolder
from smallthinker.expert_store.format import (
    ALL_FILES,
    MADE_QUANTS,
    TOKENIZER_FILE,
    Formats,
    check_quant,
    dense_table,
    expert_table,
)
from smallthinker.expert_store.progress import Progress, silent
from smallthinker.expert_store.sources.checkpoint import INDEX_FILE
from smallthinker.expert_store.sources.checkpoint_settings import SETTINGS_FILES, read_config, settings_files
from smallthinker.hub.fit import ELSEWHERE, free_memory_bytes, needs, read_offer
from smallthinker.hub.offers import Offer, choices, offers
from smallthinker.hub.plan import Listing, PullPlan, size
from smallthinker.hub.repository import Hub, HubFile, part_of
from smallthinker.memory_plan import parse_size
from smallthinker.models.description import Model
from smallthinker.prediction.needs import DEFAULT_QUANT

_SMALL_FILES = (*SETTINGS_FILES, INDEX_FILE)
_OURS = ".smallthinker-pull"  # in the folder of a download: the files in it are from a hub, and may be replaced
_MOST_NAME_BYTES = 255


class _Choice(NamedTuple):
    """What is taken, and how large its store will be."""

    offer: Offer
    model: Model
    store_bytes: int
    notes: tuple[str, ...]


class Pull:
    """One repository on its way to one store. Construction asks the hub and reads config.json or the header of the GGUF
    file, and writes nothing.

    out: the store; None is NAME-QUANT in the working folder. quant: the store's weight format, and that of the GGUF
    file to take; of a quantisation that only GGUF files have ("q4_k_m"), the file's alone, and the store is q4_0. None
    takes what runs and fits: safetensors, else the GGUF file that loses little for its size. gguf: name or pattern of
    the GGUF file. memory: what the model shall run in; None is what a process here would take. force: replace a store
    that is there, at the end. Raises DownloadError, ConfigError (not a model that this engine runs), CheckpointError,
    MemoryBudgetError (nothing that was not asked for by name fits), StoreWriteError (the store exists, the disk is too
    small).
    """

    def __init__(
        self,
        hub: Hub,
        out: Path | None = None,
        quant: str | None = None,
        force: bool = False,
        gguf: str | None = None,
        memory: str | float | None = None,
    ) -> None:
        stored = check_quant(quant) if quant in MADE_QUANTS else DEFAULT_QUANT
        self._hub, self._force = hub, force
        out = out or Path(f"{hub.repo.split('/')[-1]}-{stored}")
        AtomicFolder(out, 0, ALL_FILES, force).check()
        self.download = out.with_name(f"{out.name}.download")
        if len(os.fsencode(self.download.name)) > _MOST_NAME_BYTES:
            raise StoreWriteError(f"{out}: expected a name to which .download can be added, found a longer one")
        budget = free_memory_bytes() if memory is None else parse_size(memory)
        found = offers(hub)
        free_bytes = self._free_bytes(out)
        chosen = self._choose(choices(found, gguf, quant, hub.repo), Formats(stored), free_bytes)
        self._offer, notes = chosen.offer, chosen.notes
        needed = needs(chosen.model, stored)
        if needed.floor_bytes > budget:
            why = f"needs {size(needed.floor_bytes)} of memory at least, found {size(budget)}"
            if quant is None and gguf is None:
                remedy = "--memory plans for another machine, --quant takes it all the same"
                raise MemoryBudgetError(f"{hub.repo}: {why}; {remedy}", needed.floor_bytes)
            notes = (*notes, f"this {why}: it won't run here")
        files = (*self._small_files(), *self._offer.files)
        self.plan = PullPlan(
            repo=hub.repo,
            commit=hub.commit,
            store=out,
            quant=stored,
            files=files,
            download_bytes=sum(file.size for file in files),
            present_bytes=sum(self._present_bytes(file) for file in files),
            store_bytes=chosen.store_bytes,
            free_bytes=free_bytes,
            needs=needed,
            memory_bytes=budget,
            gguf_models=tuple(offer.name for offer in found if offer.kind == "gguf") if self._from_gguf else (),
            notes=notes,
        )

    @property
    def _from_gguf(self) -> bool:
        return self._offer.kind == "gguf"

    def _choose(self, allowed: Sequence[Offer], formats: Formats, free_bytes: int) -> _Choice:
        """The first that runs and that the disk holds beside its store; else the first that runs."""
        if not allowed:
            read_offer(self._hub, Offer("", "safetensors", "", ()))  # says what is wrong with config.json, if anything
            raise CheckpointError(f"{self._hub.repo}: has neither safetensors nor GGUF weights; {ELSEWHERE}")
        refusal: CheckpointError | None = None
        too_large: _Choice | None = None
        for offer in allowed:
            if too_large is not None and offer.nbytes + too_large.store_bytes > free_bytes:
                continue  # its header needn't be read
            try:
                model, notes = read_offer(self._hub, offer)
            except CheckpointError as e:  # of this file; another one may be whole, or of a type that can be read
                refusal = refusal or e
                continue
            tables = (*dense_table(model, formats), *expert_table(model, formats))
            choice = _Choice(offer, model, sum(spec.nbytes for spec in tables), notes)
            if offer.nbytes + choice.store_bytes <= free_bytes:
                return choice
            too_large = too_large or choice
        if too_large is None:
            assert refusal is not None
            raise refusal
        return too_large

    def run(
        self,
        compress: int | None = None,
        downloading: Progress = silent,
        converting: Progress = silent,
        keep_download: bool = False,
    ) -> Path:
        """Download what is missing, convert it, remove the download; returns the store's path.

        Whatever ends this early, no half store is left under its name, and the next try goes on with what has come.
        """
        with self.locked():
            self.fetch(downloading)
            self.convert(compress, converting)
            self.finish(keep_download)
        return self.plan.store

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The folder of the download, made if need be, for this process alone. The lock ends with the process."""
        self.check_space()
        try:
            self.download.mkdir(exist_ok=True)
            if self._force or not any(self.download.iterdir()):
                (self.download / _OURS).touch()
            lock = host.lock_folder(self.download, wait=False)
        except OSError as e:
            raise StoreWriteError(f"{self.download}: cannot write: {e.strerror or e}") from e
        if lock is None:
            raise StoreWriteError(f"{self.download}: another process is downloading into it; choose another name")
        try:
            yield
        finally:
            host.unlock_folder(lock)

    def fetch(self, progress: Progress = silent) -> None:
        """Have every file of the plan in the folder, whole."""
        done = 0

        def arrived(count: int) -> None:
            nonlocal done
            done += count
            progress(done, self.plan.download_bytes, "")

        try:
            is_ours = (self.download / _OURS).exists()
            for name in set(_SMALL_FILES) - {file.name for file in self.plan.files}:
                # another model's, from an earlier try: would be converted
                if not is_ours and (self.download / name).exists():
                    raise DownloadError(
                        f"{self.download / name}: is no part of {self._hub.repo}; move it, or give --force"
                    )
                (self.download / name).unlink(missing_ok=True)
            for file in self.plan.files:
                if file is self._offer.files[0] and not self._from_gguf:
                    settings_files(self.download, read_config(self.download))  # refuses a tokenizer before the weights
                self._hub.download(file, self._local(file), arrived, replace=is_ours)
        except DownloadError:
            raise
        except OSError as e:
            why = f"cannot write: {e.strerror or e}"
            raise StoreWriteError(f"{self.download}: {why}; the same command goes on from there") from e

    def convert(self, compress: int | None = None, progress: Progress = silent) -> None:
        source = self._local(self._offer.files[0]) if self._from_gguf else self.download
        plan = self.plan
        convert(source, plan.store, plan.quant, self._force, progress, compress, notice=lambda note: None)  # plan's own

    def finish(self, keep_download: bool = False) -> None:
        """Remove what was fetched, and the folder if there is nothing else in it. A download that is kept is the user's
        own from now on: no later pull replaces or removes a file of it unasked."""
        if not (self.download / _OURS).exists():
            return
        names = set() if keep_download else {self._local(file).name for file in self.plan.files}
        with contextlib.suppress(OSError):
            for path in self.download.iterdir():
                if path.name in (*names, _OURS) or path.suffix == ".part":
                    path.unlink()
            self.download.rmdir()

    def check_space(self) -> None:
        """Raises StoreWriteError when the disk is too small for the rest of the download and the store."""
        plan = self.plan
        if plan.free_bytes < plan.needed_bytes:
            raise StoreWriteError(
                f"{plan.store}: needs {size(plan.needed_bytes)} (download and store), the disk has "
                f"{size(plan.free_bytes)} free; make room or choose another disk"
            )

    def _free_bytes(self, out: Path) -> int:
        return shutil.disk_usage(out.absolute().parent).free

    def _small_files(self) -> list[HubFile]:
        """What belongs to safetensors, and comes before them."""
        if self._from_gguf:
            return []
        if TOKENIZER_FILE not in self._hub.files:
            raise CheckpointError(f"{self._hub.repo}: has no {TOKENIZER_FILE}; choose a repository with the tokenizer")
        return [self._hub.files[name] for name in _SMALL_FILES if name in self._hub.files]

    def _local(self, file: HubFile) -> Path:
        """Where a file is or will be; all in one folder, wherever the repository has them."""
        return self.download / PurePosixPath(file.name).name

    def _present_bytes(self, file: HubFile) -> int:
        path = self._local(file)
        if (path.is_file() and path.stat().st_size == file.size) or self._hub.cached(file):
            return file.size
        part = part_of(path, file)
        return min(part.stat().st_size, file.size) if part.is_file() else 0


def listing(hub: Hub, quant: str | None = None) -> Listing:
    """What there is, with the memory that each needs as a store of `quant`; reads headers alone. Raises DownloadError,
    CheckpointError for an index of shards that isn't one."""
    found = tuple(offers(hub))
    stored = check_quant(quant) if quant in MADE_QUANTS else DEFAULT_QUANT
    try:
        if not found:
            raise CheckpointError(f"{hub.repo}: has neither safetensors nor GGUF weights; {ELSEWHERE}")
        model, _ = read_offer(hub, min(found, key=lambda offer: (offer.kind != "safetensors", offer.nbytes)))
    except (ConfigError, CheckpointError) as e:
        return Listing(hub.repo, hub.commit, None, found, (), str(e))
    return Listing(hub.repo, hub.commit, model.family, found, (needs(model, stored),) * len(found), None)
