"""Likelihoods and divergences from logits that come in blocks: known values, and numpy over the whole vocabulary."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallthinker import _kernels
from smallthinker.evaluation import scoring
from smallthinker.evaluation.scoring import Differences, ScoringHead, differences, likelihoods
from smallthinker.expert_store.store import Store


class Given:
    """A head whose logits are the states themselves."""

    def __init__(self, block: int, strip_tokens: int = 512) -> None:
        self.block, self.strip_tokens = block, strip_tokens

    def blocks(self, x: np.ndarray) -> Iterator[np.ndarray]:
        assert len(x) <= self.strip_tokens
        for first in range(0, x.shape[1], self.block):
            yield x[:, first : first + self.block].astype(np.float64)


def scores(logits: list[list[float]] | np.ndarray, targets: list[int] | np.ndarray, head: Given) -> np.ndarray:
    return likelihoods(cast(ScoringHead, head), np.array(logits, np.float32), np.array(targets, np.int64))


def compared(store: np.ndarray, reference: np.ndarray, targets: np.ndarray, head: Given) -> Differences:
    return differences(
        cast(ScoringHead, head),
        store.astype(np.float32),
        cast(ScoringHead, head),
        reference.astype(np.float32),
        targets,
    )


def log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x.astype(np.float32).astype(np.float64)
    shifted -= shifted.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


@pytest.mark.parametrize("block", [1, 2, 7])
def test_known_likelihoods(block: int) -> None:
    nats = scores([[0, 0, 0, 0], [0, math.log(3), -math.inf, -math.inf]], [2, 1], Given(block))
    assert nats == pytest.approx([math.log(4), math.log(4 / 3)], rel=1e-6)


def test_known_divergences() -> None:
    even, uneven = np.zeros((1, 2)), np.array([[0, math.log(3)]])
    found = compared(uneven, even, np.array([0]), Given(1))
    assert found.kl[0] == pytest.approx(math.log(2 / math.sqrt(3)), rel=1e-6)  # of (1/2, 1/2) from (1/4, 3/4)
    assert found.nats[0] == pytest.approx(math.log(4), rel=1e-6)
    assert found.reference_nats[0] == pytest.approx(math.log(2), rel=1e-6)
    assert not found.agrees[0]  # of equal ones, the first is the likeliest
    assert found.lost[0] == 0


@given(seed=st.integers(0, 2**32 - 1), tokens=st.integers(1, 9), vocab=st.integers(1, 50), block=st.integers(1, 60))
def test_any_blocks_and_strips_give_what_the_whole_vocabulary_gives(
    seed: int, tokens: int, vocab: int, block: int
) -> None:
    rng = np.random.default_rng(seed)
    head = Given(block, strip_tokens=int(rng.integers(1, 5)))
    store, reference = rng.normal(0, rng.choice([0.1, 3, 300]), (2, tokens, vocab))
    targets = rng.integers(0, vocab, tokens)
    q, p = log_softmax(store), log_softmax(reference)
    found = compared(store, reference, targets, head)
    here = np.arange(tokens), targets
    assert found.nats == pytest.approx(-q[here], rel=1e-9, abs=1e-9)
    assert found.reference_nats == pytest.approx(-p[here], rel=1e-9, abs=1e-9)
    assert found.kl == pytest.approx((np.exp(p) * (p - q)).sum(1), rel=1e-9, abs=1e-9)
    assert (
        found.agrees.tolist() == (store.astype(np.float32).argmax(1) == reference.astype(np.float32).argmax(1)).tolist()
    )
    assert np.array_equal(scores(store, targets, head), found.nats)
    same = compared(store, store, targets, head)
    assert not same.kl.any() and same.agrees.all() and not same.lost.any()


@pytest.mark.parametrize("block", [1, 3, 8])
def test_without_some_logits_the_rest_is_compared_and_the_loss_is_told(block: int) -> None:
    rng = np.random.default_rng(3)
    reference = rng.normal(0, 2, (5, 8))
    store = reference + rng.normal(0, 0.3, reference.shape)
    store[:, [0, 5]] = -np.inf
    store[4, 1:] = -np.inf
    store[4, 0] = 1.0  # its only logit
    found = compared(store, reference, np.array([0, 1, 5, 7, 0]), Given(block))
    assert np.isinf(found.nats).tolist() == [True, False, True, False, False]
    p = np.exp(log_softmax(reference))
    assert found.lost[:4] == pytest.approx(p[:4, [0, 5]].sum(1), rel=1e-6)
    assert found.lost[4] == pytest.approx(1 - p[4, 0], rel=1e-6)
    kept = [1, 2, 3, 4, 6, 7]
    p4, q4 = log_softmax(reference[:4, kept]), log_softmax(store[:4, kept])
    assert found.kl[:4] == pytest.approx((np.exp(p4) * (p4 - q4)).sum(1), rel=1e-6)
    assert found.kl[4] == pytest.approx(0, abs=1e-12)


def test_logits_that_are_no_numbers_are_seen() -> None:
    assert np.isnan(scores([[0, 1, np.nan, 2]], [0], Given(2))[0])


def test_a_head_in_blocks_has_the_bits_of_the_whole_one(hybrid_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "BLOCK_ROWS", 2 * _kernels.TILE_ROWS)  # the vocabulary of 300 then has a part block
    x = np.random.default_rng(0).normal(size=(7, 64)).astype(np.float32)
    with Store.open(hybrid_store) as store:
        pool = _kernels.ThreadPool(2)
        normed, whole = np.empty_like(x), np.empty((7, 300), np.float32)
        _kernels.rmsnorm(x, store.dense("norm"), store.config.final_norm.eps, normed)
        _kernels.linear(pool, store.quant, store.dense("lm_head"), 300, 64, normed, whole)
        blocks = list(ScoringHead(store, pool).blocks(x))
    assert max(block.shape[1] for block in blocks) == 32
    assert np.array_equal(np.concatenate(blocks, 1), whole)
