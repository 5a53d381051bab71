"""Commands that write are killed at any moment: what was there stays, or the new is there whole, and the same command
then gives what it would have given."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from ended_commands import KILLED, everything, run
from tiny_models import HYBRID_ATTENTION, make_store, random_reference, tiny_config, write_checkpoint

from smallthinker.expert_store.store import Store

CHAT = "hello\n/save talk.json\n/bye\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, a store of it, one of another model, and a text."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "made").mkdir()
    make_store(tiny_config(**HYBRID_ATTENTION), folder / "made", "q4_0")
    shutil.move(folder / "made" / "checkpoint", folder / "hf")
    store = next(path for path in (folder / "made").iterdir() if (path / "dense.safetensors").exists())
    shutil.move(store, folder / "store")
    (folder / "made").rmdir()
    other = write_checkpoint(random_reference(tiny_config(), seed=5), folder / "other")
    assert other.is_dir()
    (folder / "text").write_text("a text " * 60)
    return folder


def _store(path: Path) -> None:
    with Store.open(path) as store:
        store.check_small_files()
        store.verify()


def _json(path: Path) -> None:
    json.loads(path.read_text())


def _nothing(path: Path) -> None:
    """That it can be used is shown by the command that is given again."""


# what is done before, the command, what it makes, and what shows that this is whole
CASES: dict[str, tuple[str, str, str, Callable[[Path], None]]] = {
    "convert": ("", "convert hf out --quant q8_0", "out", _store),
    "convert over another": ("convert other out --quant q8_0", "convert hf out --quant q8_0 --force", "out", _store),
    "compress": ("", "convert hf out --quant f16 --compress", "out", _store),
    "synth": ("", "synth hf/config.json out --quant q4_0", "out", _store),
    "trace": ("", "trace store --text text -o out --tokens 60 --force", "out", _nothing),
    "calibrate": ("", "calibrate store --text text --force", "store/predictor.safetensors", _nothing),
    "save": ("", "chat -m store --max-tokens 1 --temperature 0", "talk.json", _json),
    "alias": ("alias ./store one", "alias ./store two", "models", _nothing),
}


@pytest.mark.parametrize(
    ("name", "moments"),
    [
        *((name, 1) for name in ("convert over another", "compress", "synth", "calibrate", "save", "alias")),
        *(pytest.param(name, 25, marks=pytest.mark.slow) for name in CASES),
    ],
)
def test_a_command_that_is_killed_leaves_the_old_or_the_new(
    name: str, moments: int, place: Path, tmp_path: Path
) -> None:
    before, command, made, check = CASES[name]
    env = {"SMALLTHINKER_MODELS": "models", "XDG_CACHE_HOME": "cache"}

    def fresh(folder: Path) -> Path:
        shutil.copytree(place, folder)
        env.update(SMALLTHINKER_MODELS=str(folder / "models"), XDG_CACHE_HOME=str(folder / "cache"))
        if before:
            assert run(before, folder, env=env).code == 0
        return folder

    whole = fresh(tmp_path / "whole")
    done = run(command, whole, stdin=CHAT, env=env)
    assert done.code == 0, done
    rng, killed = random.Random(name), 0
    for moment in range(moments):
        folder = fresh(tmp_path / str(moment))
        old = everything(folder)
        ended = run(command, folder, stdin=CHAT, env=env, killed_after_sec=max(rng.uniform(0, done.seconds), 1e-4))
        assert ended.code in (0, KILLED), ended
        killed += ended.code == KILLED
        if (folder / made).exists():
            new, known = everything(folder), {key: value for key, value in old.items() if key.split("/")[0] == made}
            if any(new.get(key) != value for key, value in known.items()) or not known:
                check(folder / made)
        _nothing_else_is_lost(old, everything(folder), made)
        if name == "save":
            (folder / made).unlink(missing_ok=True)
        again = run(command if "--force" in command or not (folder / "out").exists() else f"{command} --force", folder,
                    stdin=CHAT, env=env)  # fmt: skip
        assert again.code == 0, (ended, again)
        _same(everything(folder), everything(whole), name)
        shutil.rmtree(folder)
    assert killed or moments == 1


def _nothing_else_is_lost(old: dict[str, bytes | None], new: dict[str, bytes | None], made: str) -> None:
    for name, content in old.items():
        if not name.startswith(made):
            assert new.get(name) == content, name


def _same(found: dict[str, bytes | None], expected: dict[str, bytes | None], name: str) -> None:
    """But for what has times in it or was learned of the machine."""
    assert {key for key in found if not _varies(key)} == {key for key in expected if not _varies(key)}, name
    for key, content in expected.items():
        if not _varies(key):
            assert found[key] == content, key


def _varies(key: str) -> bool:
    return key.startswith(("models", "cache")) or key.endswith(("disk-profile.json", "hot-experts.safetensors"))
