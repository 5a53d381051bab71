"""Files that were damaged, cut or made to harm: each ends in one error with path and offset, before any allocation."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smallthinker.errors import ConfigError, StoreFormatError
from smallthinker.expert_store.store import Store

FILES = ["dense.safetensors", "experts.safetensors"]
Header = dict[str, Any]


def split(path: Path) -> tuple[Header, bytes]:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def join(path: Path, text: bytes, data: bytes, pad_to: int = 4096) -> None:
    text += b" " * (-(8 + len(text)) % pad_to)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def rewrite(path: Path, change: Callable[[Header], object]) -> None:
    header, data = split(path)
    change(header)
    join(path, json.dumps(header, separators=(",", ":")).encode(), data)


def refused(store: Path, match: str) -> None:
    with pytest.raises(StoreFormatError, match=match) as caught:
        Store.open(store)
    assert str(store) in str(caught.value)


@pytest.mark.parametrize("file", FILES)
def test_a_file_cut_anywhere_is_refused(tiny_store: Path, file: str) -> None:
    raw = (tiny_store / file).read_bytes()
    for length in [*range(17), 100, 4095, 4096, 4097, len(raw) // 2, len(raw) - 4096, len(raw) - 1]:
        (tiny_store / file).write_bytes(raw[:length])
        refused(tiny_store, r"byte \d+: .*expected")


@pytest.mark.parametrize("file", FILES)
def test_bytes_after_the_last_tensor_are_refused(tiny_store: Path, file: str) -> None:
    with (tiny_store / file).open("ab") as f:
        f.write(b"\0")
    refused(tiny_store, "end of the last tensor")


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**60, 2**63, 2**64 - 1])
@pytest.mark.parametrize("file", FILES)
def test_a_header_length_that_lies_is_refused(tiny_store: Path, file: str, length: int) -> None:
    with (tiny_store / file).open("r+b") as f:
        f.write(length.to_bytes(8, "little"))
    refused(tiny_store, f"byte 0: length of the header: .*found {length}")


def test_a_header_larger_than_any_of_this_model_is_not_even_read(tiny_store: Path) -> None:
    path = tiny_store / "experts.safetensors"
    with path.open("r+b") as f:
        f.write((10 << 30).to_bytes(8, "little"))
        f.truncate(11 << 30)  # sparse: costs nothing, and would cost 10 GiB of memory
    refused(tiny_store, "length of the header")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"[]", "a JSON object, found list"),
        (b"nonsense", "valid JSON"),
        (b"{" * 100_000, "length of the header|valid JSON"),
        (b"[" * 2_000, "valid JSON"),
        (b'{"a":NaN}', "NaN is no number"),
        (b'{"a":1,"a":2}', "'a' is there twice"),
        (b'{"\xff":1}', "valid JSON"),
        (b'{"a":' + b"9" * 3_000 + b"}", "entry of tensor|valid JSON"),
        (b'{"a":' + b"9" * 4_500 + b"}", "entry of tensor|valid JSON|length of the header"),
        (b'{"__metadata__":{"format":1}}', "__metadata__"),
        (b'{"__metadata__":[]}', "__metadata__"),
        (b'{"\\ud800":{}}', "entry of tensor"),
    ],
)
def test_headers_that_are_no_tensor_tables_are_refused(tiny_store: Path, text: bytes, match: str) -> None:
    path = tiny_store / "experts.safetensors"
    join(path, text, split(path)[1])
    refused(tiny_store, match)


def first(header: Header) -> Any:
    return header[next(name for name in header if name != "__metadata__")]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dtype", "F16"),
        ("dtype", "F4"),
        ("dtype", 3),
        ("dtype", ["U8"]),
        ("shape", [2**62, 2**62]),
        ("shape", [-1]),
        ("shape", [4.0]),
        ("shape", [True]),
        ("shape", "64"),
        ("shape", [1] * 9),
        ("shape", [10**400]),
        ("data_offsets", [0, 2**63]),
        ("data_offsets", [-64, 0]),
        ("data_offsets", [64, 0]),
        ("data_offsets", [0]),
        ("data_offsets", [0, 1e300]),
        ("data_offsets", None),
        ("data_offsets", [1, 4097]),
    ],
)
def test_entries_that_lie_are_refused(tiny_store: Path, file: str, key: str, value: object) -> None:
    rewrite(tiny_store / file, lambda header: first(header).__setitem__(key, value))
    refused(tiny_store, "tensor")


@pytest.mark.parametrize("file", FILES)
def test_an_entry_with_a_missing_or_unknown_key_is_refused(tiny_store: Path, file: str) -> None:
    rewrite(tiny_store / file, lambda header: first(header).pop("shape"))
    refused(tiny_store, "entry of tensor")
    rewrite(tiny_store / file, lambda header: first(header).update(shape=[1], strides=[1]))
    refused(tiny_store, "entry of tensor")


def test_overlapping_and_swapped_records_are_refused(tiny_store: Path) -> None:
    path = tiny_store / "experts.safetensors"

    def overlap(header: Header) -> None:
        header["layers.0.experts.1"]["data_offsets"] = header["layers.0.experts.0"]["data_offsets"]

    def swap(header: Header) -> None:
        a, b = header["layers.0.experts.0"], header["layers.0.experts.1"]
        a["data_offsets"], b["data_offsets"] = b["data_offsets"], a["data_offsets"]

    intact = path.read_bytes()
    rewrite(path, overlap)
    refused(tiny_store, "start of tensor")
    path.write_bytes(intact)
    rewrite(path, swap)
    refused(tiny_store, "tensor 'layers.0.experts.0': expected U8")


@pytest.mark.parametrize("file", FILES)
def test_missing_and_renamed_tensors_are_named(tiny_store: Path, file: str) -> None:
    header, data = split(tiny_store / file)
    last = list(header)[-1]
    header["héhé"] = header.pop(last)
    join(tiny_store / file, json.dumps(header).encode(), data)
    refused(tiny_store, f"a tensor '{last}'")
    entry = header.pop("héhé")
    join(tiny_store / file, json.dumps(header).encode(), data[: entry["data_offsets"][0]])
    refused(tiny_store, f"a tensor '{last}'")


def test_an_unknown_tensor_is_named(tiny_store: Path) -> None:
    path = tiny_store / "dense.safetensors"
    header, data = split(path)
    header["layers.0.q_proj.bias"] = {"dtype": "F32", "shape": [16], "data_offsets": [len(data), len(data) + 64]}
    join(path, json.dumps(header).encode(), data + bytes(64))
    refused(tiny_store, "found 'layers.0.q_proj.bias'")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "pt"),
        ("format", None),
        ("format_version", "4"),
        ("format_version", None),
        ("quant", "q5_k"),
        ("quant", None),
        ("engine_version", None),
        ("crc32", None),
        ("crc32", "00000000"),
        ("crc32", "zzzzzzzz"),
    ],
)
def test_metadata_of_another_format_is_refused(tiny_store: Path, file: str, key: str, value: str | None) -> None:
    def change(header: Header) -> None:
        if value is None:
            del header["__metadata__"][key]
        else:
            header["__metadata__"][key] = value

    rewrite(tiny_store / file, change)
    refused(tiny_store, f"__metadata__ {key}")


def test_records_off_the_page_boundary_are_refused(tiny_store: Path) -> None:
    path = tiny_store / "experts.safetensors"
    header, data = split(path)
    join(path, json.dumps(header).encode(), data, pad_to=64 if len(json.dumps(header)) % 4096 < 4000 else 2048)
    refused(tiny_store, "start of the data: expected a multiple of 4096")


def test_a_config_of_another_model_is_noticed(tiny_store: Path) -> None:
    config = json.loads((tiny_store / "config.json").read_text())
    (tiny_store / "config.json").write_text(json.dumps(config | {"moe_ffn_hidden_size": 128}))
    refused(tiny_store, "belong to different models")


def test_files_of_two_stores_are_noticed(tiny_store: Path, tiny_config: Path, tmp_path: Path) -> None:
    from smallthinker.expert_store.synthetic.synth import synth

    other = synth(str(tiny_config), tmp_path / "other", "q8_0")
    shutil.copy(other / "experts.safetensors", tiny_store)
    refused(tiny_store, "expected q8_0 as in experts.safetensors, found q4_0")


def test_a_config_that_is_huge_or_broken_is_refused(tiny_store: Path) -> None:
    (tiny_store / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        Store.open(tiny_store)
    with (tiny_store / "config.json").open("r+b") as f:
        f.truncate(1 << 40)
    refused(tiny_store, "size: expected at most")


def test_a_config_with_absurdly_many_experts_allocates_nothing(tiny_store: Path) -> None:
    config = json.loads((tiny_store / "config.json").read_text())
    many = {"num_hidden_layers": 1024, "moe_num_primary_experts": 4096}
    (tiny_store / "config.json").write_text(json.dumps(config | many))
    refused(tiny_store, "tensors: expected")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", *FILES])
def test_a_missing_file_is_named(tiny_store: Path, name: str) -> None:
    (tiny_store / name).unlink()
    refused(tiny_store, f"not a whole store: {name} missing")


def test_what_is_no_store_says_what_it_is(tmp_path: Path) -> None:
    refused(tmp_path, "a folder without a model")
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "model.safetensors").write_bytes(b"")
    for name, match in [("nothing", "found nothing"), ("file", "found a file"), ("checkpoint", "convert it first")]:
        with pytest.raises(StoreFormatError, match=match):
            Store.open(tmp_path / name)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(data=st.data())
def test_any_byte_of_a_header_may_be_wrong(tiny_store: Path, data: st.DataObject) -> None:
    path = tiny_store / "experts.safetensors"
    intact = path.read_bytes()
    length = int.from_bytes(intact[:8], "little")
    changed = bytearray(intact)
    for position in data.draw(st.lists(st.integers(0, 8 + length - 1), min_size=1, max_size=4)):
        changed[position] = data.draw(st.integers(0, 255))
    path.write_bytes(changed)
    with contextlib.suppress(StoreFormatError):  # a changed checksum digit, for one, shows only in `verify`
        Store.open(tiny_store)
    path.write_bytes(intact)


@pytest.mark.parametrize("file", FILES)
def test_verify_names_file_tensor_and_offset_of_a_flipped_bit(tiny_store: Path, file: str) -> None:
    store = Store.open(tiny_store)
    store.verify()
    source = store.dense_file if file == FILES[0] else store.experts_file
    for tensor in source.tensors:
        path = tiny_store / file
        intact = path.read_bytes()
        changed = bytearray(intact)
        changed[tensor.offset + tensor.spec.nbytes // 2] ^= 1
        path.write_bytes(changed)
        with pytest.raises(StoreFormatError, match=f"{file}: byte {tensor.offset}: .*'{tensor.spec.name}'"):
            store.verify()
        path.write_bytes(intact)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "formats",
    [
        None,
        "",
        "[]",
        "5",
        "{",
        '{"down": 1}',
        '{"down": "q3_k"}',
        '{"down": "f16", "down": "f16"}',
        '{"norm": "f16"}',
        '{"router": "q4_0"}',
        '{"layers.99.down": "f16"}',
        '{"\\u001b[31m": "f16"}',
        '{"down": "f16"}',  # which would need larger records
        "[" * 100_000,
    ],
)
def test_formats_of_single_matrices_that_make_no_sense_are_refused(
    tiny_store: Path, file: str, formats: str | None
) -> None:
    def change(header: Header) -> None:
        header["__metadata__"] |= {"format_version": "3"} | ({} if formats is None else {"formats": formats})

    rewrite(tiny_store / file, change)
    with pytest.raises(StoreFormatError) as caught:
        Store.open(tiny_store)
    message = str(caught.value)
    assert file in message and message.isprintable() and len(message) < 1000
