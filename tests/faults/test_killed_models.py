"""`pull` and `rm` are killed at any moment: what comes again goes on, what is half removed can still be removed, and
other models stay as they are."""

from __future__ import annotations

import json
import random
from itertools import count
from pathlib import Path

import pytest
from ended_commands import KILLED, Ended, everything, run
from hub_server import FakeHub
from tiny_models import tiny_config

from smallthinker.errors import ModelNotFoundError
from smallthinker.expert_store.synthetic.synth import synth
from smallthinker.library import Library
from smallthinker.library.removal import plan_removal, remove
from smallthinker.models.registry import to_config

REPO = "somebody/tiny"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pulled")
    (folder / "config.json").write_text(json.dumps(to_config(tiny_config())))
    return synth(str(folder / "config.json"), folder / "checkpoint", "none", shard_bytes=60_000)


@pytest.mark.parametrize("moments", [2, pytest.param(25, marks=pytest.mark.slow)])
def test_a_pull_that_is_killed_goes_on_and_leaves_no_half_store(moments: int, checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="needs smallthinker[hub]")
    rng, killed = random.Random(moments), 0
    with FakeHub() as hub:
        hub.add(REPO, checkpoint)

        def pull(folder: Path, killed_after_sec: float = 0) -> Ended:
            folder.mkdir(exist_ok=True)
            env = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url, "SMALLTHINKER_MODELS": str(folder)}
            ended = run(f"pull {REPO}", folder, env=env, killed_after_sec=killed_after_sec)
            assert ended.code in (0, KILLED), ended
            return ended

        whole = pull(tmp_path / "whole")
        assert whole.code == 0
        seconds = whole.seconds
        (store,) = (path.parent for path in (tmp_path / "whole").rglob("experts.safetensors"))
        for moment in count():
            folder = tmp_path / str(moment)
            for tries in range(3):  # the second is killed while it goes on
                ended = pull(folder, max(rng.uniform(0, seconds), 1e-3) if tries < 2 else 0)
                killed += ended.code == KILLED
                if (folder / store.name).exists():
                    seconds = min(seconds, ended.seconds or seconds)
                    break
            assert _store(folder / store.name) == _store(store)
            if killed and moment + 1 >= moments:
                break


def _store(folder: Path) -> dict[str, bytes | None]:
    """But for what has times in it or was learned of the machine."""
    varies = ("disk-profile.json", "hot-experts.safetensors", "manifest.json")
    return {name: content for name, content in everything(folder).items() if name not in varies}


class Killed(BaseException):
    """As if the process were gone."""


@pytest.mark.parametrize("kind", ["store", "checkpoint", "parts", "download"])
def test_a_removal_that_is_killed_leaves_what_can_be_removed_as_long_as_weights_are_there(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "store": ("config.json", "dense.safetensors", "experts.safetensors", "manifest.json", "tokenizer.json"),
        "checkpoint": ("config.json", "a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors", "tokenizer.json"),
        "parts": ("M-00001-of-00003.gguf", "M-00002-of-00003.gguf", "M-00003-of-00003.gguf"),
        "download": (".smallthinker-pull", "config.json", "model.safetensors", "tokenizer.json"),
    }[kind]
    large = [name for name in files if name.endswith((".safetensors", ".gguf"))]
    unlink = Path.unlink
    for survivors in range(len(files)):
        library = Library(tmp_path / f"{kind}-{survivors}")
        folder = library.folder if kind == "parts" else library.folder / ("M.download" if kind == "download" else "M")
        other = library.folder / "other"
        for place, names in ((folder, files), (other, ("config.json", "dense.safetensors", "experts.safetensors"))):
            place.mkdir(parents=True, exist_ok=True)
            for name in names:
                (place / name).write_bytes(b"x" * (1000 if name in large else 10))
        kept, left = everything(other), len(files) - survivors

        def dying(path: Path, missing_ok: bool = False) -> None:
            nonlocal left
            if not left:
                raise Killed
            left -= 1
            unlink(path, missing_ok)

        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(Path, "unlink", dying)
            remove(library, plan_removal(library, library.find("M")))
            raise Killed  # all of it is gone
        try:
            remove(library, plan_removal(library, library.find("M")))
        except ModelNotFoundError:
            assert not [name for name in large if (folder / name).exists()], survivors
        assert not [name for name in large if (folder / name).exists()]
        assert everything(other) == kept
