from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_config

from smallthinker import LLM, _kernels, lossy_head
from smallthinker.engine import Engine
from smallthinker.errors import CheckpointError, RequestError
from smallthinker.lossy_head import CHECK_EVERY, FEWEST_ROWS, HeadCounters, HeadPredictor, LossyHead
from smallthinker.models.description import Head

CONFIG = tiny_config()
D, V, H = CONFIG.hidden_size, CONFIG.vocab_size, 32
PROMPT = list(b"Once upon a time there was")


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def write(path: Path, **changes: Any) -> Path:
    state = {"fc1.weight": normal(0, H, D) / 8, "fc2.weight": normal(1, V, H) / 6} | changes
    torch.save({name: value for name, value in state.items() if value is not None}, path)
    return path


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores around zero: of 300 rows, about half."""
    return write(tmp_path_factory.mktemp("predictor") / "model_lm_head.pt")


def test_logits_that_are_no_plain_products_are_refused(predictor: Path) -> None:
    for head in (Head(True, scale=0.5), Head(True, softcap=30.0), Head(False, bias=True)):
        with pytest.raises(CheckpointError, match="expected a model whose logits are plain products"):
            HeadPredictor(predictor, replace(CONFIG, head=head))


def lossy(predictor: Path, threshold: float, vocab_seed: int = 2) -> tuple[LossyHead, Any]:
    """A head over random rows, and the same rows as `linear` takes them."""
    pool = _kernels.ThreadPool(2)
    rows = _kernels.pack("q8_0", "tiles", normal(vocab_seed, V, D).numpy())
    return LossyHead(HeadPredictor(predictor, CONFIG), pool, CONFIG, "q8_0", rows, threshold), (pool, rows)


def exact(head: Any, h: np.ndarray) -> np.ndarray:
    pool, rows = head
    out = np.empty((len(h), V), np.float32)
    _kernels.linear(pool, "q8_0", rows, V, D, h, out)
    return out


def scores(predictor: Path, h: np.ndarray) -> np.ndarray:
    state = torch.load(predictor, weights_only=True)
    return np.asarray(h @ state["fc1.weight"].numpy().T @ state["fc2.weight"].numpy().T)


def test_rows_that_score_above_the_threshold_have_their_exact_logits_and_the_rest_none(predictor: Path) -> None:
    h = normal(3, 5, D).numpy()
    head, rows = lossy(predictor, 1.0)
    logits = head.logits(h)
    computed = np.isfinite(logits)
    np.testing.assert_array_equal(logits[computed], exact(rows, h)[computed])
    assert (logits[~computed] == -np.inf).all()
    expected = scores(predictor, h)
    margin = 0.3 * np.abs(expected).max()  # q4_0 of both matrices
    assert computed[expected > 1 + margin].all()
    groups = np.pad(expected, ((0, 0), (0, -V % 16)), constant_values=-np.inf).reshape(5, -1, 16).max(axis=2)
    assert not np.repeat(groups < 1 - margin, 16, axis=1)[:, :V][computed].any()
    assert 0 < computed.sum() < computed.size


def test_a_token_has_the_same_logits_alone_and_in_company(predictor: Path) -> None:
    h = normal(3, 5, D).numpy()
    together = lossy(predictor, 0.5)[0].logits(h)
    for t in range(5):
        np.testing.assert_array_equal(lossy(predictor, 0.5)[0].logits(h[t : t + 1])[0], together[t])


def test_a_threshold_that_nothing_reaches_leaves_the_best_rows(predictor: Path) -> None:
    h = normal(3, 1, D).numpy()
    logits = lossy(predictor, 1e30)[0].logits(h)[0]
    best = np.argsort(-scores(predictor, h)[0])[:8]
    assert np.isfinite(logits[best]).all()
    assert FEWEST_ROWS <= np.isfinite(logits).sum() < V


def test_a_nan_is_seen_and_not_hidden_behind_the_skipped_rows(predictor: Path) -> None:
    assert np.isnan(lossy(predictor, 0.0)[0].logits(np.full((1, D), np.nan, np.float32))).any()


def run(store: Path, **options: Any) -> list[np.ndarray]:
    with Engine(store, **options) as engine:
        return [engine.prefill(PROMPT)[0], *(engine.decode(token) for token in (7, 8, 9))]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_models import make_store

    return make_store(CONFIG, tmp_path_factory.mktemp("lossy"), "q4_0")[0]


def test_a_threshold_that_everything_passes_gives_the_exact_bits(store: Path, predictor: Path) -> None:
    for found, expected in zip(run(store, lossy_head=predictor, lossy_threshold=-1e30), run(store), strict=True):
        np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_lossy_logits_are_the_same_bits_whatever_the_memory_threads_and_chunks(
    store: Path, predictor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lossy_head, "FEWEST_ROWS", 8)  # 64 of this few rows are in nearly every group of 16
    lossy_options: dict[str, Any] = {"lossy_head": predictor, "lossy_threshold": 2.0}
    baseline = run(store, threads=1, **lossy_options)
    assert any(np.isinf(logits).any() for logits in baseline)
    for options in ({"threads": 3, "max_slots": 2}, {"chunk": 1}, {"chunk": 7, "reader": "mmap", "prefetch": False}):
        for found, expected in zip(run(store, **lossy_options, **options), baseline, strict=True):
            np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_the_figures_say_what_was_computed_and_how_often_it_was_right(predictor: Path) -> None:
    head, rows = lossy(predictor, 0.0)
    h = normal(3, 2 * CHECK_EVERY + 1, D).numpy()
    agree = head.logits(h).argmax(axis=1) == exact(rows, h).argmax(axis=1)
    counters = head.counters()
    assert (counters.tokens, counters.rows_total, counters.checked) == (len(h), len(h) * V, 3)
    assert counters.agreed == agree[::CHECK_EVERY].sum()
    assert 0 < counters.rows_chosen < counters.rows_computed <= counters.rows_total
    assert counters - counters == HeadCounters()


def test_the_predictors_memory_is_in_the_plan(store: Path, predictor: Path) -> None:
    with Engine(store) as exact_engine, Engine(store, lossy_head=predictor) as engine:
        packed = sum(_kernels.packed_bytes("q4_0", "tiles", rows, cols) for rows, cols in ((H, D), (V, H)))
        assert engine.plan.dense_bytes == exact_engine.plan.dense_bytes + packed


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fc1.weight": None}, "found fc2.weight"),
        ({"fc1.bias": normal(0, H, 1)}, "no others"),
        ({"fc1.weight": normal(0, H, D + 32)}, f"found [{H}, {D + 32}]"),
        ({"fc2.weight": normal(0, V - 1, H)}, f"fc2 [{V}, H]"),
        ({"fc2.weight": normal(0, V, 2 * H)}, f"[{V}, {2 * H}]"),
        ({"fc1.weight": normal(0, 16, D), "fc2.weight": normal(0, V, 16)}, "multiple of 32"),
        ({"fc1.weight": normal(0, 96, D), "fc2.weight": normal(0, V, 96)}, f"up to {D}"),
        ({"fc1.weight": normal(0, 0, D), "fc2.weight": normal(0, V, 0)}, "fc2.weight"),
    ],
)
def test_a_predictor_of_another_model_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError) as error:
        HeadPredictor(write(tmp_path / "other.pt", **changes), CONFIG)
    assert said in str(error.value) and "other.pt" in str(error.value)


def test_names_without_weight_and_other_types_are_read_too(tmp_path: Path, predictor: Path) -> None:
    state = torch.load(predictor, weights_only=True)
    torch.save({name.removesuffix(".weight"): w.half() for name, w in state.items()}, tmp_path / "short.pt")
    for short, long in zip(
        HeadPredictor(tmp_path / "short.pt", CONFIG).load(), HeadPredictor(predictor, CONFIG).load(), strict=True
    ):
        assert np.mean(short != long) < 0.05  # float16 moves few of the 4-bit weights


def test_a_threshold_that_is_no_number_or_for_nothing_is_refused(store: Path, predictor: Path) -> None:
    with pytest.raises(RequestError, match="lossy_threshold"):
        Engine(store, lossy_head=predictor, lossy_threshold=float("nan"))
    with pytest.raises(RequestError, match="without lossy_head"):
        Engine(store, lossy_threshold=-2.0)


def test_it_is_off_unless_asked_for_and_named_lossy(store: Path, predictor: Path) -> None:
    options: Any = {"max_tokens": CHECK_EVERY + 2, "ignore_eos": True, "seed": 0}
    with LLM(store) as llm:
        stats = llm.generate("Once", **options).stats
        assert stats.lossy_head is None and "lossy" not in stats.line()
    with LLM(store, lossy_head=predictor) as llm:
        llm.generate("Once", **options)
        stats = llm.generate("Once", **options).stats
    assert stats.lossy_head is not None and "lossy head" in stats.line()
    assert stats.to_dict()["lossy_head"]["tokens"] == stats.lossy_head.tokens == CHECK_EVERY + 2
    assert stats.lossy_head.checked in (1, 2)


def test_the_command_says_lossy_and_never_imports_torch(store: Path, predictor: Path, tmp_path: Path) -> None:
    program = "import sys; from smallthinker.cli import main; code = main(); sys.exit(code or 'torch' in sys.modules)"
    command = [
        sys.executable,
        "-c",
        program,
        "run",
        "-m",
        str(store),
        "--max-tokens",
        "3",
        "--seed",
        "1",
        "--lossy-head",
    ]
    result = subprocess.run([*command, str(predictor), "x"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "lossy head" in result.stderr
    result = subprocess.run([*command, str(store / "config.json"), "x"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and "config.json" in result.stderr
    helped = subprocess.run([*command[:3], "run", "--help"], capture_output=True, text=True, check=False)
    assert "LOSSY" in helped.stdout
