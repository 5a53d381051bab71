"""A store's predictor: what is saved is loaded, what is not of this store is refused, and no output depends on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallthinker import _kernels
from smallthinker.engine import Engine
from smallthinker.errors import StoreFormatError, StoreWriteError
from smallthinker.expert_store.format import PREDICTOR_FILE
from smallthinker.expert_store.header import encode_header
from smallthinker.expert_store.store import Store
from smallthinker.router.predictor import (
    FINAL,
    QUANT,
    Predictor,
    Predictors,
    find_predictor,
    matrix_bytes,
    possible_pairs,
    routers_checksum,
    save_predictor,
)


def random_predictors(store: Store, seed: int) -> Predictors:
    rng = np.random.default_rng(seed)
    shape = store.config.experts_per_layer, store.config.hidden_size
    found = {}
    for pair in possible_pairs(store.config):
        matrix = _kernels.pack(QUANT, "tiles", rng.standard_normal(shape).astype(np.float32))
        found[pair] = Predictor(matrix, rng.standard_normal(shape[0]).astype(np.float32))
    return found


@pytest.fixture(scope="module")
def late_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a tiny model whose routers read what attention gives."""
    from tiny_models import HYBRID_ATTENTION, behind_attention, make_store, tiny_config

    config = behind_attention(tiny_config(**HYBRID_ATTENTION))
    return make_store(config, tmp_path_factory.mktemp("late"), "q4_0")[0]


@pytest.fixture
def store_folder(hybrid_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(hybrid_store, tmp_path / "store"))


def test_pairs_lead_one_layer_on_and_over_a_layers_own_attention_where_its_router_stands_behind_it() -> None:
    from tiny_models import behind_attention, tiny_config

    config = tiny_config()
    assert possible_pairs(config) == [(FINAL, 0), (0, 1), (1, 2)]
    assert possible_pairs(behind_attention(config)) == [(FINAL, 0), (0, 0), (0, 1), (1, 1), (1, 2), (2, 2)]


@pytest.mark.parametrize("left_out", [[], [(FINAL, 0)], [(0, 1), (3, 3)]])
def test_what_is_saved_is_loaded(late_store: Path, tmp_path: Path, left_out: list[tuple[int, int]]) -> None:
    folder = Path(shutil.copytree(late_store, tmp_path / "store"))
    with Store.open(folder) as store:
        assert find_predictor(store) is None
        predictors = random_predictors(store, 0)
        for pair in left_out:
            del predictors[pair]
        save_predictor(store, predictors)
        found = find_predictor(store)
        assert found is not None
        loaded = found.load()
        assert list(loaded) == [pair for pair in possible_pairs(store.config) if pair not in left_out]
        for pair, (matrix, offset) in predictors.items():
            assert np.array_equal(loaded[pair].matrix, matrix) and np.array_equal(loaded[pair].offset, offset)
        assert found.nbytes >= sum(matrix.nbytes + offset.nbytes for matrix, offset in loaded.values())
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


def test_of_a_file_of_version_2_the_matrices_that_lead_one_layer_on_are_loaded(store_folder: Path) -> None:
    with Store.open(store_folder) as store:
        layers, size = store.config.num_layers, matrix_bytes(store.config, 0)
        stride = -(-size // 64) * 64
        order = [(s, s + d) for s in range(FINAL, layers) for d in (1, 2) if s + d < layers]
        names = ["final.to." + str(t) if s == FINAL else f"layers.{s}.to.{t}" for s, t in order]
        metadata = {"format": "smallthinker-predictor", "format_version": "2", "routers": routers_checksum(store)}
        body = np.random.default_rng(5).integers(0, 256, (len(order), stride)).astype(np.uint8)
        header = encode_header([(name, "U8", (stride,)) for name in names], metadata, 64)
        (store_folder / PREDICTOR_FILE).write_bytes(header + body.tobytes())
        found = find_predictor(store)
        assert found is not None and found.nbytes >= layers * stride
        loaded = found.load()
        assert list(loaded) == possible_pairs(store.config)
    for pair, row in zip(order, body, strict=True):
        assert pair not in loaded or np.array_equal(loaded[pair].matrix, row[:size])
    assert not any(offset.any() for _, offset in loaded.values())


def test_a_predictor_of_other_routers_is_refused(store_folder: Path, tmp_path: Path) -> None:
    from tiny_models import HYBRID_ATTENTION, make_store, tiny_config

    other, _ = make_store(tiny_config(**HYBRID_ATTENTION), tmp_path / "other", "q8_0", seed=9)
    with Store.open(other) as store:
        file = save_predictor(store, random_predictors(store, 0))
    shutil.copy(file, store_folder)
    with pytest.raises(StoreFormatError, match=r"routers: expected .* found .*`smallthinker calibrate --force`"):
        Engine(store_folder, max_slots=4)
    Engine(store_folder, max_slots=4, predictor=False).close()
    Engine(store_folder, max_slots=4, look_ahead=False).close()


def test_a_predictor_serves_the_same_model_in_another_format(hybrid_store: Path, tmp_path: Path) -> None:
    from tiny_models import HYBRID_ATTENTION, make_store, tiny_config

    other, _ = make_store(tiny_config(**HYBRID_ATTENTION), tmp_path / "other", "q8_0")
    folder = Path(shutil.copytree(hybrid_store, tmp_path / "store"))
    with Store.open(other) as store:
        shutil.copy(save_predictor(store, random_predictors(store, 0)), folder)
    Engine(folder, max_slots=4).close()


def _change(file: Path, edit: Any) -> None:
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    body = edit(header, raw[8 + length :])
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    file.write_bytes(len(text).to_bytes(8, "little") + text + body)


def _renamed(header: dict[str, Any], body: bytes) -> bytes:
    header["layers.0.to.7"] = header.pop("layers.0.to.1")
    return body


def _other_version(header: dict[str, Any], body: bytes) -> bytes:
    header["__metadata__"]["format_version"] = "1"
    return body


def _none(header: dict[str, Any], body: bytes) -> bytes:
    for name in [name for name in header if name != "__metadata__"]:
        del header[name]
    return b""


def _other_order(header: dict[str, Any], body: bytes) -> bytes:
    header["layers.0.to.1"], header["layers.1.to.2"] = header["layers.1.to.2"], header["layers.0.to.1"]
    return body


def _other_dtype(header: dict[str, Any], body: bytes) -> bytes:
    header["final.to.0"]["dtype"] = "I8"
    return body


def _other_size(header: dict[str, Any], body: bytes) -> bytes:
    entries = sorted((h for n, h in header.items() if n != "__metadata__"), key=lambda entry: entry["data_offsets"])
    entries[-1]["shape"][0] += 64
    entries[-1]["data_offsets"][1] += 64
    return body + bytes(64)


@pytest.mark.parametrize("edit", [_renamed, _other_version, _none, _other_order, _other_dtype, _other_size])
def test_what_contradicts_the_store_is_refused_with_path_and_remedy(store_folder: Path, edit: Any) -> None:
    with Store.open(store_folder) as store:
        file = save_predictor(store, random_predictors(store, 0))
        _change(file, edit)
        with pytest.raises(StoreFormatError, match=r"expected .* found .*; make it again") as e:
            find_predictor(store)
        assert str(file) in str(e.value)


@pytest.mark.parametrize("keep", [0, 7, 8, 100, -1])
def test_a_file_cut_short_is_refused(store_folder: Path, keep: int) -> None:
    with Store.open(store_folder) as store:
        file = save_predictor(store, random_predictors(store, 0))
        file.write_bytes(file.read_bytes()[:keep])
        with pytest.raises(StoreFormatError, match="make it again"):
            find_predictor(store)


def test_a_folder_that_cannot_be_written_is_named(store_folder: Path) -> None:
    with Store.open(store_folder) as store:
        (store_folder / PREDICTOR_FILE).mkdir()
        with pytest.raises(StoreWriteError, match="cannot write the predictor"):
            save_predictor(store, random_predictors(store, 0))
    assert [p.name for p in store_folder.iterdir() if p.name.startswith(".")] == []


@given(seed=st.integers(0, 99), slots=st.sampled_from([2, 3, 5, 12, 31]), damage=st.booleans(), late=st.booleans())
@settings(max_examples=20)
def test_no_bit_of_an_output_depends_on_a_predictor(
    hybrid_store: Path,
    late_store: Path,
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    slots: int,
    damage: bool,
    late: bool,
) -> None:
    store_path = late_store if late else hybrid_store
    folder = Path(shutil.copytree(store_path, tmp_path_factory.mktemp("bits") / "store"))
    tokens = np.random.default_rng(seed).integers(0, 256, 30).tolist()

    def run(**options: Any) -> list[np.ndarray]:
        with Engine(folder, max_slots=slots, **options) as engine:
            logits = [engine.prefill(tokens[:5])[0], *(engine.decode(token) for token in tokens[5:])]
            has_predictor = engine._forward.look_ahead is not None and engine._forward.look_ahead._next_token
            assert has_predictor == ((folder / PREDICTOR_FILE).exists() and options == {})
            return logits

    expected = run(look_ahead=False)
    with Store.open(folder) as store:
        predictors = random_predictors(store, seed)
        if damage:  # scales of NaN and infinity among them
            rng = np.random.default_rng(seed)
            for pair, (matrix, offset) in predictors.items():
                noise = rng.integers(0, 256, matrix.nbytes + offset.nbytes, np.uint8)
                predictors[pair] = Predictor(noise[: matrix.nbytes], noise[matrix.nbytes :].view(np.float32))
        save_predictor(store, predictors)
    for found, wanted in zip(run(), expected, strict=True):
        assert np.array_equal(found.view(np.uint32), wanted.view(np.uint32))


def test_the_memory_plan_counts_a_predictor_that_is_used(store_folder: Path) -> None:
    with Engine(store_folder, max_slots=4) as engine:
        without = engine.plan.dense_bytes
    with Store.open(store_folder) as store:
        save_predictor(store, random_predictors(store, 0))
        found = find_predictor(store)
        assert found is not None
    with Engine(store_folder, max_slots=4) as engine:
        assert engine.plan.dense_bytes == without + found.nbytes
    with Engine(store_folder) as engine:  # everything fits: nothing to guess
        assert engine.plan.dense_bytes == without
