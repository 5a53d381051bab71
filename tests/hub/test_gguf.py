"""Pulling GGUF: which file is taken, its header is enough for a plan, and it runs where it was put, as it was."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked_command
import pytest
from tiny_models import HYBRID_ATTENTION, tiny_config

from smallthinker import host
from smallthinker.engine import Engine
from smallthinker.errors import CheckpointError, ConfigError, DownloadError, StoreWriteError
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


@pytest.mark.parametrize(
    ("quant", "wanted", "file"),
    [
        ("q4_0", None, "tiny-Q4_0.gguf"),
        ("q8_0", None, "tiny-Q8_0.gguf"),
        ("f16", None, "tiny-F16.gguf"),
        (None, "tiny-Q8_0.gguf", "tiny-Q8_0.gguf"),
        (None, "*-F16*", "tiny-F16.gguf"),
    ],
)
def test_the_file_is_the_one_asked_for_or_of_the_same_quantisation_and_nothing_is_made_of_it(
    hub: FakeHub, files: Path, tmp_path: Path, quant: str | None, wanted: str | None, file: str
) -> None:
    pull = Pull(connect(hub), tmp_path / "models", quant, gguf=wanted)
    assert [each.name for each in pull.plan.files] == [file]
    assert len(pull.plan.gguf_models) == 4
    assert f"weights   {file}; --gguf chooses another: " in pull.plan.text()
    assert pull.run() == pull.plan.store == tmp_path / "models" / file
    assert pull.plan.store.read_bytes() == (files / file).read_bytes()
    assert {name for name, _ in hub.fetched()} == {file}
    assert list(tmp_path.rglob("*")) == [tmp_path / "models", tmp_path / "models" / file]


def test_a_model_in_parts_is_fetched_whole_and_runs(hub: FakeHub, files: Path, tmp_path: Path) -> None:
    pull = Pull(connect(hub), tmp_path / "models", gguf="*BF16*")
    assert len(pull.plan.files) > 1 and all(file.name.startswith("bf16/") for file in pull.plan.files)
    first = pull.run()
    assert first.name == next(files.glob("tiny-BF16-00001-of-*")).name
    assert {path.name: path.read_bytes() for path in first.parent.iterdir()} == {
        path.name: path.read_bytes() for path in files.glob("tiny-BF16-*")
    }
    with LLM(first, memory="4GiB") as llm:
        assert llm.generate("x", max_tokens=2, ignore_eos=True).token_ids


def test_a_plan_reads_headers_alone_and_counts_the_file_once(hub: FakeHub, files: Path, tmp_path: Path) -> None:
    plan = Pull(connect(hub), tmp_path / "models").plan
    assert list(tmp_path.iterdir()) == []
    size = (files / "tiny-Q4_0.gguf").stat().st_size
    assert plan.download_bytes == size and plan.store_bytes == 0 and size < plan.needed_bytes < size + (65 << 20)
    assert plan.quant == "q4_0"
    assert plan.to_dict()["gguf_models"] == list(plan.gguf_models)


def test_the_memory_in_the_plan_is_what_the_file_takes_where_it_lies(
    hub: FakeHub, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("resident_bytes", "peak_memory_bytes"):
        monkeypatch.setattr(host, name, lambda: 50 << 20)  # else each moment has something else
    pull = Pull(connect(hub), tmp_path / "models", gguf="*Q8_0*")
    with Engine(pull.run(), memory=pull.plan.needs.full_bytes) as engine:
        assert engine.plan.slots == engine.config.num_records
        assert engine.plan.dense_bytes + engine.store.on_disk_bytes < 2 * pull.plan.download_bytes


def test_a_file_that_is_there_is_looked_at_and_kept_and_another_one_of_its_name_is_the_users(
    hub: FakeHub, files: Path, tmp_path: Path
) -> None:
    path = Pull(connect(hub), tmp_path).run()  # the working folder, or any other that is there
    hub.requests = []
    again = Pull(connect(hub), tmp_path)
    assert again.plan.present_bytes == again.plan.download_bytes
    hub.requests = []
    assert again.run() == path and hub.fetched() == []
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DownloadError, match=r"tiny-Q4_0\.gguf: is another file than .* has; move it, or give `force`"):
        Pull(connect(hub), tmp_path).run()
    assert path.read_bytes()[-1:] == b"x"
    assert Pull(connect(hub), tmp_path, force=True).run().read_bytes() == (files / path.name).read_bytes()


@pytest.mark.parametrize("out", ["file", "nowhere/models", "x" * 300, "a\0b"])
def test_a_place_where_no_file_can_be_is_refused_before_anything_is_fetched(
    hub: FakeHub, tmp_path: Path, out: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreWriteError, match=r"another name|create it first"):
        Pull(connect(hub), tmp_path / out)
    assert hub.fetched() == []


def test_types_that_do_not_run_where_they_lie_are_passed_over_or_refused_before_their_weights_come(
    hub: FakeHub, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from smallthinker.expert_store import own_formats

    monkeypatch.setattr(own_formats, "QUANTS", ("q8_0", "f16", "bf16", "f32"))
    assert Pull(connect(hub), tmp_path / "models").plan.files[0].name == "tiny-Q8_0.gguf"
    with pytest.raises(CheckpointError, match=r"expected one of the types .*, found Q4_0; choose another file") as e:
        Pull(connect(hub), tmp_path / "models", "q4_0")
    assert "convert" not in str(e.value)


def test_a_dropped_connection_is_taken_up_where_it_ended(hub: FakeHub, files: Path, tmp_path: Path) -> None:
    pull = Pull(connect(hub), tmp_path / "models")
    hub.requests, hub.cut_after = [], [1000, 5000]
    assert pull.run().read_bytes() == (files / "tiny-Q4_0.gguf").read_bytes()
    assert [span for _, span in hub.fetched() if span] == ["bytes=1000-", "bytes=6000-"]


def test_what_came_before_an_error_is_no_model_and_the_next_try_goes_on_with_it(
    hub: FakeHub, files: Path, tmp_path: Path
) -> None:
    pull = Pull(connect(hub), tmp_path / "models")
    hub.cut_after = [1000] + 100 * [0]
    with pytest.raises(DownloadError, match="run the command again, it goes on from there"):
        pull.run()
    assert [path.suffix for path in (tmp_path / "models").iterdir()] == [".part"]
    hub.cut_after = []
    pull = Pull(connect(hub), tmp_path / "models")
    assert pull.plan.present_bytes == 1000
    hub.requests = []
    assert pull.run().read_bytes() == (files / "tiny-Q4_0.gguf").read_bytes()
    assert hub.fetched() == [("tiny-Q4_0.gguf", "bytes=1000-")] and len(list((tmp_path / "models").iterdir())) == 1


def test_a_connection_that_drops_in_the_header_is_taken_up_too(hub: FakeHub, tmp_path: Path) -> None:
    hub.cut_after = [1000, 5000]
    assert Pull(connect(hub), tmp_path / "store").plan.files[0].name == "tiny-Q4_0.gguf"
    assert [span for _, span in hub.fetched() if span] == ["bytes=1000-", "bytes=6000-"]


def test_a_wrong_checksum_is_one_error_and_the_bytes_are_deleted(hub: FakeHub, tmp_path: Path) -> None:
    pull = Pull(connect(hub), tmp_path / "store")
    hub.damaged = {"tiny-Q4_0.gguf"}
    with pytest.raises(DownloadError, match=r"tiny-Q4_0\.gguf: expected checksum .*again"):
        pull.run()
    assert not list((tmp_path / "store").iterdir())


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
        (None, "one GGUF model of q4_0, found 0; `gguf` takes one of bf16/tiny-BF16-.*, tiny-F16.*; .*convert makes"),
        ("*F16*", r"expected one GGUF model for '\*F16\*', found 2; `gguf` takes one of"),
        ("none.gguf", "for 'none.gguf', found 0; `gguf` takes"),
        ("README.md", "for 'README.md', found 0; `gguf` takes"),
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

    cached = Path(hf_hub_download(REPO, "tiny-Q4_0.gguf", endpoint=hub.url)).resolve()
    hub.requests = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    pull = Pull(connect(hub), tmp_path / "store")
    assert pull.plan.present_bytes == pull.plan.download_bytes
    path = pull.run()
    assert path.samefile(cached) and not path.is_symlink()  # no second copy, and it outlives the cache
    cached.unlink()
    assert path.read_bytes() == (files / "tiny-Q4_0.gguf").read_bytes()
    assert hub.requests == []


def smallthinker(hub: FakeHub, folder: Path, *args: str) -> Any:
    env = {
        "HF_HOME": str(folder / "home"),
        "HF_ENDPOINT": hub.url,
        "PATH": "",
        "HOME": str(folder),
        "SMALLTHINKER_MODELS": str(folder),
    }
    return forked_command.smallthinker(*args, env=env, cwd=folder)


def test_the_command_says_what_it_took_and_what_runs_it_and_that_runs(hub: FakeHub, tmp_path: Path) -> None:
    result = smallthinker(hub, tmp_path, "pull", REPO, "--gguf", "*Q8_0*")
    assert result.returncode == 0, result.stderr
    said = ["model", "weights", "download", "runs", "memory", "disk", "note:"]
    assert [line.split()[0] for line in result.stderr.splitlines()] == said
    facts, command = result.stdout.splitlines()
    assert facts.startswith(f"{tmp_path}/tiny-GGUF/tiny-Q8_0.gguf: q8_0, ")
    program, *words = shlex.split(command)
    assert program == "smallthinker" and words[:3] == ["run", "tiny-Q8_0", "--memory"]
    answer = smallthinker(hub, tmp_path, *words, "--max-tokens", "2", "--ignore-eos")
    assert answer.returncode == 0, answer.stderr
    compressed = smallthinker(hub, tmp_path, "pull", REPO, "--quant", "q8_0", "--compress")
    assert compressed.returncode == 2 and "smallthinker convert makes a compressed store" in compressed.stderr


def test_a_file_that_was_cut_short_is_refused_in_one_line(hub: FakeHub, files: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes((files / "tiny-Q8_0.gguf").read_bytes()[:-50])
    cut = smallthinker(hub, tmp_path, "convert", str(path), "cut")
    assert cut.returncode == 2 and cut.stdout == "" and not (tmp_path / "cut").exists()
    (line,) = cut.stderr.splitlines()
    assert line.startswith(f"smallthinker convert: error: {path}: byte ") and "copy or download it again" in line
