"""What a disk gives, and how to ask it: what a probe found, kept beside the store so that only the first start pays.

Owns the file and who may trust it. How it is measured is probe.py's.
"""

from __future__ import annotations

import json
import math
import platform
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, get_args

from smallthinker import host
from smallthinker.expert_store.device.storage_profile import StorageProfile
from smallthinker.expert_store.format import PROFILE_FILE
from smallthinker.expert_store.native_queue import NativeKind
from smallthinker.expert_store.store import Store
from smallthinker.figures import rounded
from smallthinker.files import parse_json, read_small

_FORMAT: Final = 4  # of the file, and of what the figures mean
_MOST_FILE_BYTES = 64 << 10
# A real disk that gives this share of an emulated one's bandwidth is good enough to stand for it.
_GOOD_ENOUGH = 0.95
MOST_CHUNKS = 64  # in flight, as the queue takes them


@dataclass(frozen=True)
class DiskProfile:
    """How to read records from one store's disk on one machine.

    kind, chunk_bytes, depth, speculative_depth: as `native_queue.NativeQueue` takes them. bandwidth_bytes_per_sec: of
    random records read so; latency_sec: of one block of 4096 bytes. measured: False for figures that are only assumed.
    """

    kind: NativeKind = "direct"
    chunk_bytes: int = 512 << 10
    depth: int = 2
    speculative_depth: int = 1
    bandwidth_bytes_per_sec: float = 1e9
    latency_sec: float = 1e-4
    measured: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for what no queue would take."""
        if self.kind not in get_args(NativeKind):
            raise ValueError(f"kind: expected one of {', '.join(get_args(NativeKind))}, found {self.kind!r}")
        for name, value, least, most in (
            ("chunk_bytes", self.chunk_bytes, host.DIRECT_ALIGN, 1 << 31),
            ("depth", self.depth, 1, MOST_CHUNKS),
            ("speculative_depth", self.speculative_depth, 1, self.depth),
        ):
            if type(value) is not int or not least <= value <= most:
                raise ValueError(f"{name}: expected {least} to {most}, found {value!r}")
        if self.chunk_bytes % host.DIRECT_ALIGN:
            raise ValueError(f"chunk_bytes: expected a multiple of {host.DIRECT_ALIGN}, found {self.chunk_bytes}")
        for name, figure in (
            ("bandwidth_bytes_per_sec", self.bandwidth_bytes_per_sec),
            ("latency_sec", self.latency_sec),
        ):
            if type(figure) not in (int, float) or not 0 < figure < math.inf:
                raise ValueError(f"{name}: expected a number above 0, found {figure!r}")
        if type(self.measured) is not bool:
            raise ValueError(f"measured: expected true or false, found {self.measured!r}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DiskProfile:
        """Raises ValueError for a key that is unknown or missing, or a value out of range."""
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            raise ValueError(
                f"expected the keys {', '.join(sorted(names))}, found {', '.join(sorted(map(str, values)))}"
            )
        return cls(**values)


def shortfall(storage: StorageProfile, emulated: DiskProfile, real: DiskProfile) -> str | None:
    """In words, where the disk itself is slower than the one it should stand for; None where it is known not to be, or
    nobody asked it."""
    expected = storage.bytes_per_sec(emulated.chunk_bytes, emulated.depth)
    if not real.measured or real.bandwidth_bytes_per_sec >= _GOOD_ENOUGH * expected:
        return None
    return (
        f"storage {storage.name}: this disk gives {rounded(real.bandwidth_bytes_per_sec / 1e6)} MB/s of random reads, "
        f"less than the profile's {rounded(expected / 1e6)}: an emulated disk can't be faster than the real one"
    )


def load_profile(store: Store) -> DiskProfile | None:
    """The profile that was kept for this very file on this machine; None where there is none that fits."""
    path = store.hint_path(PROFILE_FILE)
    try:
        found = parse_json(read_small(path, _MOST_FILE_BYTES))
        if not isinstance(found, dict) or found.get("key") != _key(store) or not isinstance(found["profile"], dict):
            return None
        return DiskProfile.from_dict(found["profile"])
    except (OSError, ValueError, KeyError):  # not there, or not ours: it costs a probe
        return None


def save_profile(store: Store, profile: DiskProfile) -> bool:
    """Keep it for the next start. False where the store's folder can't be written."""
    text = json.dumps({"key": _key(store), "profile": profile.to_dict()}, indent=1)
    return store.write_hint(PROFILE_FILE, (text + "\n").encode())


def _key(store: Store) -> dict[str, Any]:
    """What the figures hold for: another disk, file, machine or kernel is measured anew."""
    stats = [path.stat() for path in store.weight_files]
    return {
        "format": _FORMAT,
        "device": stats[0].st_dev,
        "file_bytes": sum(stat.st_size for stat in stats),
        "modified_ns": max(stat.st_mtime_ns for stat in stats),
        "record_bytes": store.record_bytes,
        "cpu": host.cpu_name(),
        "system": f"{platform.system()} {platform.release()}",
    }
