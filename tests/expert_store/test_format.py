"""Sizes and tables of the format, against the kernels and the safetensors library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors import safe_open

from smallthinker import _kernels
from smallthinker.errors import ConfigError
from smallthinker.expert_store.format import (
    QUANTS,
    Formats,
    Layout,
    Quant,
    check_quant,
    column_multiple,
    dense_table,
    expert_table,
    num_tensors,
    packed_bytes,
    record_layouts,
)
from smallthinker.expert_store.header import encode_header
from smallthinker.expert_store.store import Store
from smallthinker.models.published import PUBLISHED
from smallthinker.models.registry import parse_model


@given(st.sampled_from(QUANTS), st.sampled_from(["tiles", "rows"]), st.integers(1, 70), st.integers(1, 5))
def test_sizes_are_those_that_the_kernels_pack(quant: Quant, layout: Layout, rows: int, blocks: int) -> None:
    assume(layout == "tiles" or _kernels.has_rows(quant))
    cols = column_multiple(quant) * blocks
    nbytes = packed_bytes(quant, layout, rows, cols)
    assert nbytes == _kernels.packed_bytes(quant, layout, rows, cols)
    if _kernels.can_pack(quant):
        assert nbytes == _kernels.pack(quant, layout, np.zeros((rows, cols), np.float32)).nbytes


def test_an_expert_of_the_4b_model_at_four_bits_fills_its_record_to_the_byte() -> None:
    layout = record_layouts(parse_model(PUBLISHED["4b"]), Formats("q4_0"))[0]
    assert layout is not None
    assert [section.offset for section in layout.sections] == [0, 663_552, 1_327_104]
    assert layout.content_bytes == layout.record_bytes == 1_990_656


def test_behind_a_relu_gate_rows_can_be_skipped_and_elsewhere_down_lies_as_in_files() -> None:
    sparse = record_layouts(parse_model(PUBLISHED["4b"]), Formats("q4_0"))[0]
    dense = record_layouts(parse_model(PUBLISHED["dense-1.5b"]), Formats("q4_0"))[0]
    assert sparse is not None and dense is not None
    assert [(s.layout, s.is_transposed, s.rows, s.cols) for s in sparse.sections] == [
        ("tiles", False, 768, 1536), ("rows", False, 768, 1536), ("rows", True, 768, 1536)
    ]  # fmt: skip
    assert [(s.layout, s.is_transposed, s.rows, s.cols) for s in dense.sections] == [
        ("tiles", False, 1280, 1536), ("tiles", False, 1280, 1536), ("tiles", False, 1536, 1280)
    ]  # fmt: skip


def test_a_format_is_a_tensors_before_it_is_a_roles_before_it_is_the_models() -> None:
    formats = Formats("q4_0", {"down": "q8_0", "layers.1.down": "f16", "lm_head": "bf16"})
    assert [formats.of("down", layer) for layer in range(3)] == ["q8_0", "f16", "q8_0"]
    assert formats.of_experts(1) == ("q4_0", "q4_0", "f16")
    assert (formats.of("lm_head", None), formats.of("router", 0), formats.of("q_proj", 0)) == ("bf16", "f32", "q4_0")


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"norm": "f16"}, "'norm' is no matrix"),
        ({"layers.99.down": "f16"}, "no matrix"),
        ({"down": "q3"}, "found 'q3'"),
    ],
)
def test_formats_of_what_is_no_matrix_are_refused(others: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Formats("q4_0", others).check(parse_model(PUBLISHED["4b"]))


@pytest.mark.parametrize("shape", ["4b", "21b"])
@pytest.mark.parametrize("quant", QUANTS)
def test_tables_have_the_announced_number_of_distinct_aligned_tensors(shape: str, quant: Quant) -> None:
    config = parse_model(PUBLISHED[shape])
    dense, experts = list(dense_table(config, Formats(quant))), list(expert_table(config, Formats(quant)))
    assert len({spec.name for spec in dense}) == len(dense) == num_tensors("dense", config)
    assert len({spec.name for spec in experts}) == len(experts) == num_tensors("experts", config)
    assert all(spec.nbytes % 64 == 0 for spec in dense)
    assert {spec.nbytes % 4096 for spec in experts} == {0}


def test_an_unknown_quantisation_names_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"q4_0, q8_0, .*, q6_k, found 'q9_9'"):
        check_quant("q9_9")


@given(st.integers(0, 20), st.sampled_from([64, 4096]))
def test_data_starts_aligned_and_its_start_depends_on_no_checksum(count: int, to: int) -> None:
    tensors = [(f"t{i}", "U8", (i,)) for i in range(count)]
    headers = [encode_header(tensors, {"crc32": crc}, to) for crc in ("00000000", "ffffffff")]
    assert len(headers[0]) == len(headers[1])
    assert len(headers[0]) % to == 0


def test_the_safetensors_library_opens_both_files(opened: Store) -> None:
    for file in (opened.dense_file, opened.experts_file):
        with safe_open(file.path, "np") as other:
            assert set(other.keys()) == {tensor.spec.name for tensor in file.tensors}
            assert other.metadata()["format_version"] == "1"
            for tensor in file.tensors:
                values: npt.NDArray[np.generic] = other.get_tensor(tensor.spec.name)
                raw = file.path.read_bytes()[tensor.offset : tensor.offset + tensor.spec.nbytes]
                assert values.tobytes() == raw


def test_every_record_starts_on_a_page_and_every_dense_tensor_on_a_cache_line(opened: Store) -> None:
    assert {tensor.offset % 4096 for tensor in opened.experts_file.tensors} == {0}
    assert {tensor.offset % 64 for tensor in opened.dense_file.tensors} == {0}
    for name in opened.dense_names():
        assert opened.dense(name).ctypes.data % 64 == 0
    offsets = [tensor.offset for tensor in opened.experts_file.tensors]
    assert offsets == [opened.record_offset(index) for index in range(opened.num_experts)]


def test_padding_of_tensors_is_zero(tiny_store: Path) -> None:
    store = Store.open(tiny_store)
    for file in (store.dense_file, store.experts_file):
        raw = file.path.read_bytes()
        for tensor in file.tensors:
            assert not any(raw[tensor.offset + tensor.spec.content_bytes : tensor.offset + tensor.spec.nbytes])
