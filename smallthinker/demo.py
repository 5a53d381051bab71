"""Where the demo model lies, a package of its own: a clone installs it with the engine, a wheel of the engine comes
without. Knows nothing of what it is; only what opens it finds out whether it is there."""

from importlib.util import find_spec
from pathlib import Path

from smallthinker.errors import StoreFormatError

DEMO_REMEDY = "name a model, or install this one's wheel, smallthinker_demo, which comes beside the engine's"


def _folder() -> Path:
    spec = find_spec("smallthinker_demo")
    if spec is not None and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0])
    return Path(__file__).parents[1] / "smallthinker_demo"  # where it would lie


DEMO_STORE = _folder() / "store"


def folder_name(store: Path) -> str:
    """What results call a store: `demo`, or as its folder."""
    return "demo" if store.resolve() == DEMO_STORE.resolve() else store.resolve().name


def refuse_missing_demo(path: Path) -> None:
    """Of a path where nothing was found: a StoreFormatError with the remedy if the demo model should lie there."""
    if path == DEMO_STORE:
        raise StoreFormatError(f"the demo model isn't installed; {DEMO_REMEDY} (looked for {path})")
