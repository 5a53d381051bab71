"""What a model is, from its headers: its family, its size, and the memory that it needs.

Reading a large vocabulary and measuring it takes seconds, so what was found is kept in the user's cache until the file
changes. Knows nothing about names.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from smallthinker import host
from smallthinker.files import name_of_path, parse_json, read_small, write_hint


@dataclass(frozen=True)
class ModelFacts:
    """family: as its configuration says; quant: of most matrices; floor_bytes, full_bytes: the least memory of a whole
    process that runs it with the default context, within some MiB, and what keeps everything in memory."""

    family: str
    quant: str
    parameters: int
    context: int
    floor_bytes: int
    full_bytes: int


def facts_of(path: Path) -> ModelFacts:
    """path: a store's folder or a GGUF file. Raises what `Store.open` does."""
    kept, state = _kept_path(path), _state(path)
    if kept is not None and (known := _read(kept, state)) is not None:
        return known
    found = _found(path)
    if kept is not None:
        try:
            kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            return found
        write_hint(kept, json.dumps({"state": state, "facts": asdict(found)}).encode("ascii"))
    return found


def _found(path: Path) -> ModelFacts:
    from smallthinker.expert_store.device.disk_profile import DiskProfile
    from smallthinker.expert_store.queues import queue_bytes
    from smallthinker.expert_store.store import Store
    from smallthinker.memory_plan import choose_context
    from smallthinker.models.tensors import num_parameters
    from smallthinker.prediction.needs import Process, find_model, floor_bytes, full_bytes

    resident = _engine_bytes()
    with Store.open(path) as store:
        io_bytes = queue_bytes(store, DiskProfile())
    planned = find_model(str(path.absolute()))
    model = planned.config
    process = Process(choose_context(model, None), "f16", io_bytes, resident)
    floor, full = floor_bytes(planned, process), full_bytes(planned, process)
    return ModelFacts(model.family, planned.quant, num_parameters(model), model.context, floor, full)


@lru_cache
def _engine_bytes() -> int:
    """What a process holds that has loaded the engine and no model yet: of this one, before it has opened several."""
    from smallthinker import llm  # noqa: F401

    return host.resident_bytes()


def _state(path: Path) -> list[object]:
    """What changes with the files, and with the program that reads them."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    found = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return [version("smallthinker"), *(list(one) for one in found)]


def _kept_path(path: Path) -> Path | None:
    try:
        return host.cache_folder() / "facts" / f"{name_of_path(path)}.json"
    except (RuntimeError, OSError):  # a user without a home
        return None


def _read(kept: Path, state: list[object]) -> ModelFacts | None:
    try:
        found = parse_json(read_small(kept))
        facts = ModelFacts(**found["facts"])
        if found["state"] != state:
            return None
    except (OSError, ValueError, TypeError, KeyError):  # not there, or written by another version
        return None
    whole = (facts.parameters, facts.context, facts.floor_bytes, facts.full_bytes)
    is_whole = all(type(number) is int for number in whole) and all(
        isinstance(t, str) for t in (facts.family, facts.quant)
    )
    return facts if is_whole else None
