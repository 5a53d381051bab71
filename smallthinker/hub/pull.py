"""A model from a repository on a hub: plan, download and, of safetensors, convert.

Owns which files are fetched (weights that are plain data, and the JSON that describes them, or a GGUF file, which
describes itself; never code or pickles) and where they are. A GGUF file stays in its folder, under its own name, and
runs there. Safetensors are in `STORE.download` until the store is whole. A second try goes on with either.
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
    TOKENIZER_FILE,
    dense_file_table,
    expert_table,
)
from smallthinker.expert_store.own_formats import DEFAULT_QUANT, MADE, formats_of
from smallthinker.expert_store.progress import Progress, silent
from smallthinker.expert_store.sources.checkpoint import INDEX_FILE
from smallthinker.expert_store.sources.checkpoint_settings import SETTINGS_FILES, read_config, settings_files
from smallthinker.figures import size
from smallthinker.hub.fit import ELSEWHERE, Described, Needs, free_memory_bytes, gguf_needs, read_offer
from smallthinker.hub.offers import Offer, choices, offers
from smallthinker.hub.plan import Listing, PullPlan
from smallthinker.hub.repository import Hub, HubFile, part_of
from smallthinker.library.folder import PULL_MARK, model_name
from smallthinker.memory_plan import parse_size
from smallthinker.models.description import Model

_SMALL_FILES = (*SETTINGS_FILES, INDEX_FILE)
_MOST_NAME_BYTES = 255


class _Choice(NamedTuple):
    """What is taken, what it is, and the bytes of the store that is made of it."""

    offer: Offer
    described: Described
    store_bytes: int


class Pull:
    """One repository on its way to one model that runs. Construction asks the hub and reads config.json or the header
    of the GGUF file, and writes nothing.

    out: the store; None is NAME-QUANT in `folder`. Of a GGUF file the folder that it lies in; None is NAME there.
    folder: the models folder, where it can be called by its name afterwards, or `alias`; None is the working folder.
    quant: the store's weight format, or which GGUF file to take ("q4_k_m"). None takes what runs and fits: safetensors,
    else the GGUF file that loses little for its size. gguf: name or pattern of the GGUF file. memory: what the model
    shall run in; None is what a process here would take. force: replace a store that is there, at the end, or another
    file of the same name. Raises DownloadError, ConfigError (not a model that this engine runs), CheckpointError,
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
        folder: Path | None = None,
        alias: str | None = None,
    ) -> None:
        stored = _stored_quant(quant)
        self._hub, self._force = hub, force
        budget = free_memory_bytes() if memory is None else parse_size(memory)
        found = offers(hub)
        allowed = choices(found, gguf, quant, hub.repo)
        if not allowed:
            read_offer(
                hub, Offer("", "safetensors", "", ()), stored
            )  # says what is wrong with config.json, if anything
            raise CheckpointError(f"{hub.repo}: has neither safetensors nor GGUF weights; {ELSEWHERE}")
        name = hub.repo.split("/")[-1]
        if allowed[0].kind == "gguf":
            out = self.download = out or (folder or Path()) / name
            _check_folder(out)
        else:
            out = out or (folder or Path()) / f"{name}-{stored}"
            AtomicFolder(out, 0, ALL_FILES, force).check()
            self.download = out.with_name(f"{out.name}.download")
            if len(os.fsencode(self.download.name)) > _MOST_NAME_BYTES:
                raise StoreWriteError(f"{out}: expected a name to which .download can be added, found a longer one")
        free_bytes = self._free_bytes(out)
        self._offer, described, store_bytes = self._choose(allowed, stored, free_bytes)
        notes = described.notes
        if described.needs.floor_bytes > budget:
            why = f"needs {size(described.needs.floor_bytes)} of memory at least, found {size(budget)}"
            if quant is None and gguf is None:
                remedy = "`memory` plans for another machine, `quant` takes it all the same"
                raise MemoryBudgetError(f"{hub.repo}: {why}; {remedy}", described.needs.floor_bytes)
            notes = (*notes, f"this {why}: it won't run here")
        files = (*self._small_files(), *self._offer.files)
        store = out if described.formats is None else self._local(files[0])
        self.plan = PullPlan(
            repo=hub.repo,
            commit=hub.commit,
            store=store,
            called=(alias or model_name(store)) if folder is not None and out.parent == folder else None,
            quant=stored if described.formats is None else described.formats.quant,
            files=files,
            download_bytes=sum(file.size for file in files),
            present_bytes=sum(self._present_bytes(file) for file in files),
            store_bytes=store_bytes,
            free_bytes=free_bytes,
            needs=described.needs,
            memory_bytes=budget,
            gguf_models=() if self.converts else tuple(offer.name for offer in found if offer.kind == "gguf"),
            notes=notes,
        )

    @property
    def converts(self) -> bool:
        """Whether a store is made of what comes; a GGUF file runs where it lies."""
        return self._offer.kind != "gguf"

    def _choose(self, allowed: Sequence[Offer], stored: str, free_bytes: int) -> _Choice:
        """The first that runs and that the disk holds, with its store; else the first that runs."""
        refusal: CheckpointError | None = None
        too_large: _Choice | None = None
        for offer in allowed:
            if too_large is not None and offer.nbytes + too_large.store_bytes > free_bytes:
                continue  # its header needn't be read
            try:
                described = read_offer(self._hub, offer, stored)
            except CheckpointError as e:  # of this file; another one may be whole, or of a type that can be read
                refusal = refusal or e
                continue
            choice = _Choice(offer, described, _store_bytes(described.model, stored) if offer.kind != "gguf" else 0)
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
        """Download what is missing; of safetensors make the store, and remove them. Returns the path of what runs. Of a
        GGUF file, `compress` and `keep_download` say nothing: it stays as it is.

        Whatever ends this early, nothing half is left under its name, and the next try goes on with what has come.
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
            if self.converts and (self._force or not any(self.download.iterdir())):
                (self.download / PULL_MARK).touch()
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
            replaces = self._clear_small_files() if self.converts else self._force
            for file in self.plan.files:
                if file is self._offer.files[0] and self.converts:
                    settings_files(self.download, read_config(self.download))  # refuses a tokenizer before the weights
                self._hub.download(file, self._local(file), arrived, replace=replaces)
        except DownloadError:
            raise
        except OSError as e:
            why = f"cannot write: {e.strerror or e}"
            raise StoreWriteError(f"{self.download}: {why}; the same command goes on from there") from e

    def _clear_small_files(self) -> bool:
        """Remove an earlier try's files of another model, which would be converted, too. Returns whether the folder's
        files are from a hub."""
        is_ours = (self.download / PULL_MARK).exists()
        for name in set(_SMALL_FILES) - {file.name for file in self.plan.files}:
            if not is_ours and (self.download / name).exists():
                raise DownloadError(f"{self.download / name}: is no part of {self._hub.repo}; move it, or give `force`")
            (self.download / name).unlink(missing_ok=True)
        return is_ours

    def convert(self, compress: int | None = None, progress: Progress = silent) -> None:
        """Make the store, if one is made."""
        plan = self.plan
        if self.converts:
            quiet = lambda note: None  # noqa: E731  the plan has the notes
            convert(self.download, plan.store, plan.quant, self._force, progress, compress, quiet, self._origin)

    @property
    def _origin(self) -> str:
        return f"{self.plan.repo} {self.plan.commit}"

    def finish(self, keep_download: bool = False) -> None:
        """Remove what was fetched for a store, and the folder if there is nothing else in it. A download that is kept
        is the user's own from now on: no later pull replaces or removes a file of it unasked."""
        if not self.converts or not (self.download / PULL_MARK).exists():
            return
        names = set() if keep_download else {self._local(file).name for file in self.plan.files}
        with contextlib.suppress(OSError):
            for path in self.download.iterdir():
                if path.name in (*names, PULL_MARK) or path.suffix == ".part":
                    path.unlink()
            self.download.rmdir()

    def check_space(self) -> None:
        """Raises StoreWriteError when the disk is too small for the rest of the download and the store."""
        plan, what = self.plan, "download and store" if self.converts else "download"
        if plan.free_bytes < plan.needed_bytes:
            raise StoreWriteError(
                f"{plan.store}: needs {size(plan.needed_bytes)} ({what}), the disk has "
                f"{size(plan.free_bytes)} free; make room or choose another disk"
            )

    def _free_bytes(self, out: Path) -> int:
        return shutil.disk_usage(out.absolute().parent).free

    def _small_files(self) -> list[HubFile]:
        """What belongs to safetensors, and comes before them."""
        if not self.converts:
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
    """What there is, with the memory that each needs: safetensors as a store of `quant`, GGUF files as they lie, about;
    reads one header. Raises DownloadError, CheckpointError for an index of shards that isn't one."""
    found, stored = tuple(offers(hub)), _stored_quant(quant)
    try:
        if not found:
            raise CheckpointError(f"{hub.repo}: has neither safetensors nor GGUF weights; {ELSEWHERE}")
        read = min(found, key=lambda offer: (offer.kind != "safetensors", not offer.may_run, offer.nbytes))
        described = read_offer(hub, read, stored)
    except (ConfigError, CheckpointError) as e:
        return Listing(hub.repo, hub.commit, None, found, (), str(e))

    def needs_of(offer: Offer) -> Needs | None:
        if offer is read:
            return described.needs
        return gguf_needs(described.model, offer.nbytes) if offer.may_run else None

    needs = tuple(needs_of(offer) for offer in found)
    return Listing(hub.repo, hub.commit, described.model.family, found, needs, None)


def _stored_quant(quant: str | None) -> str:
    """Of a store; a quantisation that only GGUF files have says nothing of one."""
    return quant if quant in MADE else DEFAULT_QUANT


def _store_bytes(model: Model, stored: str) -> int:
    formats = formats_of(model, stored)
    return sum(spec.nbytes for spec in (*dense_file_table(model, formats), *expert_table(model, formats)))


def _check_folder(folder: Path) -> None:
    """Whether a file can be put into it. Raises StoreWriteError."""
    try:
        if not Path(os.path.realpath(folder)).parent.is_dir():
            raise StoreWriteError(f"{folder}: the folder that it would be in doesn't exist; create it first")
        if folder.exists() and not folder.is_dir():
            raise StoreWriteError(f"{folder}: expected a folder for the GGUF file, found a file; choose another name")
    except ValueError as e:
        raise StoreWriteError(f"{str(folder)!r}: cannot write: {e}; choose another name") from None
    except OSError as e:
        if isinstance(e, StoreWriteError):
            raise
        raise StoreWriteError(f"{folder}: cannot write: {e.strerror or e}; choose another name") from e
