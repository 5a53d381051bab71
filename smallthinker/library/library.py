"""Models by name: those of the models folder, the bundled one, and others that were given a name.

Owns aliases and when a model was last used, each a small file in the models folder, which may be missing or read-only.
Knows nothing about what is in a model's files.
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, unquote

from smallthinker.demo import DEMO_STORE, refuse_missing_demo
from smallthinker.errors import ModelNotFoundError, RequestError, StoreWriteError, shown
from smallthinker.files import read_small, write_whole
from smallthinker.library.folder import DEMO, KEPT, LibraryModel, model_at, models_folder, models_in

_MOST_NAME = 100
_MOST_PATH_BYTES = 1 << 14
_MOST_NAMED = 12  # in a message


class Library:
    """folder: None is `models_folder()`; it need not be there. Reads names of files anew at each call, and nothing
    else."""

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = models_folder() if folder is None else Path(folder)

    def made(self) -> Path:
        """The folder, made if need be. Raises StoreWriteError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise StoreWriteError(f"{self.folder}: cannot make the models folder: {e.strerror or e}") from e
        return self.folder

    def models(self) -> list[LibraryModel]:
        """The demo, where it is installed, then all others by name."""
        found = {model.name: model for model in (*_demo(), *models_in(self.folder))}
        for alias, target in self._aliases():
            if alias in found:  # a file of that name has come since
                continue
            if target in found:
                model = found[target]
                found[target] = replace(model, aliases=(*model.aliases, alias))
            elif (there := model_at(Path(target))) is not None:
                found[alias] = replace(there, name=alias, is_outside=True)
        models = (replace(model, last_used=self._last_used(model.name)) for model in found.values())
        return sorted(models, key=lambda model: (model.name != DEMO, model.name.casefold(), model.name))

    def find(self, name: str) -> LibraryModel:
        """By its name or an alias, in letters of either case where that is clear. Raises ModelNotFoundError, which says
        which names there are."""
        model = self.named(name)
        if model is not None:
            return model
        if name.casefold() == DEMO:
            refuse_missing_demo(DEMO_STORE)
        names = self.names()
        close = self.close_to(name)
        hint = f"; did you mean {close}? There" if close else "; there"
        verb = "are" if len(names) > 1 else "is"
        listed = ", ".join(names[:_MOST_NAMED]) + (", ..." if len(names) > _MOST_NAMED else "") or "none"
        raise ModelNotFoundError(f"{shown(name)}: no model of that name{hint} {verb} {listed} ({self.folder})")

    def named(self, name: str) -> LibraryModel | None:
        """The same, None where there is none."""
        models = self.models()
        for same in (str, str.casefold):
            found = [m for m in models if same(name) in map(same, (m.name, *m.aliases))]
            if len(found) == 1:
                return found[0]
        return None

    def names(self) -> list[str]:
        """Of what runs, aliases too."""
        return [name for model in self.models() if model.runs for name in (model.name, *model.aliases)]

    def close_to(self, name: str) -> str | None:
        """The name that may have been meant."""
        by_small = {known.casefold(): known for known in self.names()}
        close = difflib.get_close_matches(name.casefold(), by_small, n=1, cutoff=0.7)
        return by_small[close[0]] if close else None

    def mark_used(self, path: Path) -> None:
        """Keep that this model was used now; nothing happens where it has no name, or that can't be written."""
        if not self.folder.is_dir():
            return
        with contextlib.suppress(OSError):
            for model in self._all_at(path):
                kept = self._kept("used", model.name)
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.touch()

    def set_alias(self, alias: str, target: str | Path) -> LibraryModel:
        """Give a model a second name: target is a name of the library, or the path of a model elsewhere, which stays
        there. Raises RequestError, ModelNotFoundError, StoreWriteError."""
        _check_alias(alias)
        if any(alias.casefold() == model.name.casefold() for model in self.models() if not model.is_outside):
            raise RequestError(f"alias: {alias} is a model's own name already; choose another")
        model = self.named(str(target)) or self.kept_at(Path(target))
        path = Path(target).absolute() if model is None else model.path
        if model is None and model_at(path) is None:
            self.find(str(target))  # raises
        word = str(path) if model is None or model.is_outside else model.name
        kept = self._kept("aliases", alias)
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_whole(kept, os.fsencode(word))
        except OSError as e:
            raise StoreWriteError(f"{kept}: cannot write: {e.strerror or e}") from e
        return self.find(alias)

    def has_alias(self, name: str) -> bool:
        """Also one that names nothing any more."""
        return self._kept("aliases", name).is_file()

    def alias_target(self, alias: str) -> str | None:
        """What it stands for: a model's own name, or the path of one elsewhere, be it gone or not."""
        return dict(self._aliases()).get(alias)

    def remove_alias(self, alias: str) -> bool:
        """Whether there was one. Raises StoreWriteError."""
        try:
            self._kept("aliases", alias).unlink()
        except FileNotFoundError:
            return False
        except OSError as e:
            raise StoreWriteError(f"{self._kept('aliases', alias)}: cannot remove: {e.strerror or e}") from e
        return True

    def forget(self, model: LibraryModel) -> None:
        """A model that is gone: its other names, and when it was used. Raises StoreWriteError."""
        for alias in model.aliases:
            self.remove_alias(alias)
        with contextlib.suppress(OSError):
            self._kept("used", model.name).unlink()

    def kept_at(self, path: Path) -> LibraryModel | None:
        """The model whose path this is, the first of several names for one elsewhere."""
        return next(self._all_at(path), None)

    def _all_at(self, path: Path) -> Iterator[LibraryModel]:
        return (model for model in self.models() if is_same(model.path, path))

    def _aliases(self) -> Iterator[tuple[str, str]]:
        with contextlib.suppress(OSError):
            for path in sorted((self.folder / KEPT / "aliases").iterdir()):
                with contextlib.suppress(OSError):
                    if not path.name.startswith("."):
                        yield unquote(path.name), os.fsdecode(read_small(path, _MOST_PATH_BYTES))

    def _last_used(self, name: str) -> float | None:
        try:
            return self._kept("used", name).stat().st_mtime
        except OSError:
            return None

    def _kept(self, what: str, name: str) -> Path:
        return self.folder / KEPT / what / quote(name, safe=" ()[]+,=@!~")


def _demo() -> list[LibraryModel]:
    if not DEMO_STORE.is_dir():
        return []
    return [LibraryModel(DEMO, DEMO_STORE, "store", tuple(p for p in DEMO_STORE.iterdir() if p.is_file()))]


def is_same(a: Path, b: Path) -> bool:
    return os.path.realpath(a) == os.path.realpath(b)


def _check_alias(alias: str) -> None:
    is_plain = alias.isprintable() and not set(alias) & set("/\\") and alias == alias.strip()
    if not alias or not is_plain or alias[0] in "-.~" or len(alias) > _MOST_NAME or alias.lower().endswith(".gguf"):
        raise RequestError(
            f"alias: expected a name of at most {_MOST_NAME} printable characters, without slashes, not beginning with "
            f"- . or ~ and not ending in .gguf, found {shown(alias)}"
        )
