from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Clocks have no say in whether a test passes: a machine may be busy with something else.
settings.register_profile("no clocks", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clocks")

sys.path.insert(0, str(Path(__file__).parent))  # tests/models.py, for tests in every room


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", metavar="DIR", help="where the chat page's tests write pictures for the docs")


@pytest.fixture(scope="session")
def hybrid_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A q4_0 store of a tiny model of the 21B's kind."""
    from models import HYBRID_ATTENTION, make_store, tiny_config

    return make_store(tiny_config(**HYBRID_ATTENTION), tmp_path_factory.mktemp("hybrid"), "q4_0")[0]
