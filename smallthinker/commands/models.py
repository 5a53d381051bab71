"""Which model a command is about: a word before its options or after -m, which means the same in every command."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallthinker.commands.options import Group, ProgressBar, engine_options
from smallthinker.errors import ModelNotFoundError, RequestError, printable, shown

if TYPE_CHECKING:
    from smallthinker.cluster.nodes import NodeModel
    from smallthinker.library import Library
    from smallthinker.llm import LLM

KINDS = "a name (smallthinker list), a store's folder, a .gguf file or a Hugging Face folder"
DEFAULT = "default: demo, the bundled 15-million-parameter writer of old prose"


def add_model(parser: argparse.ArgumentParser, kinds: str = KINDS, default: str = DEFAULT) -> None:
    parser.add_argument("word", metavar="MODEL", nargs="?", help=f"{kinds} ({default})")
    add_model_option(parser)


def add_model_option(group: Group, more: str = "the same as MODEL") -> None:
    group.add_argument("-m", "--model", metavar="MODEL", help=more)


def model_word(args: argparse.Namespace) -> str | None:
    """The one word. Raises RequestError for two."""
    words = [word for word in (getattr(args, "word", None), args.model) if word is not None]
    if len(words) > 1:
        raise RequestError(f"MODEL: expected one model, found {shown(words[0])} and {shown(words[1])}")
    return words[0] if words else None


def find_model(word: str | None, *, used: bool = True) -> Path:
    """used: it is run, which the library remembers. Raises ModelNotFoundError."""
    from smallthinker.library import Library
    from smallthinker.library.resolve import resolve

    library = Library()
    if word is not None and is_to_pull(word, library):
        raise ModelNotFoundError(f"{shown(word)}: not here yet; smallthinker pull {word.lower()} brings it")
    path = _made_store(word, library, make=used) or resolve(word, library)
    if used:
        library.mark_used(path)
    return path


def _made_store(word: str | None, library: Library, *, make: bool) -> Path | None:
    """Of a folder of weights as a hub has them; None for all else, and for one of which none was made or is to be."""
    if word is None:
        return None
    from smallthinker.library.folder import model_at
    from smallthinker.library.resolve import is_path

    named, found = None if is_path(word) else library.named(word), model_at(Path(word).expanduser())
    if "checkpoint" not in {one.kind for one in (named, found) if one is not None}:
        return None
    from smallthinker.library.made_stores import MadeStores

    made = MadeStores(library)
    if named is not None and (found is None or not made.is_of(named.path, found.path)):
        found = named  # what lies here by that name is another model, if it is one
    if found is None or found.kind != "checkpoint":
        return None
    path = made.find(found.path)
    if path is None and make:
        begins = f"{found.path}: weights as a hub has them; once, a store is made of them: {made.place(found.path)}"
        said = [begins]  # when it has begun: what can't be converted is one line

        with ProgressBar("converting", leave=False) as shown_progress:

            def progress(done: int, total: int, what: str) -> None:
                while said:
                    _notice(said.pop())
                shown_progress(done, total, what)

            path = made.make(found.path, progress, _notice)
    return path


def _notice(text: str) -> None:
    print(printable(text, 1000), file=sys.stderr)


def is_to_pull(word: str, library: Library) -> bool:
    """Whether it is a short name of what `pull` would bring, and of nothing that is here."""
    from smallthinker.hub.known import KNOWN

    return word.lower() in KNOWN and library.named(word) is None and not Path(word).exists()


def find_model_or_folder(word: str | None) -> Path | None:
    """Of a command that looks at a disk: a model's path, else the folder or file itself; None for none."""
    from smallthinker.library import Library
    from smallthinker.library.resolve import is_meant

    if word is None:
        return None
    return find_model(word, used=False) if is_meant(word, Library()) else Path(word)


def model_among(words: list[str], more: bool) -> str | None:
    """The model that the first of a prompt's words names, if it does, taken out of them. more: something else will
    follow in the prompt. Raises ModelNotFoundError for a word that can only be a name that is spelt wrongly."""
    from smallthinker.library import Library
    from smallthinker.library.resolve import is_meant

    if not words or words[0] == "-":
        return None
    library = Library()
    is_first = len(words) > 1 or more
    if is_meant(words[0], library) or (is_first and is_to_pull(words[0], library)):
        return words.pop(0)
    if is_first and " " not in words[0] and library.close_to(words[0]) is not None:
        library.find(words[0])
    return None


def find_drafts_model(args: argparse.Namespace) -> None:
    """Whatever else of a command's options names a model."""
    if args.draft is not None:
        args.draft = find_model(args.draft)


def load(args: argparse.Namespace, path: Path, **more: Any) -> LLM:
    """The model, as the options describe; `more` as in `engine_options`."""
    from smallthinker.llm import LLM

    find_drafts_model(args)
    quiet = getattr(args, "quiet", False)
    with ProgressBar("loading", leave=False, quiet=quiet) as progress:
        llm = LLM(path, engine_options(args, progress=progress, **more))
    if llm.storage is not None and not quiet:
        _tell(f"the disk is emulated: {llm.storage.name} ({llm.storage.summary})")
    for note in () if quiet else llm.notes:
        _tell(f"note: {printable(str(path))}: {note}")
    if llm.storage_warning is not None:
        _tell(f"warning: {llm.storage_warning}")
    if args.verbose:
        print(llm.plan.table(), file=sys.stderr)
    return llm


def node_model(args: argparse.Namespace, path: Path, identity: str, **more: Any) -> NodeModel:
    """What each node of `--cluster` loads."""
    from platformdirs import user_cache_dir

    from smallthinker import __version__
    from smallthinker.cluster.nodes import LOCAL, NodeModel

    node_dir = args.node_dir
    if node_dir is None and args.cluster != LOCAL:  # the driver's idea of a user's folder, for all of them
        node_dir = str(Path(user_cache_dir("smallthinker")) / "batch")
    return NodeModel(path.absolute(), identity, node_dir, engine_options(args, **more), __version__)


def name_of(path: Path) -> str:
    """What a model is called, also one that isn't kept here."""
    from smallthinker.library import DEMO
    from smallthinker.library.folder import model_name

    return printable(DEMO if is_demo(path) else model_name(path.absolute()))


def is_demo(path: Path) -> bool:
    from smallthinker.llm import DEMO_STORE

    return path.resolve() == DEMO_STORE.resolve()


def tell_of_demo(args: argparse.Namespace) -> None:
    """To a person who has chosen no model."""
    from smallthinker.library.folder import DEMO, DEMO_IS

    if sys.stderr.isatty() and not args.quiet:
        _tell(f"{DEMO} answers, a {DEMO_IS}; smallthinker list names other models, smallthinker pull brings them")


def _tell(line: str) -> None:
    """At a terminal its words stay whole."""
    from smallthinker.chat.wrapping import fitted

    print(fitted(line, sys.stderr), file=sys.stderr)
