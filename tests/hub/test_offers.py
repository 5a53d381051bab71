"""What a repository offers, and which of it is taken: by name, by quantisation, by memory and disk, or not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import FakeHub
from pulling import REPO, connect, smallthinker
from tiny_models import tiny_config

from smallthinker.errors import CheckpointError, ConfigError, MemoryBudgetError
from smallthinker.hub.offers import Offer, choices, gguf_models, quant_of
from smallthinker.hub.pull import Pull, listing
from smallthinker.hub.repository import HubFile
from smallthinker.models.registry import to_config

pytest.importorskip("gguf", reason="needs the package gguf")

from gguf_files import write_gguf

GGUF = "somebody/tiny-GGUF"


@pytest.fixture
def gguf_hub(hub: FakeHub, checkpoint: Path, tmp_path: Path) -> FakeHub:
    (tmp_path / "made").mkdir()
    files = {}
    for kind in ("F16", "Q8_0", "Q4_0"):
        files[f"tiny-{kind}.gguf"] = write_gguf(checkpoint, tmp_path / "made" / f"{kind}.gguf", kind).read_bytes()
    hub.repos[GGUF] = files | {"mmproj-tiny-F16.gguf": b"a picture's encoder", "README.md": b"a model"}
    return hub


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("Qwen3-30B-A3B-Q4_K_M.gguf", "q4_k_m"),
        ("UD/Qwen3-30B-A3B-UD-Q4_K_XL-00001-of-00002.gguf", "q4_k_xl"),
        ("q8_0/tiny.f16.gguf", "f16"),
        ("gpt-oss-20b-mxfp4.gguf", "mxfp4"),
        ("model-IQ4_XS.gguf", "iq4_xs"),
        ("model-FP16.gguf", "f16"),
        ("model.gguf", ""),
        ("Q4-model.gguf", "q4"),
    ],
)
def test_a_files_name_says_its_quantisation(name: str, quant: str) -> None:
    assert quant_of(name) == quant


def offered(*names: str) -> list[Offer]:
    files = {name: HubFile(name, 1000 + i, "") for i, name in enumerate(names)}
    return [Offer(name, "gguf", quant_of(name), parts) for name, parts in gguf_models(files).items()]


def test_of_files_that_nobody_chose_those_of_four_and_a_half_bits_come_first_and_unknown_ones_last() -> None:
    found = offered("m-F32.gguf", "m-Q8_0.gguf", "m-Q2_K.gguf", "m-Q4_K_M.gguf", "m-Q4_0.gguf", "m-Q6_K.gguf")
    order = [offer.quant for offer in choices(found, None, None, "a/b")]
    assert order == ["q4_k_m", "q4_0", "q6_k", "q8_0", "f32", "q2_k"]


def test_a_quantisation_that_only_gguf_files_have_is_theirs_even_beside_safetensors() -> None:
    folder = Offer("safetensors", "safetensors", "", ())
    found = [folder, *offered("m-Q4_K_M.gguf", "m-Q8_0.gguf")]
    assert [offer.name for offer in choices(found, None, "q4_k_m", "a/b")] == ["m-Q4_K_M.gguf"]
    assert choices(found, None, "q8_0", "a/b") == choices(found, None, None, "a/b") == [folder]
    with pytest.raises(CheckpointError, match="expected one GGUF model of q5_k_m, found 0; `gguf` takes one of m-Q4"):
        choices(found, None, "q5_k_m", "a/b")


def test_encoders_of_pictures_and_measurements_are_no_models() -> None:
    assert [offer.name for offer in offered("mmproj-F16.gguf", "imatrix.gguf", "m-Q8_0.gguf")] == ["m-Q8_0.gguf"]


def test_without_a_choice_the_file_is_taken_that_loses_little_for_its_size(gguf_hub: FakeHub, tmp_path: Path) -> None:
    plan = Pull(connect(gguf_hub, GGUF), tmp_path / "store").plan
    assert [file.name for file in plan.files] == ["tiny-Q4_0.gguf"] and plan.quant == "q4_0"
    assert 0 < plan.needs.floor_bytes <= plan.needs.full_bytes <= plan.memory_bytes


def test_on_a_small_disk_a_smaller_file_is_taken(
    gguf_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = gguf_hub.repos[GGUF]
    repo["tiny-Q4_K_M.gguf"] = repo["tiny-F16.gguf"]  # the usual choice, and a large file
    whole = Pull(connect(gguf_hub, GGUF), tmp_path / "store").plan
    assert whole.files[0].name == "tiny-Q4_K_M.gguf"
    free = whole.download_bytes - 1
    monkeypatch.setattr(Pull, "_free_bytes", lambda self, out: free)
    assert Pull(connect(gguf_hub, GGUF), tmp_path / "store").plan.files[0].name == "tiny-Q4_0.gguf"


def test_a_file_that_can_not_be_read_is_passed_over_for_the_next(gguf_hub: FakeHub, tmp_path: Path) -> None:
    gguf_hub.repos[GGUF]["tiny-Q4_K_M.gguf"] = b"<html>" + bytes(100)
    assert Pull(connect(gguf_hub, GGUF), tmp_path / "store").plan.files[0].name == "tiny-Q4_0.gguf"


def test_too_little_memory_is_refused_with_the_floor_unless_the_file_was_asked_for(
    gguf_hub: FakeHub, tmp_path: Path
) -> None:
    with pytest.raises(MemoryBudgetError, match=f"{GGUF}: needs .* MiB of memory at least, found 20.0 MiB; `memory`"):
        Pull(connect(gguf_hub, GGUF), tmp_path / "store", memory="20MiB")
    plan = Pull(connect(gguf_hub, GGUF), tmp_path / "store", "q8_0", memory="20MiB").plan
    assert "won't run here" in plan.text() and list(tmp_path.glob("store*")) == []
    assert not [name for name, _ in gguf_hub.fetched() if "Q8_0" not in name and "Q4_0" not in name]


def test_a_list_names_each_file_with_its_size_and_memory_and_reads_one_header(gguf_hub: FakeHub) -> None:
    gguf_hub.requests = []
    found = listing(connect(gguf_hub, GGUF))
    assert [(offer.name, offer.quant) for offer in found.offers] == [
        ("tiny-F16.gguf", "f16"),
        ("tiny-Q4_0.gguf", "q4_0"),
        ("tiny-Q8_0.gguf", "q8_0"),
    ]
    assert found.family == "smallthinker" and found.refusal is None
    assert all(0 < need.floor_bytes <= need.full_bytes for need in found.needs)
    assert [name for name, _ in gguf_hub.fetched()] == ["tiny-Q4_0.gguf"]
    assert "tiny-Q8_0.gguf" in found.text() and "with everything in memory" in found.text()
    first = found.to_dict()["offers"][0]
    assert first["bytes"] == len(gguf_hub.repos[GGUF]["tiny-F16.gguf"]) and first["files"] == 1


def test_a_list_of_what_can_not_run_says_why(hub: FakeHub) -> None:
    hub.repos["somebody/bert"] = {
        "config.json": b'{"architectures": ["BertModel"]}',
        "model.safetensors": bytes(30_000),
    }
    found = listing(connect(hub, "somebody/bert"))
    assert found.refusal is not None and "BertModel" in found.refusal and found.needs == ()
    assert "none of it runs here: somebody/bert: not a model" in found.text()
    hub.repos["somebody/empty"] = {"README.md": b"nothing"}
    assert "has neither safetensors nor GGUF weights" in listing(connect(hub, "somebody/empty")).text()


def test_a_description_that_no_kernel_computes_is_refused_before_the_weights(hub: FakeHub, tmp_path: Path) -> None:
    tiny = tiny_config()
    layer = replace(tiny.layers[0], mixer=replace(tiny.layers[0].attention, gated=True))
    raw = to_config(replace(tiny, family="described", layers=(layer, *tiny.layers[1:])))
    hub.repos["somebody/new"] = hub.repos[REPO] | {"config.json": json.dumps(raw).encode()}
    with pytest.raises(ConfigError, match=r"somebody/new: config\.json: .*gated: .*this engine has no arithmetic for"):
        Pull(connect(hub, "somebody/new"), tmp_path / "store")


def test_a_tokenizer_that_does_not_load_is_refused_before_the_weights(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos[REPO]["tokenizer.json"] = b'{"model": {"type": "Unheard"}}'
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer"):
        Pull(connect(hub), tmp_path / "store").run()
    assert not [name for name, _ in hub.fetched() if name.endswith(".safetensors")]


def test_the_command_lists_and_says_so_as_json(gguf_hub: FakeHub, tmp_path: Path) -> None:
    result = smallthinker(gguf_hub, tmp_path, GGUF, "--list")
    assert result.returncode == 0 and len(result.stdout.splitlines()) == 4, result.stderr
    result = smallthinker(gguf_hub, tmp_path, GGUF, "--list", "--json")
    assert {offer["quant"] for offer in json.loads(result.stdout)["offers"]} == {"f16", "q4_0", "q8_0"}
