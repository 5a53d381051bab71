from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Clocks have no say in whether a test passes: a machine may be busy with something else. Each run draws other examples,
# so twenty are enough for one; `--hypothesis-profile thorough` draws more at once.
for name, examples in (("thorough", 300), ("usual", 20)):
    settings.register_profile(name, deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=examples)
settings.load_profile("usual")

# What is compiled once needn't be by each of the hundreds of processes that tests start, whatever a machine's setting.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A shell's background jobs ignore Ctrl-C, and so does what they start: tests that send it would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# torch's threads spin while they wait for each other: beside a load on all cores, seconds become half an hour.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

sys.path.insert(0, str(Path(__file__).parent))  # tests/tiny_models.py, for tests in every room


# What thousands of collected tests keep for the whole run isn't looked through again by each collection of garbage,
# which some tests ask for.
gc.disable()


def pytest_collection_finish() -> None:
    gc.enable()
    gc.set_threshold(20_000, 20, 20)  # torch and transformers make much that lives as long as the run
    gc.freeze()


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: many tests wait for a process, a browser or a disk."""
    return (os.cpu_count() or 1) + 1


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", metavar="DIR", help="where the chat page's tests write pictures for the docs")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from browser import chromium

    with chromium() as running:
        yield running


@pytest.fixture(scope="session")
def hybrid_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A q4_0 store of a tiny model of the 21B's kind."""
    from tiny_models import HYBRID_ATTENTION, make_store, tiny_config

    return make_store(tiny_config(**HYBRID_ATTENTION), tmp_path_factory.mktemp("hybrid"), "q4_0")[0]


@pytest.fixture
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script in a process of its own: for kills, limits and peak memory."""

    def run(script: str, *args: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script, *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run
