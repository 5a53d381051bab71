"""The models folder: where it is, and which models lie in it.

A store is called as its folder, a GGUF file as the file, without its ending and the number of its part. Folders of
folders are looked through, so that files may lie as a hub's program sorted them. Knows names of files, and opens none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from smallthinker.errors import RequestError
from smallthinker.expert_store.file_names import ALL_FILES, CONFIG_FILE, DENSE_FILE, EXPERTS_FILE
from smallthinker.files import is_folder, is_there

VARIABLE = "SMALLTHINKER_MODELS"
DEMO = "demo"
DEMO_IS = "15-million-parameter writer of old prose"
PULL_MARK = ".smallthinker-pull"  # in the folder of a download: the files in it are from a hub, and may be replaced
KEPT = ".smallthinker"  # in the models folder: aliases, and when each model was last used
NO_MODEL = re.compile(r"mmproj|imatrix", re.IGNORECASE)  # a picture's encoder; what a quantiser measured

Kind = Literal["store", "gguf", "checkpoint", "partial"]

_DEPTH = 3  # FOLDER/OWNER/NAME/FILE
_GGUF = re.compile(r"(?P<stem>.+?)(-(?P<number>\d{5})-of-(?P<count>\d{5}))?\.gguf", re.IGNORECASE | re.DOTALL)
_PART = re.compile(r"(?P<name>.+)\.[0-9a-f]{16}\.part", re.DOTALL)  # as hub.repository names what has come
_HALF_STORE = re.compile(r"\.(?P<name>.+)\.partial-[0-9a-f]{16}", re.DOTALL)  # as expert_store.folder does
_DOWNLOAD = ".download"


@dataclass(frozen=True)
class LibraryModel:
    """name: what it is called; path: what LLM takes, a store's folder or the first or only GGUF file. kind: checkpoint
    is weights that have to be converted first, partial what a download or conversion that ended early left. files: all
    that belongs to it. modified, last_used: seconds since 1970. aliases: its other names. is_outside: it lies
    elsewhere, and only its name is kept here."""

    name: str
    path: Path
    kind: Kind
    files: tuple[Path, ...]
    aliases: tuple[str, ...] = ()
    last_used: float | None = None
    is_outside: bool = False

    @property
    def runs(self) -> bool:
        return self.kind in ("store", "gguf")

    @property
    def nbytes(self) -> int:
        return sum(status.st_size for status in _statuses(self.files))

    @property
    def modified(self) -> float:
        return max((status.st_mtime for status in _statuses(self.files)), default=0.0)


def models_folder() -> Path:
    """SMALLTHINKER_MODELS, else a folder of this user's data, as the system has it. It need not be there. Raises
    RequestError where there can't be one."""
    named = os.environ.get(VARIABLE)
    try:
        if named:
            return Path(named).expanduser().absolute()
        from platformdirs import user_data_path

        found = user_data_path("smallthinker", appauthor=False).expanduser() / "models"
    except (RuntimeError, OSError) as e:  # a user without a home; a working folder that is gone
        raise RequestError(f"{VARIABLE}: expected the folder of the models, found none: {e}") from None
    if not found.is_absolute():
        raise RequestError(f"{VARIABLE}: expected the folder of the models, since this user has no home; set it")
    return found


def models_in(folder: Path) -> list[LibraryModel]:
    """All models, by name. Where two would have one name, the later has its folder's before it."""
    found: dict[str, LibraryModel] = {}
    for model in models_under(folder):
        name = model.name
        if name in found or name == DEMO:
            name = f"{model.path.parent.name}/{name}"
        if name not in found:
            found[name] = replace(model, name=name)
    return [found[name] for name in sorted(found, key=lambda name: (name.casefold(), name))]


def model_name(path: Path) -> str:
    """What a store or a GGUF file is called, if no other is."""
    name = _GGUF.fullmatch(path.name)
    return path.name if name is None else name["stem"]


def models_under(folder: Path) -> Iterator[LibraryModel]:
    """All in a folder and the folders in it, as each is called by itself."""
    return _inside(folder, 0)


def model_at(path: Path) -> LibraryModel | None:
    """The one model that a path means: of a folder with one GGUF file, that."""
    if is_folder(path):
        found = [model for model in _inside(path, _DEPTH) if model.runs or model.path == path]
    elif path.suffix.lower() == ".gguf" and is_there(path):
        found = list(_gguf_models(path.parent, [path]))
    else:
        found = []
    return found[0] if len(found) == 1 else None


def _inside(folder: Path, depth: int) -> Iterator[LibraryModel]:
    try:
        entries = sorted(folder.iterdir())
    except (OSError, ValueError):
        return
    names = {entry.name for entry in entries}
    files = tuple(entry for entry in entries if entry.is_file() or (entry.is_symlink() and not entry.is_dir()))
    if names >= {CONFIG_FILE, DENSE_FILE, EXPERTS_FILE}:
        own = tuple(path for path in files if any(fnmatch(path.name, name) for name in ALL_FILES))
        yield LibraryModel(folder.name, folder, "store", own)
    elif CONFIG_FILE in names and names & {DENSE_FILE, EXPERTS_FILE}:  # a removal that was cut short
        own = tuple(path for path in files if any(fnmatch(path.name, name) for name in ALL_FILES))
        yield LibraryModel(folder.name, folder, "partial", own)
    elif PULL_MARK in names:
        yield LibraryModel(folder.name.removesuffix(_DOWNLOAD), folder, "partial", files)
    elif CONFIG_FILE in names and any(n.endswith((".safetensors", ".bin")) for n in names - {*ALL_FILES}):
        yield LibraryModel(folder.name, folder, "checkpoint", files)
    else:
        yield from _gguf_models(folder, list(files))
        for entry in entries:
            half = _HALF_STORE.fullmatch(entry.name)
            if half is not None and entry.is_dir():
                yield LibraryModel(half["name"], entry, "partial", tuple(entry.iterdir()))
            elif depth < _DEPTH and not entry.name.startswith(".") and entry.is_dir():
                yield from _inside(entry, depth + 1)


def _gguf_models(folder: Path, files: list[Path]) -> Iterator[LibraryModel]:
    """Whole ones, and those of which parts or ends are missing."""
    parts: dict[str, list[Path]] = {}
    for path in files:
        part = _PART.fullmatch(path.name)
        name = _GGUF.fullmatch(path.name if part is None else part["name"])
        if name is not None and not path.name.startswith(".") and not NO_MODEL.search(path.name):
            parts.setdefault(name["stem"], []).append(path)
    for stem, found in parts.items():
        names = [name for path in found if (name := _GGUF.fullmatch(path.name))]
        if len(files) == 1 and names and names[0]["count"]:  # one part was given: the others lie beside it
            found = [p for p in sorted(folder.iterdir()) if (m := _GGUF.fullmatch(p.name)) and m["stem"] == stem]
            names = [name for path in found if (name := _GGUF.fullmatch(path.name))]
        is_whole = bool(names) and len(names) == int(names[0]["count"] or 1)
        yield LibraryModel(stem, found[0], "gguf" if is_whole else "partial", tuple(found))


def _statuses(files: tuple[Path, ...]) -> Iterator[os.stat_result]:
    for path in files:
        try:
            yield path.stat()
        except OSError:  # a link to nothing, or gone meanwhile
            continue
