"""Names and values in files are somebody else's text: whatever they hold, nothing that is printed steers a terminal,
forges a line or floods it."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from streams import CONTROL, assert_one_line, in_process

from smallthinker.expert_store.device.storage_profile import load_profile, save_profile_toml
from smallthinker.llm import DEMO_STORE
from smallthinker.router.trace import Trace, save_trace

PUBLISHED = json.loads((Path(__file__).parent / "published" / "4b.config.json").read_text())
NASTY = ["\x1b[31m", "a\nFORGED", "\r", "\x9b2J", "\u202e", "\u2028", "\ud800", "\x7f", "'\"", "{x!r}", "%s"]
names = st.builds(
    lambda text, nasty, copies: (text + nasty) * copies,
    st.text(max_size=8),
    st.sampled_from(NASTY),
    st.sampled_from([1, 1, 20_000]),
)
some = settings(
    max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
)


def told(*arguments: str) -> int:
    code, out, err = in_process(*arguments)
    assert code in (0, 2), err
    assert not CONTROL.search(out) and not CONTROL.search(err)
    assert "\nFORGED" not in out
    if code == 2:
        assert_one_line(err)
    return code


def as_json(value: object) -> bytes:
    return json.dumps(value).encode("ascii")


def safetensors(header: object) -> bytes:
    text = as_json(header)
    return struct.pack("<Q", len(text)) + text


def gguf_text(text: str) -> bytes:
    data = text.encode("utf-8", "replace")
    return struct.pack("<Q", len(data)) + data


CONFIGS: list[Callable[[str], Any]] = [
    lambda name: {**PUBLISHED, name: 1},
    lambda name: {name: 1},
    lambda name: [name],
    lambda name: name,
    *(lambda name, key=key: {**PUBLISHED, key: name} for key in PUBLISHED),  # type: ignore[misc]
    *(lambda name, key=key: {**PUBLISHED, key: [name]} for key in PUBLISHED),  # type: ignore[misc]
]
HEADERS: list[Callable[[str], Any]] = [
    lambda name: {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
    lambda name: {name: name},
    lambda name: {"x": {"dtype": name, "shape": [1], "data_offsets": [0, 4]}},
    lambda name: {"__metadata__": {"format": name}},
    lambda name: {"__metadata__": {name: name}},
]


@given(name=names, make=st.sampled_from(CONFIGS))
@some
def test_a_configuration(tmp_path: Path, name: str, make: Callable[[str], Any]) -> None:
    (tmp_path / "config.json").write_bytes(as_json(make(name)))
    # below any floor: nothing is measured for a name that makes a right configuration
    assert told("plan", str(tmp_path / "config.json"), "--storage", "ufs", "--memory", "16MiB") == 2
    told("synth", str(tmp_path / "config.json"), str(tmp_path / "no" / "such" / "folder"))
    told("convert", str(tmp_path), str(tmp_path / "out"))


@given(name=names, make=st.sampled_from(HEADERS), which=st.sampled_from(["dense.safetensors", "experts.safetensors"]))
@some
def test_tensors_of_a_store_and_of_a_trace(tmp_path: Path, name: str, make: Callable[[str], Any], which: str) -> None:
    store = tmp_path / "store"
    if not store.is_dir():
        shutil.copytree(DEMO_STORE, store)
    kept = (store / which).read_bytes()
    try:
        (store / which).write_bytes(safetensors(make(name)) + bytes(4))
        assert told("inspect", str(store)) == 2
        assert told("cache-sim", str(store / which)) == 2
        told("run", "--lossy-head", str(store / which), "x")
    finally:
        (store / which).write_bytes(kept)


@given(name=names)
@some
def test_a_trace_s_model(tmp_path: Path, name: str) -> None:
    ids = np.zeros((4, 1, 2), np.uint8)
    ids[:, :, 1] = 1
    trace = Trace(ids, np.full((4, 1, 4), 0.25, np.float16), np.zeros(1, np.int64), 4096, name)
    save_trace(trace, tmp_path / "trace")
    told("cache-sim", str(tmp_path / "trace"))


@given(name=names, key=st.sampled_from(["name", "summary", "scope", "latency_sec", "new"]))
@settings(some, max_examples=5)  # plan measures the kernels each time
def test_a_disk_s_profile(tmp_path: Path, name: str, key: str) -> None:
    save_profile_toml(load_profile("nvme"), tmp_path / "disk.toml")
    lines = (tmp_path / "disk.toml").read_text().splitlines()
    lines = [line for line in lines if not re.match(rf"{key}\b", line)]
    lines.append(f"{json.dumps(name, ensure_ascii=False) if key == 'new' else key} = {as_json(name).decode()}")
    (tmp_path / "disk.toml").write_bytes("\n".join(lines).encode("utf-8", "replace"))
    told("plan", "4b", "--storage", str(tmp_path / "disk.toml"))
    told("run", "--storage", str(tmp_path / "disk.toml"), "--max-tokens", "1", "x")


@given(name=names)
@some
def test_gguf_metadata(tmp_path: Path, name: str) -> None:
    pytest.importorskip("gguf", reason="needs smallthinker[gguf]")
    for key, value in (("general.architecture", name), (name, name), ("general.alignment", name)):
        header = struct.pack("<IQQ", 3, 0, 1) + gguf_text(key) + struct.pack("<I", 8) + gguf_text(value)
        (tmp_path / "model.gguf").write_bytes(b"GGUF" + header)
        assert told("convert", str(tmp_path / "model.gguf"), str(tmp_path / "out")) == 2


@given(name=names, at=st.sampled_from(["kind", "new", "model"]))
@some
def test_results_of_a_benchmark(tmp_path: Path, name: str, at: str) -> None:
    row = {"kind": "environment", "schema": 1, "model": {"name": name}} | {name if at == "new" else at: name}
    (tmp_path / "results.jsonl").write_bytes(as_json(row) + b"\n")
    results = str(tmp_path / "results.jsonl")
    assert told("bench", "--submit", results) == 2
    assert told("bench", "compare", results, results) == 2


@given(name=names)
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_chat_template_s_own_error(tmp_path: Path, name: str) -> None:
    store = tmp_path / "store"
    if not store.is_dir():
        shutil.copytree(DEMO_STORE, store)
    template = "{{ raise_exception(messages[0].content) }}"
    (store / "tokenizer_config.json").write_bytes(as_json({"chat_template": template, "bos_token": name}))
    code, out, err = in_process(
        "chat",
        "-m",
        str(store),
        "--max-tokens",
        "1",
        "--system",
        name.encode("utf-8", "replace").decode(),
        stdin=b"x\n",
    )
    assert code in (0, 2)
    assert out == ""
    assert_one_line(err)


def test_a_file_s_name_in_a_store(tmp_path: Path) -> None:
    shutil.copytree(DEMO_STORE, tmp_path / "store")
    for name in NASTY:
        (tmp_path / "store" / ascii(name)[1:-1].encode().decode("unicode_escape").replace("\ud800", "\udc80")).touch()
    assert told("inspect", str(tmp_path / "store")) == 0
    assert told("inspect", "--json", str(tmp_path / "store")) == 0
