"""What a user's word for a model means: a name of the library, or the path of a store or a GGUF file; and what to do
about one that means neither.

Owns the words for that. Reads names of files only: whether what is in them is whole, `Store.open` finds out.
"""

from __future__ import annotations

import os
from pathlib import Path
from shlex import quote

from smallthinker.demo import DEMO_STORE
from smallthinker.errors import ModelNotFoundError, shown
from smallthinker.expert_store.file_names import DENSE_FILE, EXPERTS_FILE
from smallthinker.files import is_folder, is_there
from smallthinker.library.folder import DEMO, PULL_MARK, LibraryModel, model_at, models_under
from smallthinker.library.library import Library, is_same

_MOST_NAMED = 8


def resolve(word: str | None, library: Library) -> Path:
    """What LLM takes: a store's folder or a GGUF file. None is the demo. A word without a slash that is a name wins
    over nothing: where a model of that name lies in the working folder, too, it is refused. Raises ModelNotFoundError.
    """
    if word is None:
        return DEMO_STORE
    if is_path(word):
        return checked(Path(word).expanduser() if word.startswith("~") else Path(word))
    model, here = library.named(word), Path(word)
    if model is not None:
        if (at := model_at(here)) is not None and not is_same(at.path, model.path):
            raise ModelNotFoundError(
                f"{shown(word)}: a model of that name is at {model.path}, and another one lies here; write "
                f".{os.sep}{word} for this, {model.path} for that"
            )
        return runnable(model)
    if word == DEMO:
        return DEMO_STORE  # not installed: whoever opens it says so
    if is_there(here) or os.sep in word or here.suffix.lower() == ".gguf":
        return checked(here)
    library.find(word)
    raise AssertionError("a name that was found above")


def is_path(word: str) -> bool:
    """Whether it can't be a name."""
    return word.startswith((".", "~")) or Path(word).is_absolute()


def is_meant(word: str, library: Library) -> bool:
    """Of a word that may be something else: whether it names a model."""
    path = Path(word)
    starts = (f".{os.sep}", f"..{os.sep}", f"~{os.sep}")
    if word.startswith(starts) or path.suffix.lower() == ".gguf" or model_at(path) is not None:
        return True
    return library.named(word) is not None


def runnable(model: LibraryModel) -> Path:
    """The path of a model of the library. Raises ModelNotFoundError for one that has to be made whole first."""
    if model.kind == "partial":
        raise ModelNotFoundError(
            f"{model.name}: not whole: a download or conversion that ended early left it; give the same command again, "
            f"which goes on with it, or smallthinker rm {quote(model.name)}"
        )
    return model.path if model.runs else checked(model.path)


def checked(path: Path) -> Path:
    """What LLM takes of what lies at a path. Raises ModelNotFoundError, which says what to do with what is there."""
    found = model_at(path)
    if found is not None and found.runs:
        return found.path
    if is_folder(path) and ((path / EXPERTS_FILE).is_file() or (path / DENSE_FILE).is_file()):
        return path  # a store that isn't whole: opening it says what is missing
    raise ModelNotFoundError(f"{path}: {_why_not(path, found)}")


def _why_not(path: Path, found: LibraryModel | None) -> str:
    if not is_there(path):
        return "nothing is there; give a store's folder, a .gguf file, or a name of those that smallthinker list shows"
    if found is not None and found.kind == "partial":
        return "not whole: parts of it are missing; pull or copy it again"
    if not is_folder(path):
        if path.suffix.lower() in (".safetensors", ".bin", ".pt", ".pth"):
            return f"a file of weights; smallthinker convert {quote(str(path.parent))} makes a store of its folder"
        if path.name == "config.json":
            return f"a model's configuration, which smallthinker plan takes; give its folder, {path.parent}"
        return "a file that is no model; expected a store's folder or a .gguf file"
    if (path / PULL_MARK).exists():
        return "a download that isn't whole; give the same pull command again, which goes on with it"
    if found is not None:  # a checkpoint
        return (
            f"weights as a hub has them; smallthinker convert {quote(str(path))} OUT makes a store of them, which runs"
        )
    inside = [str(model.path.relative_to(path)) for model in models_under(path) if model.runs]
    if inside:
        named = ", ".join(inside[:_MOST_NAMED]) + (", ..." if len(inside) > _MOST_NAMED else "")
        return f"a folder of several models; give one of them: {named}"
    return "a folder without a model; give a store's folder, a .gguf file, or a name that smallthinker list shows"
