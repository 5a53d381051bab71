"""Sizes and tables of the format, against the kernels and the safetensors library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from smallthinker import _kernels
from smallthinker.errors import ConfigError
from smallthinker.expert_store.format import (
    QUANTS,
    Layout,
    Quant,
    RecordLayout,
    align,
    check_quant,
    dense_table,
    expert_table,
    num_tensors,
    packed_bytes,
)
from smallthinker.expert_store.header import encode_header
from smallthinker.expert_store.store import Store
from smallthinker.expert_store.synthetic.published import PUBLISHED
from smallthinker.models.families import parse_model


@given(st.sampled_from(QUANTS), st.sampled_from(["tiles", "rows"]), st.integers(1, 70), st.integers(1, 5))
def test_sizes_are_those_that_the_kernels_pack(quant: Quant, layout: Layout, rows: int, blocks: int) -> None:
    packed = _kernels.pack(quant, layout, np.zeros((rows, 32 * blocks), np.float32))
    assert packed.nbytes == packed_bytes(quant, layout, rows, 32 * blocks)


@given(st.sampled_from(QUANTS), st.integers(1, 20), st.integers(1, 20))
def test_records_are_laid_out_as_the_kernels_read_them(quant: Quant, hidden_blocks: int, ffn_blocks: int) -> None:
    layout = RecordLayout.of(quant, 32 * hidden_blocks, 32 * ffn_blocks)
    sections = _kernels.record_sections((quant,) * 3, 32 * hidden_blocks, 32 * ffn_blocks, "relu", True)
    assert [0, layout.up_offset, layout.down_offset] == [section.offset for section in sections]
    assert layout.record_bytes == align(
        sections[-1].offset + sections[-1].nbytes, 4096
    )  # the kernels don't know about pages


def test_an_expert_of_the_4b_model_at_four_bits_fills_its_record_to_the_byte() -> None:
    assert RecordLayout.of("q4_0", 1536, 768) == RecordLayout(663_552, 1_327_104, 1_990_656, 1_990_656)


@pytest.mark.parametrize("shape", ["4b", "21b"])
@pytest.mark.parametrize("quant", QUANTS)
def test_tables_have_the_announced_number_of_distinct_aligned_tensors(shape: str, quant: Quant) -> None:
    config = parse_model(PUBLISHED[shape])
    dense, experts = list(dense_table(config, quant)), list(expert_table(config, quant))
    assert len({spec.name for spec in dense}) == len(dense) == num_tensors("dense", config)
    assert len({spec.name for spec in experts}) == len(experts) == num_tensors("experts", config)
    assert all(spec.nbytes % 64 == 0 for spec in dense)
    assert {spec.nbytes % 4096 for spec in experts} == {0}


def test_an_unknown_quantisation_names_the_choices() -> None:
    with pytest.raises(ConfigError, match="q4_0, q8_0, f16, f32, found 'q5_k'"):
        check_quant("q5_k")


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
