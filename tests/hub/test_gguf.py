"""Pulling GGUF: which file is taken, its header is enough for a plan, and the store is that of a conversion."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_models import HYBRID_ATTENTION, tiny_config

from smallthinker.errors import CheckpointError, ConfigError, DownloadError
from smallthinker.expert_store.convert import convert
from smallthinker.expert_store.synthetic.synth import synth
from smallthinker.llm import LLM
from smallthinker.models.registry import to_config

pytest.importorskip("huggingface_hub", reason="needs smallthinker[hub]")
pytest.importorskip("gguf", reason="needs smallthinker[gguf]")

from gguf_files import write_gguf
from hub_server import FakeHub

from smallthinker.hub.pull import Pull
from smallthinker.hub.repository import Hub

pytestmark = pytest.mark.filterwarnings("ignore:.*taken")
REPO = "somebody/tiny-GGUF"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    config = tiny_config(**HYBRID_ATTENTION, vocab_size=3000, bos_token_id=None, eos_token_id=[2998, 2999])
    (folder / "config.json").write_text(json.dumps(to_config(config)))
    return synth(str(folder / "config.json"), folder / "checkpoint", "none")


@pytest.fixture(scope="module")
def files(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several quantisations, one of them in parts."""
    folder = tmp_path_factory.mktemp("gguf")
    for kind in ("F16", "Q8_0", "Q4_0"):
        write_gguf(checkpoint, folder / f"tiny-{kind}.gguf", kind)
    write_gguf(checkpoint, folder / "tiny-BF16.gguf", "BF16", part_tensors=20)
    return folder


@pytest.fixture
def hub(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with FakeHub() as fake:
        names = {path.name: path.read_bytes() for path in files.iterdir()}
        # the parts are in a folder of their own, as large quantisations often are
        fake.repos[REPO] = {f"bf16/{n}" if "BF16" in n else n: content for n, content in names.items()}
        fake.repos[REPO] |= {"README.md": b"a model", "imatrix.dat": bytes(30_000), "run.py": b"raise SystemExit"}
        yield fake


def connect(fake: FakeHub, repo: str = REPO) -> Hub:
    return Hub(repo, endpoint=fake.url, pause=lambda _: None)


def store_files(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.iterdir()}


@pytest.mark.parametrize(
    ("quant", "wanted", "file"),
    [
        ("q4_0", None, "tiny-Q4_0.gguf"),
        ("q8_0", None, "tiny-Q8_0.gguf"),
        ("f16", None, "tiny-F16.gguf"),
        ("q4_0", "tiny-Q8_0.gguf", "tiny-Q8_0.gguf"),
        ("q8_0", "*-F16*", "tiny-F16.gguf"),
    ],
)
def test_the_file_is_the_one_asked_for_or_of_the_same_quantisation_and_only_that_is_kept(
    hub: FakeHub, files: Path, tmp_path: Path, quant: str, wanted: str | None, file: str
) -> None:
    pull = Pull(connect(hub), tmp_path / "store", quant, gguf=wanted)
    assert [each.name for each in pull.plan.files] == [file]
    assert len(pull.plan.gguf_models) == 4
    assert f"weights   {file}; --gguf chooses another: " in pull.plan.text()
    assert store_files(pull.run()) == store_files(convert(files / file, tmp_path / "direct", quant))
    assert {name for name, _ in hub.fetched()} == {file}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["direct", "store"]


def test_a_model_in_parts_is_fetched_whole_and_runs(hub: FakeHub, files: Path, tmp_path: Path) -> None:
    pull = Pull(connect(hub), tmp_path / "store", "q8_0", gguf="*BF16*")
    assert len(pull.plan.files) > 1 and all(file.name.startswith("bf16/") for file in pull.plan.files)
    store = pull.run()
    first = next(files.glob("tiny-BF16-00001-of-*"))
    assert store_files(store) == store_files(convert(first, tmp_path / "direct", "q8_0"))
    with LLM(store, memory="4GiB") as llm:
        assert llm.generate("x", max_tokens=2, ignore_eos=True).token_ids


def test_a_plan_reads_headers_alone_and_knows_the_stores_size(hub: FakeHub, files: Path, tmp_path: Path) -> None:
    plan = Pull(connect(hub), tmp_path / "store").plan
    assert list(tmp_path.iterdir()) == []
    direct = convert(files / "tiny-Q4_0.gguf", tmp_path / "direct", "q4_0")
    weights = sum((direct / f"{name}.safetensors").stat().st_size for name in ("dense", "experts"))
    assert 0 <= weights - plan.store_bytes < 100_000  # the headers
    assert plan.to_dict()["gguf_models"] == list(plan.gguf_models)


def test_a_dropped_connection_is_taken_up_where_it_ended(hub: FakeHub, files: Path, tmp_path: Path) -> None:
    pull = Pull(connect(hub), tmp_path / "store")
    hub.requests, hub.cut_after = [], [1000, 5000]
    store = pull.run()
    assert store_files(store) == store_files(convert(files / "tiny-Q4_0.gguf", tmp_path / "direct", "q4_0"))
    assert [span for _, span in hub.fetched() if span] == ["bytes=1000-", "bytes=6000-"]


def test_a_connection_that_drops_in_the_header_is_taken_up_too(hub: FakeHub, tmp_path: Path) -> None:
    hub.cut_after = [1000, 5000]
    assert Pull(connect(hub), tmp_path / "store").plan.files[0].name == "tiny-Q4_0.gguf"
    assert [span for _, span in hub.fetched() if span] == ["bytes=1000-", "bytes=6000-"]


def test_a_wrong_checksum_is_one_error_and_the_bytes_are_deleted(hub: FakeHub, tmp_path: Path) -> None:
    pull = Pull(connect(hub), tmp_path / "store")
    hub.damaged = {"tiny-Q4_0.gguf"}
    with pytest.raises(DownloadError, match=r"tiny-Q4_0\.gguf: expected checksum .*again"):
        pull.run()
    assert not (tmp_path / "store").exists() and not list((tmp_path / "store.download").glob("*.gguf*"))


def test_safetensors_are_preferred_unless_a_gguf_file_is_asked_for(
    hub: FakeHub, checkpoint: Path, tmp_path: Path
) -> None:
    hub.repos[REPO] |= {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    plan = Pull(connect(hub), tmp_path / "store").plan
    assert not any(file.name.endswith(".gguf") for file in plan.files) and plan.gguf_models == ()
    assert "weights" not in plan.text()
    plan = Pull(connect(hub), tmp_path / "store", gguf="*Q8_0*").plan
    assert [file.name for file in plan.files] == ["tiny-Q8_0.gguf"]


@pytest.mark.parametrize(
    ("wanted", "match"),
    [
        (
            None,
            "expected one GGUF model of q4_0, found 0; --gguf takes one of bf16/tiny-BF16-.*, tiny-F16",
        ),
        ("*F16*", r"expected one GGUF model for '\*F16\*', found 2; --gguf takes one of"),
        ("none.gguf", "for 'none.gguf', found 0; --gguf takes"),
        ("README.md", "for 'README.md', found 0; --gguf takes"),
    ],
)
def test_an_unclear_choice_is_refused_and_says_what_there_is(
    hub: FakeHub, tmp_path: Path, wanted: str | None, match: str
) -> None:
    del hub.repos[REPO]["tiny-Q4_0.gguf"]
    with pytest.raises(CheckpointError, match=match) as caught:
        Pull(connect(hub), tmp_path / "store", "q4_0", gguf=wanted)
    assert "\n" not in str(caught.value) and hub.fetched() == [] and list(tmp_path.iterdir()) == []


def test_a_part_that_the_repository_lacks_makes_the_model_none(hub: FakeHub, tmp_path: Path) -> None:
    last = max(name for name in hub.repos[REPO] if name.startswith("bf16/"))
    del hub.repos[REPO][last]
    assert len(Pull(connect(hub), tmp_path / "store").plan.gguf_models) == 3


def test_another_architecture_is_refused_before_its_weights_come(
    hub: FakeHub, checkpoint: Path, tmp_path: Path
) -> None:
    path = write_gguf(checkpoint, tmp_path / "bloom.gguf", architecture="bloom")
    hub.repos["somebody/bloom"] = {"bloom.gguf": path.read_bytes()}
    with pytest.raises(ConfigError, match=r"somebody/bloom: bloom\.gguf: general\.architecture: expected"):
        Pull(connect(hub, "somebody/bloom"), tmp_path / "store")


def test_offline_a_gguf_file_in_the_cache_is_used(
    hub: FakeHub, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants, hf_hub_download

    hf_hub_download(REPO, "tiny-Q4_0.gguf", endpoint=hub.url)
    hub.requests = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    pull = Pull(connect(hub), tmp_path / "store")
    assert pull.plan.present_bytes == pull.plan.download_bytes
    assert store_files(pull.run()) == store_files(convert(files / "tiny-Q4_0.gguf", tmp_path / "direct", "q4_0"))
    assert hub.requests == []


def smallthinker(hub: FakeHub, folder: Path, *args: str) -> Any:
    command = [sys.executable, "-m", "smallthinker", *args]
    env = {"HF_HOME": str(folder / "home"), "HF_ENDPOINT": hub.url, "PATH": ""}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=folder)


def test_the_commands_say_what_they_took_and_refuse_in_one_line(hub: FakeHub, tmp_path: Path) -> None:
    result = smallthinker(hub, tmp_path, "pull", REPO, "--gguf", "*Q8_0*", "--keep-download")
    assert result.returncode == 0, result.stderr
    said = ["model", "weights", "download", "store", "memory", "disk", "note:"]
    assert [line.split()[0] for line in result.stderr.splitlines()] == said
    kept = tmp_path / "tiny-GGUF-q4_0.download" / "tiny-Q8_0.gguf"
    again = smallthinker(hub, tmp_path, "convert", str(kept), "again", "--quant", "q4_0", "--json")
    assert json.loads(again.stdout)["store"] == "again", again.stderr
    assert store_files(tmp_path / "again") == store_files(tmp_path / "tiny-GGUF-q4_0")
    kept.write_bytes(kept.read_bytes()[:-50])
    cut = smallthinker(hub, tmp_path, "convert", str(kept), "cut")
    assert cut.returncode == 2 and cut.stdout == "" and not (tmp_path / "cut").exists()
    (line,) = cut.stderr.splitlines()
    assert line.startswith(f"smallthinker convert: error: {kept}: byte ") and "copy or download it again" in line
