"""Prints what `.[test,dev]` has come to in this environment, as constraints: to be kept in .ci/requirements.lock once
the tests have passed with them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def closure(name: str, extras: frozenset[str], seen: set[tuple[str, str]], found: dict[str, str]) -> None:
    """Every distribution that it needs here, by name."""
    try:
        package: Any = distribution(name)
    except PackageNotFoundError:  # of an extra that this system doesn't have
        return
    if name != "smallthinker":
        found[name] = package.version.partition("+")[0]
    for extra in extras | {""}:
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for line in package.requires or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                closure(canonicalize_name(needed.name), frozenset(needed.extras), seen, found)


def main() -> None:
    found: dict[str, str] = {}
    closure("smallthinker", frozenset({"test", "dev"}), set(), found)
    for build in ("pip", "setuptools", "wheel"):
        found.pop(build, None)
    print("# the versions that CI installs, made by .ci/lock.py")
    for name in sorted(found):
        print(f"{name}=={found[name]}")


if __name__ == "__main__":
    main()
