"""Compressed records: the same bytes and the same answers as without, smaller files, and no frame is trusted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from reading import NATIVE, make_slots, opened_keeper, read_all
from test_hostile_files import join, refused, rewrite, split
from tiny_models import make_store
from tiny_models import tiny_config as model_config

from smallthinker.cli import main
from smallthinker.engine import Engine
from smallthinker.errors import ConfigError, StoreFormatError, StoreReadError
from smallthinker.expert_store.compression import Compressor, Decompressor, FrameError
from smallthinker.expert_store.convert import convert
from smallthinker.expert_store.format import QUANTS, Formats, Quant
from smallthinker.expert_store.inspect import describe
from smallthinker.expert_store.store import Store
from smallthinker.expert_store.synthetic.synth import QUANTS as SYNTH_QUANTS
from smallthinker.expert_store.synthetic.synth import synth
from smallthinker.expert_store.writer import StoreWriter

RECORD_BYTES = 3 * 4096


@pytest.fixture
def compressed_store(tiny_config: Path, tmp_path: Path) -> Path:
    """q8_0, whose random weights don't compress, with records of zeros but one random page, which do."""
    path = tmp_path / "compressed"
    plain = Store.open(synth(str(tiny_config), tmp_path / "plain", "q8_0"))
    files = {name: (plain.path / name).read_bytes() for name in ("config.json", "tokenizer.json")}
    with StoreWriter(path, plain.config, Formats("q8_0"), files, compress=3) as writer:
        for spec in writer.dense_specs:
            writer.write_dense(spec, [])
        for index, (spec, record) in enumerate(zip(writer.expert_specs, read_all(plain), strict=True)):
            writer.write_expert(spec, [record if index == 1 else record[: 4096 * (index % 3)]])
    return path


@pytest.mark.parametrize("reader", NATIVE)
@pytest.mark.parametrize("quant", SYNTH_QUANTS)
def test_records_are_the_same_bytes_with_and_without_compression(
    tiny_config: Path, tmp_path: Path, quant: Quant, reader: str
) -> None:
    plain = Store.open(synth(str(tiny_config), tmp_path / "plain", quant))
    small = Store.open(synth(str(tiny_config), tmp_path / "small", quant, compress=1))
    assert read_all(small, reader) == read_all(plain)
    assert (small.path / "dense.safetensors").read_bytes() == (plain.path / "dense.safetensors").read_bytes()
    small.verify()


def test_a_compressed_file_is_smaller_of_whole_pages_and_its_records_are_whole(compressed_store: Path) -> None:
    with Store.open(compressed_store) as store:
        store.verify()
        sizes = [store.stored_bytes(index) for index in range(store.num_experts)]
        assert sizes[1] == store.record_bytes  # as it is
        assert all(size < store.record_bytes and size % 4096 == 0 for i, size in enumerate(sizes) if i != 1)
        assert [store.record_offset(i + 1) - store.record_offset(i) for i in range(5)] == sizes[:-1]
        plain = read_all(Store.open(compressed_store.parent / "plain"))
        for index, (found, record) in enumerate(zip(read_all(store), plain, strict=True)):
            kept = len(record) if index == 1 else 4096 * (index % 3)
            assert found == record[:kept].ljust(len(record), b"\0")


def test_an_inspection_counts_what_was_compressed(compressed_store: Path, tiny_store: Path) -> None:
    store = Store.open(compressed_store)
    facts = json.loads(json.dumps(describe(store)))
    sizes = [store.stored_bytes(index) for index in range(store.num_experts)]
    assert (facts["experts"]["compression"], facts["experts"]["compressed"]) == ("zstd", 5)
    assert facts["experts"]["stored_bytes"] == sum(sizes)
    assert facts["experts"]["compression_ratio"] == sum(sizes) / facts["bytes"]["experts"]
    plain = describe(Store.open(tiny_store))["experts"]
    assert (plain["compression"], plain["compressed"], plain["compression_ratio"]) == (None, 0, 1.0)


def test_the_command_line_compresses_on_request_and_says_what_came_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_store(model_config(moe_ffn_hidden_size=64), tmp_path)
    checkpoint = str(tmp_path / "checkpoint")
    for name, options in (("plain", []), ("default", ["--compress"]), ("one", ["--compress", "1"])):
        assert main(["convert", checkpoint, str(tmp_path / name), "--quant", "f16", *options]) == 0
        assert Store.open(tmp_path / name).is_compressed == (name != "plain")
    for name, expected in (("plain", "compression none"), ("one", "compression zstd, 24 of 24 experts")):
        capsys.readouterr()
        assert main(["verify", str(tmp_path / name)]) == 0
        assert "whole" in capsys.readouterr().out
        assert main(["inspect", str(tmp_path / name)]) == 0
        assert expected in capsys.readouterr().out
    assert main(["convert", checkpoint, str(tmp_path / "no"), "--compress", "99"]) == 2
    assert "level from 1 to 19, found 99" in capsys.readouterr().err


@pytest.mark.parametrize("quant", ["q4_0", "q8_0", "f16"])
def test_the_engine_gives_the_same_bits_with_and_without_compression(tmp_path: Path, quant: str) -> None:
    config = model_config(hidden_size=256, moe_ffn_hidden_size=512)  # each record saves a page or more
    plain, _ = make_store(config, tmp_path, quant)
    small = convert(tmp_path / "checkpoint", tmp_path / "small", quant, compress=1)
    assert describe(Store.open(small))["experts"]["compressed"] == config.num_records
    prompt = np.random.default_rng(0).integers(0, 256, 20).tolist()

    def run(store: Path, slots: int) -> list[np.ndarray]:
        with Engine(store, max_slots=slots) as engine:
            return [engine.prefill(prompt)[0], *(engine.decode(token) for token in prompt[:5])]

    for found, expected in zip(run(small, 2), run(plain, config.num_records), strict=True):
        assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_force_replaces_an_uncompressed_store_by_a_compressed_one(tmp_path: Path) -> None:
    store, _ = make_store(model_config(hidden_size=128, moe_ffn_hidden_size=256), tmp_path)
    before = read_all(Store.open(store))
    convert(tmp_path / "checkpoint", store, "f16", force=True, compress=3)
    with Store.open(store) as replaced:
        assert replaced.is_compressed
        assert read_all(replaced) == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["checkpoint", "store"]


@pytest.mark.parametrize("level", [0, -1, 20])
def test_levels_that_are_none_are_refused(tiny_config: Path, tmp_path: Path, level: int) -> None:
    with pytest.raises(ConfigError, match=f"level from 1 to 19, found {level}"):
        synth(str(tiny_config), tmp_path / "store", "q4_0", compress=level)
    with pytest.raises(ConfigError, match="found a checkpoint"):
        synth(str(tiny_config), tmp_path / "store", "none", compress=3)
    assert not (tmp_path / "store").exists()


@given(data=st.data(), quant=st.sampled_from(QUANTS), level=st.integers(1, 5))
def test_any_record_survives(data: st.DataObject, quant: Quant, level: int) -> None:
    seed, zeros = data.draw(st.integers(0, 9)), data.draw(st.integers(0, RECORD_BYTES))
    record = np.random.default_rng(seed).integers(0, 256, RECORD_BYTES, dtype=np.uint8)
    record[zeros:] = 0
    stored = Compressor(quant, level).stored(record)
    if len(stored) == RECORD_BYTES:
        assert bytes(stored) == record.tobytes()
        return
    found = bytearray(RECORD_BYTES)
    Decompressor(quant, RECORD_BYTES).decompress(memoryview(stored), memoryview(found))
    assert found == record.tobytes()


def frame(data: bytes, *, size: int | None = None, known: bool = True, checked: bool = True) -> bytes:
    """A frame of `data`; `size` is what its header claims, a content size of four bytes."""
    made = zstandard.ZstdCompressor(level=3, write_checksum=checked, write_content_size=known).compress(data)
    if size is None:
        return made
    header = zstandard.get_frame_parameters(made)
    assert header.content_size == len(data) and len(data) < 65536 + 256
    claimed = bytearray(made[:4] + b"\xa4" + size.to_bytes(4, "little"))  # single segment, four bytes of size, checksum
    return bytes(claimed) + made[zstandard.frame_header_size(made) :]


TEXT = (b"the sea was calm " * 1000)[:RECORD_BYTES]
DICTIONARY = zstandard.ZstdCompressionDict(b"the sea was calm and so on" * 20, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
NAMED_DICTIONARY = zstandard.train_dictionary(
    1024, [TEXT[i : i + 64] + bytes(np.random.default_rng(i).integers(0, 256, 64)) for i in range(400)]
)
HOSTILE: dict[str, bytes] = {
    "another size": frame(TEXT[:-1]),
    "a larger size": frame(TEXT + b"x"),
    "a bomb": frame(bytes(1 << 30)),
    "a size that lies, less inside": frame(TEXT[:-9], size=RECORD_BYTES),
    "a size that lies, more inside": frame(TEXT + b"and more", size=RECORD_BYTES),
    "a bomb that lies": frame(bytes(60_000), size=RECORD_BYTES),
    "no size": frame(TEXT, known=False),
    "no checksum": frame(TEXT, checked=False),
    "nothing": b"",
    "no frame": b"\x01" * 100,
    "a skippable frame": b"\x50\x2a\x4d\x18" + RECORD_BYTES.to_bytes(4, "little"),
    "a frame behind it": frame(TEXT) + frame(b""),
    "a byte behind it": frame(TEXT) + b"\1",
    "a page behind it": frame(TEXT) + bytes(4096),
    "a dictionary's name": zstandard.ZstdCompressor(dict_data=NAMED_DICTIONARY, write_checksum=True).compress(TEXT),
    "an unnamed dictionary": zstandard.ZstdCompressor(dict_data=DICTIONARY, write_checksum=True).compress(TEXT),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_frame_is_refused_and_nothing_beside_the_record_is_written(name: str) -> None:
    stored = HOSTILE[name].ljust(4096, b"\0")
    around = bytearray(b"\xee" * (RECORD_BYTES + 8192))
    with pytest.raises(FrameError, match=r"expected .*found"):
        Decompressor("q4_0", RECORD_BYTES).decompress(memoryview(stored), memoryview(around)[4096:-4096])
    assert set(around[:4096]) == set(around[-4096:]) == {0xEE}


def test_the_frame_that_the_hostile_ones_are_made_from_is_accepted() -> None:
    for whole in (frame(TEXT), frame(TEXT, size=RECORD_BYTES)):
        record = bytearray(RECORD_BYTES)
        Decompressor("q4_0", RECORD_BYTES).decompress(memoryview(whole.ljust(4096, b"\0")), memoryview(record))
        assert record == TEXT


@given(data=st.data())
def test_any_change_to_a_frame_is_refused_or_harmless(data: st.DataObject) -> None:
    """Some bits of a frame mean nothing; whatever is accepted has the right checksum, so it is the right record."""
    stored = bytearray(frame(TEXT).ljust(4096, b"\0"))
    for position in data.draw(st.lists(st.integers(0, 250), min_size=1, max_size=3)):
        stored[position] = data.draw(st.integers(0, 255))
    around = bytearray(b"\xee" * (RECORD_BYTES + 8192))
    try:
        Decompressor("q4_0", RECORD_BYTES).decompress(memoryview(stored), memoryview(around)[4096:-4096])
    except FrameError:
        pass
    else:
        assert around[4096:-4096] == TEXT
    assert set(around[:4096]) == set(around[-4096:]) == {0xEE}


@pytest.mark.parametrize("length", [1, 5, 9, 12, 20, -1, -4])
def test_a_cut_frame_is_refused(length: int) -> None:
    whole = frame(TEXT)
    for stored in (whole[:length], whole[:length].ljust(4096, b"\0")):
        with pytest.raises(FrameError):
            Decompressor("q4_0", RECORD_BYTES).decompress(memoryview(stored), memoryview(bytearray(RECORD_BYTES)))


@pytest.mark.parametrize("reader", NATIVE)
def test_a_broken_record_is_one_error_with_path_and_offset_and_the_others_are_read(
    compressed_store: Path, reader: str
) -> None:
    store = Store.open(compressed_store)
    offset = store.record_offset(3)
    with (compressed_store / "experts.safetensors").open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 16)
    with pytest.raises(StoreFormatError, match=f"byte {offset}: checksum"):
        store.verify()
    with opened_keeper(reader, store, make_slots(store, 2)) as queue:
        assert queue.name == f"{reader}+zstd"
        queue.submit(3, 0)
        queue.submit(4, 1)
        told = dict(queue.wait())
        while len(told) < 2:
            told |= dict(queue.wait())
        assert isinstance(told[3], StoreReadError)
        assert re.search(rf"experts\.safetensors: byte {offset}: [\w.]+: expected a zstd frame.*again", str(told[3]))
        assert told[4] is None
        assert queue.counters().certain_reads == 1


def test_a_compressed_file_cut_anywhere_is_refused(compressed_store: Path) -> None:
    path = compressed_store / "experts.safetensors"
    raw = path.read_bytes()
    for length in (0, 7, 4096, len(raw) // 2, len(raw) - 4096, len(raw) - 1):
        path.write_bytes(raw[:length])
        refused(compressed_store, r"byte \d+: .*expected")


def test_a_compressed_file_cut_after_opening_is_an_error_and_no_crash(compressed_store: Path) -> None:
    store = Store.open(compressed_store)
    with opened_keeper("mmap", store, make_slots(store, 1)) as queue:
        with (compressed_store / "experts.safetensors").open("r+b") as file:
            file.truncate(store.record_offset(2))
        queue.submit(2, 0)
        assert "changed since opening" in str(queue.wait()[0].error)


def resize(path: Path, change: Callable[[int], int]) -> None:
    """Give the last record another size, in the header and in the file."""
    header, data = split(path)
    entry = header[list(header)[-1]]
    start, stop = entry["data_offsets"]
    size = change(stop - start)
    entry["shape"], entry["data_offsets"] = [size], [start, start + size]
    join(path, json.dumps(header, separators=(",", ":")).encode(), data[:start] + bytes(size))


@pytest.mark.parametrize("size", [0, 1, 4095, 4097, 1 << 20])
def test_a_record_of_part_pages_or_larger_than_uncompressed_is_refused(compressed_store: Path, size: int) -> None:
    resize(compressed_store / "experts.safetensors", lambda _: size)
    refused(compressed_store, "or fewer pages of 4096")


def test_a_smaller_record_in_a_file_that_is_not_marked_is_refused(tiny_config: Path, tmp_path: Path) -> None:
    store = synth(str(tiny_config), tmp_path / "store", "q8_0")
    resize(store / "experts.safetensors", lambda size: size - 4096)
    refused(store, "belong to different models")


def test_the_marks_of_a_compressed_file_must_be_those(compressed_store: Path) -> None:
    path = compressed_store / "experts.safetensors"
    intact = path.read_bytes()
    for key, value in (("compression", "lz4"), ("format_version", "4"), ("format_version", "1")):
        rewrite(path, lambda header, key=key, value=value: header["__metadata__"].update({key: value}))  # type: ignore[misc]
        refused(compressed_store, "compression" if key == "compression" else "format_version|different models")
        path.write_bytes(intact)
    rewrite(path, lambda header: header["__metadata__"].pop("compression"))
    refused(compressed_store, "__metadata__ compression: expected zstd, found nothing")


def test_the_safetensors_library_reads_a_compressed_file(compressed_store: Path) -> None:
    from safetensors.numpy import load_file

    store = Store.open(compressed_store)
    tensors = load_file(compressed_store / "experts.safetensors")
    assert [tensors[t.spec.name].nbytes for t in store.experts_file.tensors] == [
        store.stored_bytes(index) for index in range(store.num_experts)
    ]
    stored = tensors["layers.0.experts.2"].tobytes()
    assert zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=True) == read_all(store)[2]
