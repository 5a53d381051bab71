"""Which experts the last runs used most, kept beside the store so that the next start reads those first.

Owns the file and who may trust it: one tensor, `chances`, float32 [records], of a policy's `state`.
Only a hint: nothing in it can change an output.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from smallthinker.errors import StoreFormatError
from smallthinker.expert_store.format import HOT_FILE
from smallthinker.expert_store.header import encode_header, read_header
from smallthinker.expert_store.store import Store
from smallthinker.files import open_regular

Floats = npt.NDArray[np.float32]
_TENSOR, _ALIGN = "chances", 64
_MAX_HEADER_BYTES = 4096
LEAST_BYTES = 64 << 20  # of experts: fewer are read in no time, and a small store is no place to leave files in


def load_hot_set(store: Store) -> Floats | None:
    """What was kept for this very store, [records]; None where there is none that fits."""
    path, shape = store.hint_path(HOT_FILE), (store.num_experts,)
    try:
        header = read_header(path, _MAX_HEADER_BYTES)
        entry = header.tensors.get(_TENSOR)
        if entry is None or len(header.tensors) != 1 or header.metadata != _key(store):
            return None
        if (entry.dtype, entry.shape) != ("F32", shape):
            return None
        with open_regular(path) as file:
            file.seek(entry.start)
            chances = np.frombuffer(file.read(4 * store.num_experts), "<f4")
    except (OSError, StoreFormatError):
        return None
    if chances.shape != shape or not np.isfinite(chances).all():
        return None
    return chances.astype(np.float32)


def save_hot_set(store: Store, chances: Floats) -> bool:
    """Keep it for the next start, whole or not at all. False where the store's folder can't be written."""
    header = encode_header([(_TENSOR, "F32", chances.shape)], _key(store), _ALIGN)
    return store.write_hint(HOT_FILE, header + chances.astype("<f4").tobytes())


def _key(store: Store) -> dict[str, str]:
    """What it holds for: these files of experts."""
    stats = [path.stat() for path in store.weight_files]
    nbytes, modified_ns = sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)
    return {"experts_bytes": str(nbytes), "modified_ns": str(modified_ns)}
