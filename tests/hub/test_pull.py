"""Pulling from a hub on this machine: plans, checksums, resuming, the cache, and what a user is told."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_config

from smallthinker.errors import CheckpointError, ConfigError, DownloadError, SmallThinkerError, StoreWriteError
from smallthinker.expert_store.convert import convert
from smallthinker.expert_store.synthetic.synth import synth
from smallthinker.llm import LLM
from smallthinker.models.registry import to_config

pytest.importorskip("huggingface_hub", reason="needs smallthinker[hub]")

from hub_server import FakeHub

from smallthinker.hub.pull import Pull
from smallthinker.hub.repository import MOST_TRIES, Hub

REPO = "somebody/tiny"


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
    from huggingface_hub import constants

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


def connect(fake: FakeHub, repo: str = REPO, **options: Any) -> Hub:
    return Hub(repo, endpoint=fake.url, pause=lambda _: None, **options)


def store_files(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.iterdir()}


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


def test_a_dropped_connection_is_taken_up_where_it_ended(hub: FakeHub, checkpoint: Path, tmp_path: Path) -> None:
    hub.cut_after = [1000, 0, 5000]
    reports: list[tuple[int, int]] = []
    pull = Pull(connect(hub), tmp_path / "store")
    store = pull.run(downloading=lambda done, total, _: reports.append((done, total)))
    assert store_files(store) == store_files(convert(checkpoint, tmp_path / "direct", "q4_0"))
    assert [span for _, span in hub.fetched() if span] == ["bytes=1000-", "bytes=1000-", "bytes=6000-"]
    assert reports[-1] == (pull.plan.download_bytes, pull.plan.download_bytes)
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)


def test_a_redirected_file_is_resumed_as_well(hub: FakeHub, checkpoint: Path, tmp_path: Path) -> None:
    hub.redirects, hub.cut_after = True, [1000]
    store = Pull(connect(hub), tmp_path / "store").run()
    assert store_files(store) == store_files(convert(checkpoint, tmp_path / "direct", "q4_0"))
    assert [span for _, path, span, _ in hub.requests if path.startswith("/cdn/") and span] == ["bytes=1000-"]


def test_a_server_without_ranges_is_read_again_from_the_start(hub: FakeHub, checkpoint: Path, tmp_path: Path) -> None:
    hub.cut_after, hub.knows_ranges = [1000], False
    store = Pull(connect(hub), tmp_path / "store").run()
    assert store_files(store) == store_files(convert(checkpoint, tmp_path / "direct", "q4_0"))


def test_a_connection_that_never_brings_anything_ends_in_one_error_and_what_came_stays(
    hub: FakeHub, checkpoint: Path, tmp_path: Path
) -> None:
    hub.cut_after = [1000] + 100 * [0]
    with pytest.raises(DownloadError, match="run the command again, it goes on from there"):
        Pull(connect(hub), tmp_path / "store").run()
    spans = [span for _, span in hub.fetched()].count("bytes=1000-")
    assert spans == MOST_TRIES - 1
    assert not (tmp_path / "store").exists()
    hub.cut_after, hub.requests = [], []
    pull = Pull(connect(hub), tmp_path / "store")
    assert pull.plan.present_bytes > 1000
    assert store_files(pull.run()) == store_files(convert(checkpoint, tmp_path / "direct", "q4_0"))
    assert [span for _, span in hub.fetched() if span] == ["bytes=1000-"]


def test_a_killed_pull_leaves_no_store_and_the_same_command_goes_on(
    hub: FakeHub, checkpoint: Path, tmp_path: Path
) -> None:
    hub.stall_after = 3000
    process = subprocess.Popen(command(REPO, "store"), env=environment(hub, tmp_path), cwd=tmp_path)
    assert hub.stalled.wait(60)
    part = wait_for_part(tmp_path / "store.download", process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "store").exists() and part.stat().st_size == 3000
    hub.stall_after, hub.requests = None, []
    result = smallthinker(hub, tmp_path, REPO, "store", "--json")
    assert result.returncode == 0, result.stderr
    assert [span for _, span in hub.fetched() if span] == ["bytes=3000-"]
    assert json.loads(result.stdout)["present_bytes"] > 3000
    assert store_files(tmp_path / "store") == store_files(convert(checkpoint, tmp_path / "direct", "q4_0"))
    assert not (tmp_path / "store.download").exists()


def wait_for_part(folder: Path, process: subprocess.Popen[bytes]) -> Path:
    """Until the bytes that the server has sent are in the file."""
    while process.poll() is None:
        for path in folder.glob("*.part"):
            if path.stat().st_size == 3000:
                return path
    raise AssertionError("the pull ended")


def test_a_wrong_checksum_is_one_error_and_the_bytes_are_deleted(hub: FakeHub, tmp_path: Path) -> None:
    pull = Pull(connect(hub), tmp_path / "store")
    shard = next(file for file in pull.plan.files if file.size > 30_000)
    right = hub.repos[REPO][shard.name]
    hub.damaged = {shard.name}
    found = hashlib.sha256(right[:-1] + bytes([right[-1] ^ 1])).hexdigest()
    with pytest.raises(DownloadError, match=f"{shard.name}: expected checksum {shard.digest}, found {found}; .*again"):
        pull.run()
    assert not (tmp_path / "store").exists()
    assert not list((tmp_path / "store.download").glob(f"{shard.name}*"))
    hub.damaged = set()
    assert pull.run().is_dir()


def test_a_small_file_with_a_wrong_git_checksum_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    hub.damaged = {"config.json"}
    with pytest.raises(DownloadError, match=r"config\.json: expected checksum [0-9a-f]{40}, found"):
        Pull(connect(hub), tmp_path / "store")


def test_a_download_that_was_damaged_on_disk_is_fetched_again(hub: FakeHub, checkpoint: Path, tmp_path: Path) -> None:
    pull = Pull(connect(hub), tmp_path / "store")
    pull.run(keep_download=True)
    shard = max(pull.download.iterdir(), key=lambda path: path.stat().st_size)
    shard.write_bytes(bytes(shard.stat().st_size))
    hub.requests = []
    store = Pull(connect(hub), tmp_path / "store", force=True).run()
    assert [name for name, _ in hub.fetched() if name.endswith(".safetensors")] == [shard.name]
    assert store_files(store) == store_files(convert(checkpoint, tmp_path / "direct", "q4_0"))


def test_the_folder_of_the_download_gives_the_store_nothing_else_and_loses_nothing_else(
    hub: FakeHub, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "store.download"
    folder.mkdir()
    (folder / ".smallthinker-pull").touch()  # from an earlier try
    (folder / "chat_template.jinja").write_text("another model's")
    (folder / "model.safetensors").write_bytes(b"another model's")
    (folder / "notes.txt").write_text("the user's")
    store = Pull(connect(hub), tmp_path / "store").run()
    assert store_files(store) == store_files(convert(checkpoint, tmp_path / "direct", "q4_0"))
    assert (folder / "notes.txt").exists()


@pytest.mark.parametrize("name", ["config.json", "chat_template.jinja", "model.safetensors.index.json"])
def test_a_folder_with_files_of_the_users_is_left_as_it_is(hub: FakeHub, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "store.download"
    folder.mkdir()
    (folder / name).write_text("mine")
    with pytest.raises(DownloadError, match=rf"{name}: .* move it, or give --force"):
        Pull(connect(hub), tmp_path / "store").run()
    assert (folder / name).read_text() == "mine" and not (tmp_path / "store").exists()
    store = Pull(connect(hub), tmp_path / "store", force=True).run()
    assert store.is_dir() and not folder.exists()


def test_a_download_that_was_kept_is_used_and_stays(hub: FakeHub, tmp_path: Path) -> None:
    Pull(connect(hub), tmp_path / "store").run(keep_download=True)
    kept = store_files(tmp_path / "store.download")
    shutil.rmtree(tmp_path / "store")
    hub.requests = []
    Pull(connect(hub), tmp_path / "store").run()
    assert store_files(tmp_path / "store.download") == kept
    assert not [name for name, _ in hub.fetched() if name.endswith(".safetensors")]


@pytest.mark.parametrize("out", [".", "mounted", "x" * 250, "x" * 300, "a\0b"])
def test_a_place_where_no_store_can_be_is_refused_before_anything_is_fetched(
    hub: FakeHub, tmp_path: Path, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreWriteError, match=r"which can't be replaced|name|null"):
        Pull(connect(hub), Path("/proc" if out == "mounted" else out))
    assert list(tmp_path.iterdir()) == []


def test_with_keep_download_the_checkpoint_stays_and_converts(hub: FakeHub, tmp_path: Path) -> None:
    pull = Pull(connect(hub), tmp_path / "store")
    pull.run(keep_download=True)
    assert convert(pull.download, tmp_path / "again", "q8_0").is_dir()


def test_offline_the_cache_of_huggingface_hub_is_used_and_checked(
    hub: FakeHub, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants, hf_hub_download

    for path in checkpoint.iterdir():
        hf_hub_download(REPO, path.name, endpoint=hub.url)
    assert Pull(connect(hub), tmp_path / "online").plan.present_bytes > 100_000  # nor is it fetched twice when online
    hub.requests = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    pull = Pull(connect(hub), tmp_path / "store")
    assert pull.plan.present_bytes == pull.plan.download_bytes
    assert store_files(pull.run()) == store_files(convert(checkpoint, tmp_path / "direct", "q4_0"))
    assert hub.requests == []
    shard = max(pull.plan.files, key=lambda file: file.size)
    (blob,) = (tmp_path / "cache").glob(f"*/blobs/{shard.digest}")  # converting didn't take it away
    blob.write_bytes(bytes(shard.size))
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set, and the cache has no whole copy"):
        Pull(connect(hub), tmp_path / "other").run()


def test_offline_without_a_cache_is_one_error(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set, and revision 'main' is not in the cache; unset it"):
        Pull(connect(hub), tmp_path / "store")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("repo", "options", "error", "message"),
    [
        ("somebody/missing", {}, DownloadError, "no such model; if it is private, set HF_TOKEN"),
        ("a/b/c", {}, DownloadError, "expected OWNER/NAME, found 'a/b/c'"),
        (REPO, {"revision": "v9"}, DownloadError, "has no revision 'v9'; --revision takes another"),
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


def test_a_store_that_is_there_is_refused_at_once_and_replaced_by_force_only_at_the_end(
    hub: FakeHub, tmp_path: Path
) -> None:
    store = Pull(connect(hub), tmp_path / "store").run()
    before = store_files(store)
    hub.requests = []
    with pytest.raises(StoreWriteError, match=r"exists already; --force .force=True. replaces it"):
        Pull(connect(hub), store)
    assert hub.fetched() == []
    hub.damaged = {max(hub.repos[REPO], key=lambda name: len(hub.repos[REPO][name]) * name.endswith("tensors"))}
    with pytest.raises(DownloadError):
        Pull(connect(hub), store, "q8_0", force=True).run()
    assert store_files(store) == before


def test_two_pulls_of_one_store_do_not_meet(hub: FakeHub, tmp_path: Path) -> None:
    hub.stall_after = 3000
    process = subprocess.Popen(command(REPO, "store"), env=environment(hub, tmp_path), cwd=tmp_path)
    try:
        assert hub.stalled.wait(60)
        with pytest.raises(StoreWriteError, match="another process is downloading into it"):
            Pull(connect(hub), tmp_path / "store").run()
    finally:
        process.kill()
        process.wait()


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "smallthinker", "pull", *args]


def environment(hub: FakeHub, folder: Path) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return clean | {"HF_HOME": str(folder / "home"), "HF_ENDPOINT": hub.url}


def smallthinker(hub: FakeHub, folder: Path, *args: str, **more: str) -> subprocess.CompletedProcess[str]:
    env = environment(hub, folder) | more
    return subprocess.run(command(*args), capture_output=True, text=True, check=False, env=env, cwd=folder)


def test_the_command_prints_its_plan_and_the_store(hub: FakeHub, tmp_path: Path) -> None:
    dry = smallthinker(hub, tmp_path, REPO, "--dry-run", "--json")
    assert dry.returncode == 0, dry.stderr
    plan = json.loads(dry.stdout)
    assert plan["store"] == "tiny-q4_0" and plan["commit"] == hub.commit and plan["download_bytes"] > 100_000
    assert not (tmp_path / "tiny-q4_0.download").exists()
    result = smallthinker(hub, tmp_path, REPO, "--quant", "q8_0", "--compress", "--keep-download")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0].startswith("tiny-q8_0: q8_0, ")
    assert "tiny-q8_0.download" in result.stdout.splitlines()[1]
    assert [line.split()[0] for line in result.stderr.splitlines()] == ["model", "download", "store", "disk"]  # no bar
    offline = smallthinker(hub, tmp_path, REPO, "other", HF_HUB_OFFLINE="1")
    assert offline.returncode == 2 and offline.stdout == ""
    (line,) = offline.stderr.splitlines()
    assert line.startswith("smallthinker pull: error: somebody/tiny: HF_HUB_OFFLINE is set")


def test_without_the_extra_the_error_names_it(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smallthinker.hub.repository.find_spec", lambda _: None)
    with pytest.raises(DownloadError, match=r"pip install 'smallthinker\[hub\]'"):
        connect(hub)
