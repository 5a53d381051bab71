"""A checkpoint in shards and a hub that has it; nothing of the user's own hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import FakeHub
from pulling import REPO
from tiny_models import tiny_config

from smallthinker.expert_store.synthetic.synth import synth
from smallthinker.models.registry import to_config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in several shards; one of its ends of an answer is in generation_config.json alone."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "config.json").write_text(json.dumps(to_config(tiny_config())))
    synth(str(folder / "config.json"), folder / "checkpoint", "none", shard_bytes=60_000)
    (folder / "checkpoint" / "generation_config.json").write_text('{"eos_token_id": [297, 298]}')
    return folder / "checkpoint"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the user's: neither cache nor token."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="needs smallthinker[hub]")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub(checkpoint: Path) -> Iterator[FakeHub]:
    with FakeHub() as fake:
        files = fake.add(REPO, checkpoint)
        files["modeling_smallthinker.py"] = b"raise SystemExit('code from a repository ran')"
        files["pytorch_model.bin"] = 50_000 * b"\x80"
        files["README.md"] = b"a model"
        yield fake
