"""Pulling from a hub on this machine: the plan, the store, and what the command prints."""

from __future__ import annotations

import json
from pathlib import Path

from hub_server import FakeHub
from pulling import REPO, connect, smallthinker, store_files

from smallthinker.expert_store.convert import convert
from smallthinker.hub.pull import Pull
from smallthinker.llm import LLM


def test_a_pulled_store_is_that_of_the_same_checkpoint_converted_and_only_data_was_fetched(
    hub: FakeHub, checkpoint: Path, tmp_path: Path
) -> None:
    store = Pull(connect(hub), tmp_path / "store", "q8_0").run()
    assert store_files(store) == store_files(convert(checkpoint, tmp_path / "direct", "q8_0"))
    names = [name for name, _ in hub.fetched()]
    assert sum(name.endswith(".safetensors") for name in names) > 1
    assert all(name.endswith((".safetensors", ".json")) for name in names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["direct", "store"]
    with LLM(store, memory="4GiB") as llm:
        assert llm.generate("x", max_tokens=2, ignore_eos=True).token_ids
        assert llm.config.tokens.eos == (298, 299, 297)


def test_the_plan_writes_nothing_and_says_what_would_be(hub: FakeHub, checkpoint: Path, tmp_path: Path) -> None:
    plan = Pull(connect(hub), tmp_path / "store").plan
    assert plan.download_bytes == sum(file.size for file in plan.files) and plan.present_bytes == 0
    assert {file.name for file in plan.files} == {path.name for path in checkpoint.iterdir()}
    assert list(tmp_path.iterdir()) == []
    assert not any(".safetensors" in name and "index" not in name for name, _ in hub.fetched())
    direct = convert(checkpoint, tmp_path / "direct", "q4_0")
    weights = sum((direct / f"{name}.safetensors").stat().st_size for name in ("dense", "experts"))
    assert 0 <= weights - plan.store_bytes < 100_000  # the headers


def test_the_command_prints_its_plan_and_the_store(hub: FakeHub, tmp_path: Path) -> None:
    dry = smallthinker(hub, tmp_path, REPO, "--dry-run", "--json")
    assert dry.returncode == 0, dry.stderr
    plan = json.loads(dry.stdout)
    assert (
        plan["store"] == str(tmp_path / "tiny-q4")
        and plan["name"] == "tiny-q4"
        and plan["commit"] == hub.commit
        and plan["download_bytes"] > 100_000
    )
    assert not (tmp_path / "tiny-q4.download").exists()
    result = smallthinker(hub, tmp_path, REPO, "--quant", "q8_0", "--compress", "--keep-download")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0].startswith(f"{tmp_path}/tiny-q8_0: q8_0, ")
    assert "tiny-q8_0.download" in result.stdout.splitlines()[1]
    assert result.stdout.splitlines()[2].startswith("smallthinker run tiny-q8_0 --memory ")
    assert [line.split()[0] for line in result.stderr.splitlines()] == [
        "model",
        "download",
        "store",
        "memory",
        "disk",
    ]  # no bar
    offline = smallthinker(hub, tmp_path, REPO, "other", HF_HUB_OFFLINE="1")
    assert offline.returncode == 2 and offline.stdout == ""
    (line,) = offline.stderr.splitlines()
    assert line.startswith("smallthinker pull: error: somebody/tiny: HF_HUB_OFFLINE is set")
