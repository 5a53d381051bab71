"""A Ray cluster, joined or begun here, and the model that each of its nodes loads: the driver's, or none."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallthinker.cluster.node_store import fetch
from smallthinker.errors import RequestError, SmallThinkerError, one_line
from smallthinker.options import EngineOptions

if TYPE_CHECKING:
    from smallthinker.llm import LLM

LOCAL = "local"
_OBJECT_STORE_BYTES = 256 << 20  # of a cluster that is started here: rows and answers, which it spills to disk


@dataclass(frozen=True)
class NodeModel:
    """path: of the store, as every node sees it. identity: of its weights and words. node_dir: where a node keeps its
    own copy; None reads it where it lies. version: the driver's."""

    path: Path
    identity: str
    node_dir: str | None
    options: EngineOptions
    version: str

    def load(self) -> LLM:
        """On a node. Raises RequestError for another version, and what `fetch` and `LLM` do."""
        import smallthinker
        from smallthinker.llm import LLM

        if smallthinker.__version__ != self.version:
            raise RequestError(
                f"cluster: a node has smallthinker {smallthinker.__version__}, the driver {self.version}; install one"
            )
        return LLM(fetch(self.path, self.identity, self.node_dir), self.options)


def find_ray(part: str) -> Any:
    """Ray, with this part of it imported. Raises RequestError where it isn't installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray

        import_module(f"ray.{part}")
    except ImportError:
        raise RequestError("cluster: needs Ray: pip install 'smallthinker[ray]'") from None
    return ray


@contextmanager
def joined(ray: Any, address: str) -> Iterator[int]:
    """-> how many nodes compute. address: of the cluster, or LOCAL for one that begins here and ends with the block.
    What is printed within it goes to standard error. Raises RequestError."""
    how: dict[str, Any] = {"address": address}
    if address == LOCAL:
        how |= {"object_store_memory": _OBJECT_STORE_BYTES, "include_dashboard": False}
    with redirect_stdout(sys.stderr):  # to its very end: Ray's threads tell of nodes that end
        try:
            ray.init(**how, log_to_driver=False, logging_level="ERROR")
        except Exception as e:  # ConnectionError, RuntimeError, ValueError
            raise RequestError(f"cluster: {address}: {one_line(e, 300)}; `ray start --head` begins one") from None
        try:
            nodes: int = sum(node["Alive"] and node["Resources"].get("CPU", 0) >= 1 for node in ray.nodes())
            if not nodes:
                raise RequestError(f"cluster: {address}: no node with a processor; `ray start --address ...` adds one")
            for name in ("ray", "ray.data", "ray.serve"):  # which tell of each step; an end is told in its error
                logging.getLogger(name).setLevel(logging.ERROR)
            yield nodes
        finally:
            ray.shutdown()


def cause(error: Exception) -> str:
    """What a node's engine said, of what Ray makes of that."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, SmallThinkerError):
            return one_line(found, 400)
        found = getattr(found, "cause", None) or found.__cause__
    return one_line(str(error).strip().splitlines()[-1], 400)
