from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from shimmed import build_shim, run_behind
from tiny_model import TINY

from smallthinker.expert_store.store import Store
from smallthinker.expert_store.synthetic.synth import synth


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_text(json.dumps(TINY))
    return path


@pytest.fixture
def tiny_store(tiny_config: Path, tmp_path: Path) -> Path:
    return synth(str(tiny_config), tmp_path / "store", "q4_0")


@pytest.fixture
def opened(tiny_store: Path) -> Store:
    return Store.open(tiny_store)


@pytest.fixture(scope="session")
def records_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 records of three blocks each. Tests that change a file make a store of their own."""
    folder = tmp_path_factory.mktemp("records")
    (folder / "config.json").write_text(json.dumps(TINY | {"moe_num_primary_experts": 24}))
    return synth(str(folder / "config.json"), folder / "store", "q4_0")


@pytest.fixture(scope="module")
def store(records_store: Path) -> Store:
    return Store.open(records_store)


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def behind_shim(shim: Path, records_store: Path) -> Callable[..., None]:
    """Run a script whose reads go through shim.c; what it asserts must hold."""

    def run(script: str, kind: str = "buffered", **environment: object) -> None:
        run_behind(shim, script, kind, records_store, environment)

    return run
