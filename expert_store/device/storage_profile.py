"""What a storage device gives to random and sequential reads: five figures, from a TOML file.

Owns the figures' meaning, their checks, the bundled device classes and the prediction made from them. Knows nothing
about how a profile is measured (device_probe.py) or imposed (emulation.py). How a store's records are best asked for
on one machine is another thing: disk_profile.py.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal

from smallthinker.errors import ProfileError, shown
from smallthinker.files import read_small, write_whole

BUNDLED: Final = ("nvme", "sata-ssd", "ufs", "emmc", "sd-card", "hdd")
SCOPES: Final = ("class", "device")
_FOLDER = Path(__file__).parent / "profiles"
_MOST_FILE_BYTES = 64 << 10
LONGEST_NAME: Final = 64
_TEXTS: Final = {"name": LONGEST_NAME, "summary": 200, "source": 2000}  # longest, in characters
_RANGES: Final = {
    "sequential_bytes_per_sec": (1e6, 1e12),  # below 1 MB/s a single read would hold up Ctrl-C for seconds
    "random_bytes_per_sec": (1e6, 1e12),
    "random_iops": (1.0, 1e8),
    "latency_sec": (1e-7, 1.0),
}
_MOST_DEPTH = 1024


@dataclass(frozen=True)
class StorageProfile:
    """One device, or a class of them, as reads see it.

    sequential_bytes_per_sec: of one long read from front to end. random_bytes_per_sec: the most that random reads get,
    however large and many. random_iops: the most random reads of 4096 bytes in a second, at full depth. latency_sec:
    from a random read's start to its first byte on an idle device. queue_depth: reads that the device works on at once;
    more wait. scope: class for figures of a kind of device, device for a measurement of one. source: where they come
    from.
    """

    name: str
    summary: str
    scope: Literal["class", "device"]
    sequential_bytes_per_sec: float
    random_bytes_per_sec: float
    random_iops: float
    latency_sec: float
    queue_depth: int
    source: str

    def __post_init__(self) -> None:
        """Raises ValueError that names the value."""
        for key, longest in _TEXTS.items():
            text = getattr(self, key)
            if not isinstance(text, str) or not 1 <= len(text) <= longest or not text.isprintable():
                raise ValueError(
                    f"{key}: expected one line of 1 to {longest} printable characters, found {shown(text)}"
                )
        if self.scope not in SCOPES:
            raise ValueError(f"scope: expected one of {', '.join(SCOPES)}, found {shown(self.scope)}")
        for key, (least, most) in _RANGES.items():
            value = getattr(self, key)
            if type(value) not in (int, float) or not least <= value <= most:
                raise ValueError(f"{key}: expected a number from {least:g} to {most:g}, found {shown(value)}")
        if type(self.queue_depth) is not int or not 1 <= self.queue_depth <= _MOST_DEPTH:
            found = shown(self.queue_depth)
            raise ValueError(f"queue_depth: expected a whole number from 1 to {_MOST_DEPTH}, found {found}")

    def bytes_per_sec(self, request_bytes: int, depth: int = 1) -> float:
        """What random reads of `request_bytes` each get, `depth` of them under way at any time.

        The least of three limits: the device's bandwidth, its requests per second, and `depth` reads that each take
        the latency and then their bytes. Raises ValueError for less than one byte or one read.
        """
        if request_bytes < 1 or depth < 1:
            raise ValueError(f"expected at least 1 byte and 1 read, found {request_bytes} and {depth}")
        alone_sec = self.latency_sec + request_bytes / self.random_bytes_per_sec
        return min(
            self.random_bytes_per_sec,
            self.random_iops * request_bytes,
            min(depth, self.queue_depth) * request_bytes / alone_sec,
        )

    def read_sec(self, nbytes: int, request_bytes: int, depth: int = 1) -> float:
        """Seconds until `nbytes` of random reads that are asked for at once have come back; 0 for no bytes."""
        if nbytes < 1:
            return 0.0
        request_bytes = min(request_bytes, nbytes)
        flowing = nbytes / self.bytes_per_sec(request_bytes, depth)
        return max(flowing, self.latency_sec + nbytes / self.random_bytes_per_sec)

    def sequential_sec(self, nbytes: int) -> float:
        """Seconds for `nbytes` from front to end, as dense weights are read."""
        return self.latency_sec + nbytes / self.sequential_bytes_per_sec if nbytes > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StorageProfile:
        """Raises ValueError for a key that is unknown or missing, or a value of the wrong type or range."""
        names = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(names))
        if unknown:
            raise ValueError(f"{shown(unknown[0])}: unknown key; expected {', '.join(names)}")
        missing = next((name for name in names if name not in values), None)
        if missing is not None:
            raise ValueError(f"{missing}: expected, found nothing")
        return cls(**values)


def load_profile(name_or_path: str | Path) -> StorageProfile:
    """A bundled profile by its name, or one's own from a TOML file. Raises ProfileError."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    bundled = isinstance(name_or_path, str) and name_or_path in BUNDLED
    path = _FOLDER / f"{name_or_path}.toml" if bundled else Path(name_or_path)
    names = ", ".join(BUNDLED)
    try:
        raw = read_small(path, _MOST_FILE_BYTES)
    except (OSError, ValueError) as e:  # ValueError: a zero byte in the path
        why = (e.strerror if isinstance(e, OSError) else None) or str(e)
        raise ProfileError(
            f"{str(path)!r}: expected a storage profile, one of {names} or a TOML file, found: {why}; "
            f"give one of these, or measure a disk with `smallthinker probe -o FILE`"
        ) from None
    remedy = f"correct it, measure again with `smallthinker probe -o FILE`, or give one of {names}"
    try:
        return StorageProfile.from_dict(tomllib.loads(raw.decode()))
    except (ValueError, RecursionError) as e:  # TOML's and UTF-8's errors are ValueErrors
        raise ProfileError(f"{path}: {' '.join(str(e).split())}; {remedy}") from None


def profile_toml(profile: StorageProfile) -> str:
    """The text of a file that `load_profile` reads back as the same profile."""
    lines = []
    for key, value in profile.to_dict().items():
        # Printable text has none of the characters in which TOML's strings differ from JSON's.
        lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}\n")
    return "".join(lines)


def save_profile_toml(profile: StorageProfile, path: str | Path, *, replace: bool = True) -> None:
    """Write, or replace, the file in one step. Raises ProfileError."""
    try:
        write_whole(Path(path), profile_toml(profile).encode(), replace=replace)
    except (OSError, ValueError) as e:
        why = (e.strerror if isinstance(e, OSError) else None) or str(e)
        raise ProfileError(f"{path}: cannot write the profile: {why}; give another file") from None
