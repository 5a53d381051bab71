"""Removing a model of the models folder: which files go, what that frees, and the folders that are empty then.

Nothing outside the models folder is ever removed: of a link, whether to a file or a folder, the link goes alone. Knows
nothing about asking.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from smallthinker import host
from smallthinker.errors import RequestError, StoreWriteError
from smallthinker.expert_store.format import CONFIG_FILE
from smallthinker.library.folder import DEMO, PULL_MARK, LibraryModel
from smallthinker.library.library import Library


@dataclass(frozen=True)
class Removal:
    """paths: files, and links to files or folders. freed_bytes: what no other name keeps."""

    model: LibraryModel
    paths: tuple[Path, ...]
    freed_bytes: int


def plan_removal(library: Library, model: LibraryModel) -> Removal:
    """Removes nothing. Raises RequestError for what isn't in the models folder."""
    if model.name == DEMO:
        raise RequestError(f"{DEMO}: is bundled, not in the models folder; it goes with the package")
    if model.path == library.folder:
        raise RequestError(f"{model.path}: is the models folder itself; remove it by hand")
    paths = tuple(sorted(dict.fromkeys(_in_folder(library.folder, path) for path in model.files), key=_turn))
    own = [status for path in paths for status in [path.lstat()] if not path.is_symlink()]
    return Removal(model, paths, sum(status.st_size for status in own if status.st_nlink == 1))


def remove(library: Library, removal: Removal) -> None:
    """Raises StoreWriteError, also where another process writes there; what could be removed by then is."""
    folders = sorted({path.parent for path in removal.paths} - {library.folder})
    with ExitStack() as locks:
        try:
            for folder in folders:
                lock = host.lock_folder(folder, wait=False)
                if lock is None:
                    raise StoreWriteError(f"{folder}: another process is writing there; end it, or wait for it")
                locks.callback(host.unlock_folder, lock)
            for path in removal.paths:
                path.unlink(missing_ok=True)
        except OSError as e:
            if isinstance(e, StoreWriteError):
                raise
            raise StoreWriteError(f"{e.filename or removal.model.path}: cannot remove: {e.strerror or e}") from e
    for folder in folders:
        with suppress(OSError):  # it holds something else
            while folder != library.folder:
                folder.rmdir()
                folder = folder.parent
    library.forget(removal.model)


def _turn(path: Path) -> tuple[int, int]:
    """When it goes: what a model is known by at last, and before that its weights. So what is left by a removal that
    was cut short is listed, and can be removed, as long as it takes any room."""
    return {CONFIG_FILE: 1, PULL_MARK: 2}.get(path.name, 0), path.lstat().st_size


def _in_folder(folder: Path, path: Path) -> Path:
    """The file, or the first link on the way to it. Raises RequestError for one that lies elsewhere."""
    try:
        parts = path.relative_to(folder).parts
    except ValueError:
        raise RequestError(f"{path}: is not in the models folder {folder}, which alone is cleared") from None
    reached = folder
    for part in parts:
        reached = reached / part
        if reached.is_symlink():
            return reached
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise RequestError(f"{path}: is not in the models folder {folder}, which alone is cleared")
    return reached
