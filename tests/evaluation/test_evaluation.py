"""Perplexity and comparisons by the engine agree with the torch reference and with plain sums over all logits."""

from __future__ import annotations

import json
import math
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from forked_command import smallthinker
from tiny_models import HYBRID_ATTENTION, make_store, tiny_config

from smallthinker.calibration.tracing import run_observed
from smallthinker.cli import main
from smallthinker.engine import Engine
from smallthinker.errors import CheckpointError, RequestError, StoreWriteError
from smallthinker.evaluation import evaluate as evaluation
from smallthinker.evaluation.evaluate import compare, perplexity
from smallthinker.evaluation.results import Perplexity
from smallthinker.expert_store.convert import convert
from smallthinker.forward import Observers
from smallthinker.options import EngineOptions

if TYPE_CHECKING:
    from smallthinker.reference import ReferenceModel

TEXT = "It was the best of times, it was the wörst of times; it was the age of wisdom €."  # bytes are tokens
CONTEXT, STRIDE = 32, 12
OPTIONS = EngineOptions(context=CONTEXT)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], ReferenceModel]:
    """One model in f16 and in q4_0, and in torch; its heads are large enough for a KV cache of 8 bits."""
    folder = tmp_path_factory.mktemp("evaluated")
    f16, model = make_store(tiny_config(**HYBRID_ATTENTION, head_dim=32), folder, "f16")
    return {"f16": f16, "q4_0": convert(folder / "checkpoint", folder / "q4_0", "q4_0")}, model


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("predictor") / "model_lm_head.pt"
    make = torch.Generator().manual_seed(0)
    torch.save(
        {"fc1.weight": torch.randn(32, 64, generator=make), "fc2.weight": torch.randn(300, 32, generator=make)}, path
    )
    return path


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def windows_of(count: int) -> list[tuple[int, int, int]]:
    """(begin, end, first scored) of each window over `count` tokens, written down anew."""
    found, done = [], 1
    end = min(CONTEXT, count - 1)
    while True:
        found.append((max(0, end - CONTEXT), end, done))
        done = end + 1
        if end == count - 1:
            return found
        end = min(end + STRIDE, count - 1)


def all_log_probabilities(store: Path, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """log-probabilities [N, V] at the scored places, and the tokens [N] there, from whole logits."""
    rows, targets = [], []
    with Engine(store, context=CONTEXT, **options) as engine:
        ids = engine.tokenizer.encode(TEXT)
        for begin, end, done in windows_of(len(ids)):
            rows.append(log_softmax(engine.all_logits(ids[begin:end]))[done - 1 - begin :])
            targets += ids[done : end + 1]
    return np.concatenate(rows), np.array(targets)


def test_perplexity_is_that_of_the_torch_reference(stores: tuple[dict[str, Path], ReferenceModel]) -> None:
    found = perplexity(stores[0]["f16"], TEXT, OPTIONS, stride=STRIDE)
    with Engine(stores[0]["f16"], context=CONTEXT) as engine:
        ids = engine.tokenizer.encode(TEXT)
    nats = []
    for begin, end, done in windows_of(len(ids)):
        with torch.no_grad():
            logits = stores[1](torch.tensor([ids[begin:end]]))[0][0].numpy()
        p = log_softmax(logits)[done - 1 - begin :]
        nats += (-p[np.arange(len(p)), ids[done : end + 1]]).tolist()
    assert found.tokens == len(ids) - 1 == len(nats)
    assert found.text_bytes == len(TEXT.encode()) - 1
    assert found.nats_per_token == pytest.approx(np.mean(nats), rel=2e-3)
    assert found.perplexity == pytest.approx(math.exp(np.mean(nats)), rel=1e-2)
    assert found.bits_per_byte == pytest.approx(np.sum(nats) / math.log(2) / (len(TEXT.encode()) - 1), rel=2e-3)
    assert found.nats_error == pytest.approx(np.std(nats, ddof=1) / math.sqrt(len(nats)), rel=2e-2)


def test_a_comparison_is_that_of_all_logits(stores: tuple[dict[str, Path], ReferenceModel]) -> None:
    found = compare(stores[0]["q4_0"], stores[0]["f16"], TEXT, OPTIONS, stride=STRIDE)
    (q, targets), (p, _) = (all_log_probabilities(stores[0][quant]) for quant in ("q4_0", "f16"))
    here = np.arange(len(targets)), targets
    kl = (np.exp(p) * (p - q)).sum(1)
    assert found.store.nats == pytest.approx(-q[here].sum(), rel=1e-9)
    assert found.reference.nats == pytest.approx(-p[here].sum(), rel=1e-9)
    assert found.kl_mean == pytest.approx(kl.mean(), rel=1e-6)
    assert found.kl_median == pytest.approx(np.median(kl), rel=1e-6)
    assert found.kl_p99 == pytest.approx(np.quantile(kl, 0.99), rel=1e-6)
    assert found.kl_max == pytest.approx(kl.max(), rel=1e-6)
    assert found.top1_agreement == pytest.approx((p.argmax(1) == q.argmax(1)).mean())
    assert found.nats_difference == pytest.approx((p[here] - q[here]).mean(), rel=1e-6)
    assert found.lost == 0
    assert 0.001 < found.kl_mean < 1 and found.top1_agreement < 1  # a quantisation costs something


def test_a_store_does_not_differ_from_itself(stores: tuple[dict[str, Path], ReferenceModel]) -> None:
    found = compare(stores[0]["q4_0"], stores[0]["q4_0"], TEXT, OPTIONS, stride=STRIDE)
    assert (found.kl_mean, found.kl_max, found.top1_agreement, found.nats_difference) == (0, 0, 1, 0)
    assert found.store == found.reference == perplexity(stores[0]["q4_0"], TEXT, OPTIONS, stride=STRIDE)


def test_a_kv_cache_of_8_bits_has_its_price_and_only_the_store_pays_it(
    stores: tuple[dict[str, Path], ReferenceModel],
) -> None:
    store = stores[0]["q4_0"]
    found = compare(store, store, TEXT, replace(OPTIONS, kv="q8"), stride=STRIDE)
    assert found.reference == perplexity(store, TEXT, OPTIONS, stride=STRIDE)
    assert found.store == perplexity(store, TEXT, replace(OPTIONS, kv="q8"), stride=STRIDE)
    assert 0 < found.kl_mean < 0.1


def test_figures_are_the_same_whatever_the_memory_and_the_threads(
    stores: tuple[dict[str, Path], ReferenceModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stores[0]["q4_0"]
    whole = perplexity(store, TEXT, OPTIONS, stride=STRIDE)
    assert perplexity(store, TEXT, replace(OPTIONS, threads=1, reader="buffered"), stride=STRIDE) == whole
    monkeypatch.setattr("smallthinker.engine.CHUNKS", (5,))
    assert perplexity(store, TEXT, OPTIONS, stride=STRIDE) == whole


def test_a_lossy_head_that_misses_a_token_makes_perplexity_infinite_and_says_how_many(
    stores: tuple[dict[str, Path], ReferenceModel], predictor: Path
) -> None:
    store, options = stores[0]["q4_0"], replace(OPTIONS, lossy_head=predictor, lossy_threshold=1e30)
    alone = perplexity(store, TEXT, options, stride=STRIDE)
    q, targets = all_log_probabilities(store, lossy_head=predictor, lossy_threshold=1e30)
    missed = np.isneginf(q[np.arange(len(targets)), targets]).sum()
    assert alone.missed == missed > 0
    assert alone.perplexity == math.inf and alone.to_dict()["perplexity"] is None
    assert f"{missed} of {alone.tokens}" in alone.text()
    found = compare(store, store, TEXT, options, stride=STRIDE)
    p, _ = all_log_probabilities(store)
    assert found.store == alone and found.reference.missed == 0
    assert found.lost == pytest.approx(np.exp(p)[np.isneginf(q)].sum() / len(p), rel=1e-6)
    assert found.kl_max == pytest.approx(0, abs=1e-9)  # what it keeps is exact
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["nats_difference"] is None


def test_a_store_of_another_vocabulary_is_refused(
    stores: tuple[dict[str, Path], ReferenceModel], tmp_path: Path
) -> None:
    other, _ = make_store(tiny_config(vocab_size=320, bos_token_id=3, eos_token_id=[3]), tmp_path)
    with pytest.raises(RequestError, match="two stores of one model"):
        compare(other, stores[0]["f16"], TEXT)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_no_room_for_the_states_is_an_error_that_says_where(
    stores: tuple[dict[str, Path], ReferenceModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "TemporaryFile", partial(Path("/dev/full").open, "r+b"))
    with pytest.raises(StoreWriteError, match=r"cannot keep the states.*TMPDIR"):
        compare(stores[0]["q4_0"], stores[0]["q4_0"], TEXT, OPTIONS, stride=STRIDE)


def test_a_wrong_switch_is_found_before_anything_is_computed(
    stores: tuple[dict[str, Path], ReferenceModel], tmp_path: Path
) -> None:
    seen: list[int] = []
    options = EngineOptions(lossy_head=tmp_path / "nowhere.pt")
    with pytest.raises(CheckpointError, match="nowhere"):
        compare(stores[0]["f16"], stores[0]["f16"], TEXT, options, progress=lambda *_: seen.append(1))
    assert not seen


def test_a_model_that_is_worse_than_a_number_can_say_is_infinitely_bad() -> None:
    assert Perplexity(10, 10, 8, 4, 1e5, 1.0).perplexity == math.inf
    assert Perplexity(10, 10, 8, 4, 1e5, 1.0).to_dict()["perplexity"] is None


@pytest.mark.parametrize("references", [0, 1])
def test_progress_counts_to_its_total(stores: tuple[dict[str, Path], ReferenceModel], references: int) -> None:
    measure: Any = compare if references else perplexity
    seen: list[tuple[int, int]] = []
    paths = [stores[0]["q4_0"]] * (1 + references)
    measure(*paths, TEXT, OPTIONS, stride=STRIDE, progress=lambda done, total, what: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1][0] == seen[-1][1] and len({total for _, total in seen}) == 1


def test_observers_are_gone_after_a_run_even_a_failed_one(hybrid_store: Path) -> None:
    seen: list[int] = []
    with Engine(hybrid_store, context=8) as engine:
        run_observed(engine, [[1, 2], [1, 2, 3]], Observers(final=lambda x: seen.append(len(x))))
        assert seen == [2, 3]  # each from an empty context
        with pytest.raises(RequestError):
            run_observed(engine, [[1], [10**6]], Observers(final=lambda x: seen.append(len(x))))
        engine.prefill([1, 2, 3])
    assert seen == [2, 3, 1]


def run_eval(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return smallthinker("eval", *args)


def test_the_commands_print_figures_and_nothing_else(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(b"The sea was calm.\r\nIt was a ship.\r\n" * 3)
    alone = run_eval("perplexity", "--text", text, "--context", 16, "--json")
    assert (alone.returncode, alone.stderr) == (0, "")
    figures = json.loads(alone.stdout)
    assert figures["context"] == 16 and figures["stride"] == 8
    assert text.stat().st_size - 4 <= figures["text_bytes"] < text.stat().st_size  # all but the first token
    both = run_eval("compare", "--text", text, "--kv", "q8", "--tokens", 20)
    assert (both.returncode, both.stderr) == (0, "")
    assert "KL(reference || store)" in both.stdout and "19 tokens" in both.stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["perplexity", "nowhere", "--text", __file__], "no model of that name"),
        (["perplexity", "--text", "nowhere"], "another --text"),
        (["perplexity", "--text", __file__, "--stride", "0"], "--stride: expected 1 to"),
        (["compare", "--text", __file__, "--context", "5000"], "--context: this model takes 1 to 1024"),
        ([], "MEASURE"),
    ],
)
def test_wrong_input_is_one_clear_line(args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["eval", *args])
    except SystemExit as e:  # argparse's own
        code = int(e.code or 0)
    out, err = capsys.readouterr()
    assert code == 2 and out == ""
    assert len(err.splitlines()) == 1 and said in err
