"""What can't be pulled is one line, before any weights come."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hub_server import FakeHub
from pulling import REPO, connect

from smallthinker.errors import CheckpointError, ConfigError, DownloadError, SmallThinkerError, StoreWriteError
from smallthinker.hub.pull import Pull


@pytest.mark.parametrize(
    ("repo", "options", "error", "message"),
    [
        ("somebody/missing", {}, DownloadError, "no such model; if it is private, set HF_TOKEN"),
        ("a/b/c", {}, DownloadError, "expected OWNER/NAME, found 'a/b/c'"),
        (REPO, {"revision": "v9"}, DownloadError, "has no revision 'v9'; `revision` takes another"),
        ("somebody/bert", {}, ConfigError, "somebody/bert: not a model that this engine runs: .*BertModel"),
        ("somebody/broken", {}, ConfigError, "config.json: not valid JSON"),
        ("somebody/huge", {}, DownloadError, "config.json: expected at most 1048576 bytes, found"),
        ("somebody/gguf", {}, CheckpointError, "somebody/gguf: tiny-q4_0.gguf: byte 0: magic: .*is not a GGUF file"),
        ("somebody/code", {}, CheckpointError, "has neither safetensors nor GGUF weights; choose the repository"),
        ("somebody/escape", {}, CheckpointError, r"expected names of .safetensors files, found '\.\./x.safetensors'"),
        ("somebody/half", {}, CheckpointError, "names two.safetensors, which the repository doesn't have"),
        ("somebody/mute", {}, CheckpointError, "has no tokenizer.json"),
    ],
)
def test_what_is_no_use_is_refused_before_any_weights_come(
    hub: FakeHub, tmp_path: Path, repo: str, options: dict[str, str], error: type[SmallThinkerError], message: str
) -> None:
    files = hub.repos[REPO]
    config = {"config.json": files["config.json"]}
    both = config | {"tokenizer.json": files["tokenizer.json"]}
    index = {n: json.dumps({"weight_map": {"a": n}}).encode() for n in ("../x.safetensors", "two.safetensors")}
    hub.repos |= {
        "somebody/bert": {"config.json": b'{"architectures": ["BertModel"]}', "model.safetensors": bytes(30_000)},
        "somebody/broken": {"config.json": b"{"},
        "somebody/huge": {"config.json": bytes(2_000_000)},
        "somebody/gguf": both | {"tiny-q4_0.gguf": bytes(30_000)},
        "somebody/code": both | {"pytorch_model.bin": bytes(30_000), "part-00002-of-00002.gguf": bytes(30_000)},
        "somebody/escape": both | {"model.safetensors.index.json": index["../x.safetensors"]},
        "somebody/half": both | {"model.safetensors.index.json": index["two.safetensors"]},
        "somebody/mute": config | {"model.safetensors": bytes(30_000)},
    }
    with pytest.raises(error, match=message) as caught:
        Pull(connect(hub, repo, **options), tmp_path / "store")
    assert "\n" not in str(caught.value)
    assert not [name for name, _ in hub.fetched() if name.endswith(".safetensors")]
    assert list(tmp_path.iterdir()) == []


def test_a_gated_repository_wants_a_token_and_takes_it(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated = {REPO}
    with pytest.raises(DownloadError, match="gated: accept its terms on its page, then set HF_TOKEN"):
        Pull(connect(hub), tmp_path / "store")
    monkeypatch.setenv("HF_TOKEN", "hf_let_me_in")
    assert Pull(connect(hub), tmp_path / "store").run().is_dir()


def test_no_network_is_one_error_with_the_address(hub: FakeHub, tmp_path: Path) -> None:
    hub.__exit__(None, None, None)
    try:
        with pytest.raises(DownloadError, match=f"{REPO} at {hub.url}: no answer: .*; check the network") as caught:
            Pull(connect(hub), tmp_path / "store")
        assert "\n" not in str(caught.value)
    finally:
        hub.__enter__()


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull = Pull(connect(hub), tmp_path / "store")
    needed = pull.plan.needed_bytes
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=needed - 1))
    with pytest.raises(
        StoreWriteError, match=r"needs .* MiB .download and store., the disk has .* MiB free; make room"
    ):
        Pull(connect(hub), tmp_path / "store").run()
    assert not [name for name, _ in hub.fetched() if name.endswith(".safetensors")]
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_the_error_names_it(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smallthinker.hub.repository.find_spec", lambda _: None)
    with pytest.raises(DownloadError, match=r"pip install 'smallthinker\[hub\]'"):
        connect(hub)
