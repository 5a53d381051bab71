from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from smallthinker.cache.kv_ring import KvKind
from smallthinker.cache.saved_conversations import LEAST_TOKENS
from smallthinker.engine import Engine
from smallthinker.errors import RequestError
from smallthinker.models.description import LongRopeScaling, Rope

RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(0, 256, 60).tolist() for _ in range(3)]


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def ask(store: Path, folder: Path | None, *prompts: list[int], **options: object) -> list[tuple[np.ndarray, int]]:
    """(logits, tokens that needn't be computed) of each prompt, in a run of its own."""
    with Engine(store, kv_dir=folder, **options) as engine:  # type: ignore[arg-type]
        return [engine.prefill(prompt) for prompt in prompts]


def assert_same(found: list[tuple[np.ndarray, int]], wanted: list[tuple[np.ndarray, int]]) -> None:
    for (logits, _), (expected, _) in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(logits.view(np.uint32), expected.view(np.uint32))


def test_a_conversation_goes_on_after_the_next_start_with_the_same_bits(hybrid_store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kv"
    turn = [*PROMPTS[0], 7, 8, 9]
    ask(hybrid_store, folder, PROMPTS[0])
    found = ask(hybrid_store, folder, turn)
    assert found[0][1] == 60
    assert_same(found, ask(hybrid_store, None, turn))
    assert len(files(folder)) == 1  # the longer one holds the shorter one


def test_what_makes_room_is_saved_and_comes_back(hybrid_store: Path, tmp_path: Path) -> None:
    found = ask(hybrid_store, tmp_path, *PROMPTS, PROMPTS[0] + [7])
    assert [reused for _, reused in found] == [0, 0, 0, 60]
    assert_same(found, ask(hybrid_store, None, *PROMPTS, PROMPTS[0] + [7]))


@pytest.mark.parametrize("kv", ["f16", "q8"])
def test_every_kind_of_cache_is_saved(hybrid_store: Path, tmp_path: Path, kv: KvKind) -> None:
    from tiny_models import HYBRID_ATTENTION, make_store, tiny_config

    store, _ = make_store(tiny_config(**HYBRID_ATTENTION, head_dim=32), tmp_path / "wide")
    prompt, folder = RNG.integers(0, 256, 300).tolist(), tmp_path / "kv"
    ask(store, folder, prompt, kv=kv, chunk=16)
    found = ask(store, folder, [*prompt, 1], kv=kv, chunk=16)
    assert found[0][1] == 300
    assert_same(found, ask(store, None, [*prompt, 1], kv=kv, chunk=16))
    for other in ({"kv": "q8" if kv == "f16" else "f16", "chunk": 16}, {"kv": kv, "chunk": 64}):  # other rings
        assert ask(store, folder, [*prompt, 1], **other)[0][1] == 0


def test_keys_that_were_rotated_by_other_factors_are_not_taken(tmp_path: Path) -> None:
    from tiny_models import make_store, tiny_config

    model = replace(tiny_config(), family="described")
    rope = Rope(1e4, 16, scaling=LongRopeScaling((1.0,) * 8, (4.0,) * 8, 100, 1.0))
    layers = tuple(replace(layer, mixer=replace(layer.attention, rope=rope)) for layer in model.layers)
    store, _ = make_store(replace(model, layers=layers), tmp_path / "long")
    turn, folder = [*PROMPTS[0], 7], tmp_path / "kv"
    short, whole = (ask(store, None, turn, context=context) for context in (100, 101))
    assert not np.array_equal(short[0][0], whole[0][0])
    ask(store, folder, PROMPTS[0], context=100)
    found = ask(store, folder, turn, context=101)
    assert found[0][1] == 0
    assert_same(found, whole)
    found = ask(store, folder, turn, context=90)
    assert found[0][1] == 60
    assert_same(found, short)


def test_only_the_owner_may_read_it(hybrid_store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "kv"
    ask(hybrid_store, folder, PROMPTS[0])
    assert stat.S_IMODE(files(folder)[0].stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_another_model_s_files_are_left_alone(hybrid_store: Path, tmp_path: Path) -> None:
    from tiny_models import DENSE_ATTENTION, make_store, tiny_config

    other, _ = make_store(tiny_config(**DENSE_ATTENTION), tmp_path / "other")
    folder = tmp_path / "kv"
    ask(hybrid_store, folder, PROMPTS[0])
    before = files(folder)
    assert ask(other, folder, PROMPTS[0])[0][1] == 0
    assert set(before) < set(files(folder))


def cut(data: bytearray) -> bytearray:
    return data[: len(data) // 2]


def flip(data: bytearray) -> bytearray:
    data[-1000] ^= 1
    return data


def flip_a_token(data: bytearray) -> bytearray:
    data[-1] ^= 128
    return data


def empty(data: bytearray) -> bytearray:
    return bytearray()


def lie_about_length(data: bytearray) -> bytearray:
    return data.replace(b'"written":"60"', b'"written":"99"')


@pytest.mark.parametrize("damage", [cut, flip, flip_a_token, empty, lie_about_length])
def test_a_damaged_file_is_computed_again(
    hybrid_store: Path, tmp_path: Path, damage: Callable[[bytearray], bytearray]
) -> None:
    ask(hybrid_store, tmp_path, PROMPTS[0])
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(damage(bytearray(whole)))
    assert path.read_bytes() != whole
    found = ask(hybrid_store, tmp_path, [*PROMPTS[0], 1])
    assert found[0][1] == 0
    assert_same(found, ask(hybrid_store, None, [*PROMPTS[0], 1]))


def test_the_folder_stays_within_its_bound_and_the_oldest_go_first(hybrid_store: Path, tmp_path: Path) -> None:
    ask(hybrid_store, tmp_path, PROMPTS[0])
    size = files(tmp_path)[0].stat().st_size
    ask(hybrid_store, tmp_path, PROMPTS[1], PROMPTS[2], kv_dir_bytes=2 * size + 100)
    assert len(files(tmp_path)) == 2
    found = [ask(hybrid_store, tmp_path, [*prompt, 1], kv_dir_bytes=2 * size + 100)[0][1] for prompt in PROMPTS[:0:-1]]
    assert found == [60, 60]
    ask(hybrid_store, tmp_path / "small", PROMPTS[0], kv_dir_bytes=size - 1)
    assert files(tmp_path / "small") == []


def test_what_is_short_is_not_worth_a_file(hybrid_store: Path, tmp_path: Path) -> None:
    ask(hybrid_store, tmp_path, PROMPTS[0][: LEAST_TOKENS - 1])
    assert files(tmp_path) == []


def test_a_folder_that_cannot_be_one_is_refused_in_a_line(hybrid_store: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"kv_dir: .*file: expected a folder .* give another one"):
        Engine(hybrid_store, kv_dir=tmp_path / "file")
