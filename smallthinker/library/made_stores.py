"""The store of a folder of weights as a hub has them: made once, in the models folder, and found again.

Owns what is remembered of which folder it was made of. Knows nothing about how one is converted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from shlex import quote

from smallthinker.errors import ModelNotFoundError
from smallthinker.expert_store.convert import convert
from smallthinker.expert_store.file_names import MANIFEST_FILE
from smallthinker.expert_store.progress import Progress
from smallthinker.files import is_there, name_of_path, parse_json, read_small, write_hint
from smallthinker.library.folder import KEPT, model_at
from smallthinker.library.library import Library, is_same

_SNAPSHOTS = "snapshots"  # of a hub's cache: FOLDER is models--OWNER--NAME/snapshots/REVISION


class MadeStores:
    """Of one library."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def find(self, folder: Path) -> Path | None:
        """The store that was made of this folder, if its weights are still those."""
        store = self._kept(folder)
        if store is None or store[1] != _state(folder):
            return None
        found = model_at(store[0])
        return found.path if found is not None and found.runs else None

    def is_of(self, store: Path, folder: Path) -> bool:
        """Whether it was made of this folder, whatever lies there now."""
        kept = self._kept(folder)
        return kept is not None and is_same(kept[0], store)

    def place(self, folder: Path) -> Path:
        """Where `make` writes it. Raises ModelNotFoundError where both names are other models'."""
        kept, name = self._kept(folder), _name(folder)
        if kept is not None:
            return kept[0]
        names = {known.casefold() for known in self._library.names()}
        for one in (name, f"{name}-store"):
            if one.casefold() not in names and not is_there(self._library.folder / one):
                return self._library.folder / one
        raise ModelNotFoundError(
            f"{folder}: weights as a hub has them, and the models folder has another {name}; smallthinker convert "
            f"{quote(str(folder))} OUT makes a store of them, which runs"
        )

    def make(self, folder: Path, progress: Progress, notice: Callable[[str], None]) -> Path:
        """notice: as of `convert`. Raises ConfigError, CheckpointError, StoreWriteError, ModelNotFoundError."""
        out, state = self.place(folder), _state(folder)
        out.parent.mkdir(parents=True, exist_ok=True)
        convert(folder, out, force=self._kept(folder) is not None, progress=progress, notice=notice)
        kept = self._kept_path(folder)
        kept.parent.mkdir(parents=True, exist_ok=True)
        made = {"store": out.name, "state": state, "manifest": _digest(out)}
        write_hint(kept, json.dumps(made).encode("ascii"))
        return out

    def _kept(self, folder: Path) -> tuple[Path, list[object]] | None:
        """The store's path, and what the folder held; None where another model has that path now."""
        try:
            found = parse_json(read_small(self._kept_path(folder)))
            name, state = found["store"], found["state"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not isinstance(name, str) or not isinstance(state, list) or Path(name).name != name:
            return None
        path = self._library.folder / name
        return (path, state) if not is_there(path) or _digest(path) == found.get("manifest") else None

    def _kept_path(self, folder: Path) -> Path:
        return self._library.folder / KEPT / "made" / f"{name_of_path(folder)}.json"


def _digest(store: Path) -> str | None:
    """Of what says what the store is."""
    try:
        return sha256(read_small(store / MANIFEST_FILE)).hexdigest()
    except (OSError, ValueError):
        return None


def _name(folder: Path) -> str:
    real = folder.resolve()
    is_cached = real.parent.name == _SNAPSHOTS and real.parent.parent.name.startswith("models--")
    return real.parent.parent.name.rpartition("--")[2] if is_cached else real.name


def _state(folder: Path) -> list[object]:
    """What changes with the weights, and with what is said of them."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json") and path.is_file())
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
