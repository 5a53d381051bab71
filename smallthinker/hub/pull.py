"""A store from a repository on a hub: plan, download, convert.

Owns which files are fetched (weights that are plain data, and the JSON that describes them, or a GGUF file, which
describes itself; never code or pickles) and where they are until the store is whole: in `STORE.download`, which a
second try goes on with.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from smallthinker import host
from smallthinker.errors import CheckpointError, ConfigError, DownloadError, StoreWriteError
from smallthinker.expert_store.convert import convert
from smallthinker.expert_store.folder import AtomicFolder
from smallthinker.expert_store.format import (
    ALL_FILES,
    CONFIG_FILE,
    TOKENIZER_FILE,
    Formats,
    check_quant,
    dense_table,
    expert_table,
)
from smallthinker.expert_store.progress import Progress, silent
from smallthinker.expert_store.sources.checkpoint import (
    INDEX_FILE,
    MAX_INDEX_BYTES,
    SINGLE_FILE,
    shard_names,
)
from smallthinker.expert_store.sources.checkpoint_settings import SETTINGS_FILES
from smallthinker.files import parse_json
from smallthinker.hub.gguf_models import choose_model, gguf_models, gguf_on_hub
from smallthinker.hub.repository import Hub, HubFile, part_of
from smallthinker.models.description import Model
from smallthinker.models.registry import parse_model

_SMALL_FILES = (*SETTINGS_FILES, INDEX_FILE)
_OURS = ".smallthinker-pull"  # in the folder of a download: the files in it are from a hub, and may be replaced
_MOST_NAME_BYTES = 255
_ELSEWHERE = "choose the repository with the original weights or a GGUF file of them"
_MAX_CONFIG_BYTES = 1 << 20
_BESIDE_WEIGHTS_BYTES = 64 << 20  # a store's headers and tokenizer, and what a file system keeps for itself


@dataclass(frozen=True)
class PullPlan:
    """What would be fetched and written. present_bytes: of the download, those that are on this machine already.
    gguf_models: what the repository has, where the first of `files` is one of them. notes: what is taken for granted,
    since a GGUF file doesn't say it."""

    repo: str
    commit: str
    store: Path
    quant: str
    files: tuple[HubFile, ...]
    download_bytes: int
    present_bytes: int
    store_bytes: int
    free_bytes: int
    gguf_models: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def needed_bytes(self) -> int:
        """Of the disk: what is still to come, and the store."""
        return self.download_bytes - self.present_bytes + self.store_bytes + _BESIDE_WEIGHTS_BYTES

    def to_dict(self) -> dict[str, Any]:
        return {
            "repo": self.repo,
            "commit": self.commit,
            "files": [{"name": file.name, "bytes": file.size} for file in self.files],
            "download_bytes": self.download_bytes,
            "present_bytes": self.present_bytes,
            "store": str(self.store),
            "quant": self.quant,
            "store_bytes": self.store_bytes,
            "needed_bytes": self.needed_bytes,
            "free_bytes": self.free_bytes,
            "gguf_models": list(self.gguf_models),
            "notes": list(self.notes),
        }

    def text(self) -> str:
        present = f", {_size(self.present_bytes)} of it here already" if self.present_bytes else ""
        others = ", ".join(name for name in self.gguf_models if name != self.files[0].name)
        weights = f"weights   {self.files[0].name}; --file chooses another: {others or 'there is none'}\n"
        notes = "".join(f"\nnote: {note}" for note in self.notes)
        return (
            f"model     {self.repo}, commit {self.commit[:12]}\n"
            f"{weights if self.gguf_models else ''}"
            f"download  {_size(self.download_bytes)} in {len(self.files)} files{present}\n"
            f"store     {self.store}, {self.quant}, {_size(self.store_bytes)}\n"
            f"disk      {_size(self.needed_bytes)} needed, {_size(self.free_bytes)} free{notes}"
        )


class Pull:
    """One repository on its way to one store. Construction asks the hub and reads config.json or the header of the GGUF
    file, and writes nothing.

    out: the store; None is NAME-QUANT in the working folder. force: replace a store that is there, at the end. gguf:
    name or pattern of the GGUF file to take; None prefers safetensors, then the file that is of this quantisation.
    Raises DownloadError, ConfigError (not a model that this engine runs, unknown quantisation), CheckpointError,
    StoreWriteError (the store exists, the disk is too small).
    """

    def __init__(
        self, hub: Hub, out: Path | None = None, quant: str = "q4_0", force: bool = False, gguf: str | None = None
    ) -> None:
        kind = check_quant(quant)
        self._hub, self._force = hub, force
        out = out or Path(f"{hub.repo.split('/')[-1]}-{quant}")
        AtomicFolder(out, 0, ALL_FILES, force).check()
        self.download = out.with_name(f"{out.name}.download")
        if len(os.fsencode(self.download.name)) > _MOST_NAME_BYTES:
            raise StoreWriteError(f"{out}: expected a name to which .download can be added, found a longer one")
        models = gguf_models(hub.files)
        has_safetensors = INDEX_FILE in hub.files or SINGLE_FILE in hub.files
        self._from_gguf = gguf is not None or bool(models and not has_safetensors)
        if self._from_gguf:
            files = list(models[choose_model(models, gguf, quant, hub.repo)])
            model = gguf_on_hub(hub, tuple(files))
            config, notes = model.config, model.notes
        else:
            config, notes = self._config(), ()
            files = self._files()
        formats = Formats(kind)
        self.plan = PullPlan(
            repo=hub.repo,
            commit=hub.commit,
            store=out,
            quant=quant,
            files=tuple(files),
            download_bytes=sum(file.size for file in files),
            present_bytes=sum(self._present_bytes(file) for file in files),
            store_bytes=sum(spec.nbytes for spec in (*dense_table(config, formats), *expert_table(config, formats))),
            free_bytes=shutil.disk_usage(out.absolute().parent).free,
            gguf_models=tuple(models) if self._from_gguf else (),
            notes=notes,
        )

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
                self._hub.download(file, self._local(file), arrived, replace=is_ours)
        except DownloadError:
            raise
        except OSError as e:
            why = f"cannot write: {e.strerror or e}"
            raise StoreWriteError(f"{self.download}: {why}; the same command goes on from there") from e

    def convert(self, compress: int | None = None, progress: Progress = silent) -> None:
        source = self._local(self.plan.files[0]) if self._from_gguf else self.download
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
                f"{plan.store}: needs {_size(plan.needed_bytes)} (download and store), the disk has "
                f"{_size(plan.free_bytes)} free; make room or choose another disk"
            )

    def _config(self) -> Model:
        """What the repository's config.json describes, before anything large is fetched."""
        repo = self._hub.repo
        if CONFIG_FILE not in self._hub.files:
            raise CheckpointError(f"{repo}: has no {CONFIG_FILE}: not a model; {_ELSEWHERE}")
        try:
            raw = parse_json(self._hub.read(self._hub.files[CONFIG_FILE], _MAX_CONFIG_BYTES))
        except ValueError as e:
            raise ConfigError(f"{repo}: {CONFIG_FILE}: not valid JSON: {e}") from None
        try:
            return parse_model(raw)
        except ConfigError as e:
            raise ConfigError(f"{repo}: not a model that this engine runs: {CONFIG_FILE}: {e}") from None

    def _files(self) -> list[HubFile]:
        """The small files, then the weights."""
        listed = self._hub.files
        names = [name for name in _SMALL_FILES if name in listed]
        if TOKENIZER_FILE not in names:
            raise CheckpointError(f"{self._hub.repo}: has no {TOKENIZER_FILE}; choose a repository with the tokenizer")
        if INDEX_FILE in names:
            where = f"{self._hub.repo}: {INDEX_FILE}"
            weights = shard_names(self._hub.read(listed[INDEX_FILE], MAX_INDEX_BYTES), where)
            missing = [name for name in weights if name not in listed]
            if missing:
                raise CheckpointError(f"{where}: names {missing[0]}, which the repository doesn't have")
            names += weights
        elif SINGLE_FILE in listed:
            names.append(SINGLE_FILE)
        else:
            raise CheckpointError(f"{self._hub.repo}: has neither safetensors nor GGUF weights; {_ELSEWHERE}")
        return [listed[name] for name in names]

    def _local(self, file: HubFile) -> Path:
        """Where a file is or will be; all in one folder, wherever the repository has them."""
        return self.download / PurePosixPath(file.name).name

    def _present_bytes(self, file: HubFile) -> int:
        path = self._local(file)
        if (path.is_file() and path.stat().st_size == file.size) or self._hub.cached(file):
            return file.size
        part = part_of(path, file)
        return min(part.stat().st_size, file.size) if part.is_file() else 0


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**30:,.1f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:,.1f} MiB"
