"""A node's own copy of a store: fetched once from a path that every node sees, verified, read from its own disk."""

from __future__ import annotations

import shutil
from hashlib import sha256
from pathlib import Path

from smallthinker.errors import StoreFormatError, StoreWriteError
from smallthinker.expert_store.store import Store, is_gguf
from smallthinker.files import lock_folder, unlock_folder
from smallthinker.host.folders import sync_folder


def identity_of(store: Store) -> str:
    """What tells a model's weights and words from others', in 64 digits."""
    words = store.small_files.digest("tokenizer.json")
    return sha256(f"{store.quant} {store.identity()} {words}".encode()).hexdigest()


def fetch(source: Path, identity: str, folder: str | None) -> Path:
    """The store to be read on this node: its copy in `folder`, made if there is none, or with None and for a GGUF file,
    the source. Raises StoreFormatError where it isn't the driver's, and what reading and writing stores does."""
    if folder is None or is_gguf(source):
        _check(source, identity)
        return source
    kept = Path(folder) / identity[:32]
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(kept.parent, wait=True)  # several engines of one node fetch once
        try:
            if not kept.exists():
                _copy(source, kept, identity)
        finally:
            if lock is not None:
                unlock_folder(lock)
    except OSError as e:
        if isinstance(e, StoreWriteError):
            raise
        raise StoreWriteError(f"{kept}: cannot be written: {e.strerror or e}; give another --node-dir") from None
    return kept


def _copy(source: Path, kept: Path, identity: str) -> None:
    unfinished = kept.with_name(f".{kept.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(source, unfinished)
    try:
        with Store.open(unfinished) as store:
            store.check_small_files()
            store.verify()
        _check(unfinished, identity)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    unfinished.rename(kept)
    sync_folder(kept.parent)


def _check(path: Path, identity: str) -> None:
    with Store.open(path) as store:
        if identity_of(store) != identity:
            raise StoreFormatError(f"{path}: expected the driver's model, found another; give all nodes the same files")
