"""What a model says about tokens that are known, and how two models differ, from the states before their heads.

Logits are made in blocks of the vocabulary and forgotten, so memory doesn't grow with it: a chunk of 512 tokens has
300 MB of logits at a vocabulary of 152,000. Knows nothing about text or engines. Sums are in float64.

Shape letters: T tokens, d hidden_size, V vocabulary, R rows of the vocabulary in a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from smallthinker import _kernels
from smallthinker.exact_head import ExactHead
from smallthinker.expert_store.format import Quant
from smallthinker.expert_store.store import Store
from smallthinker.lossy_head import LossyHead
from smallthinker.models.tensors import head_role

BLOCK_ROWS = 1024  # a multiple of TILE_ROWS; with STRIP_TOKENS, 4 MiB of float64
STRIP_TOKENS = 512
_LOSSY_STRIP_TOKENS = 8  # a lossy head makes whole rows of V logits

Floats = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


def head_matrix(store: Store) -> npt.NDArray[Any]:
    """[V, d] in tiles."""
    return store.dense(head_role(store.config))


def head_format(store: Store) -> Quant:
    return store.formats.of(head_role(store.config), None)


class ScoringHead:
    """The final norm and the head of a store, computed as the engine computes them. lossy: the head made of it, if it
    is to be used instead."""

    def __init__(self, store: Store, pool: _kernels.ThreadPool, lossy: LossyHead | None = None) -> None:
        config = store.config
        self.vocab_size = config.vocab_size
        self._lossy, self._exact = lossy, ExactHead(config, store.formats, pool, store.dense)
        self.strip_tokens = STRIP_TOKENS if lossy is None else _LOSSY_STRIP_TOKENS

    def blocks(self, x: Floats) -> Iterator[F64]:
        """States x [T, d], T at most `strip_tokens` -> logits [T, R] of one block after the other, -inf where a lossy
        head has none. A block may be overwritten."""
        normed = self._exact.normed(x)
        whole = None if self._lossy is None else self._lossy.logits(normed)
        for first in range(0, self.vocab_size, BLOCK_ROWS):
            rows = min(BLOCK_ROWS, self.vocab_size - first)
            exact = self._exact.logits(normed, first, rows) if whole is None else whole[:, first : first + rows]
            yield exact.astype(np.float64)


class _Softmax:
    """Sums over the vocabulary of T tokens, block by block, relative to the largest logit so far."""

    def __init__(self, targets: Ids) -> None:
        self._targets, self._rows, self._first = targets, np.arange(len(targets)), 0
        self.largest = np.full(len(targets), -np.inf)
        self.likeliest = np.zeros(len(targets), np.int64)
        self.total = np.zeros(len(targets))
        self._target_logits = np.full(len(targets), -np.inf)

    def add(self, logits: F64) -> tuple[F64, F64]:
        """logits [T, R] of the next block -> their exponentials relative to `largest`, and [T] what earlier sums are
        to be multiplied with, since `largest` may have grown."""
        inside = (self._targets >= self._first) & (self._targets < self._first + logits.shape[1])
        self._target_logits[inside] = logits[self._rows[inside], self._targets[inside] - self._first]
        best = logits.argmax(1)
        top = logits[self._rows, best]
        grew = ~(top <= self.largest)  # also for NaN, which then reaches every sum
        self.likeliest[grew] = best[grew] + self._first
        largest = np.where(grew, top, self.largest)
        origin = np.where(np.isneginf(largest), 0, largest)  # no logit yet: every exponential is 0
        scale = np.exp(self.largest - origin)
        exponentials = np.exp(logits - origin[:, None])
        self.total = self.total * scale + exponentials.sum(1)
        self.largest = largest
        self._first += logits.shape[1]
        return exponentials, scale

    def log_total(self) -> F64:
        return self.largest + np.log(self.total)

    def nats(self) -> F64:
        """Of each target, its negative log-likelihood; inf where it has no logit."""
        nats: F64 = self.log_total() - self._target_logits
        return nats


class Differences(NamedTuple):
    """At each of T places, of what two models expect there.

    nats, reference_nats: as `likelihoods`, by the model and by the reference. kl: the Kullback-Leibler divergence
    KL(reference || model) in nats, among the tokens that have a logit in the model: all, unless its head is lossy.
    agrees: whether the likeliest tokens are the same. lost: what the reference gives to tokens without such a logit.
    """

    nats: F64
    reference_nats: F64
    kl: F64
    agrees: npt.NDArray[np.bool_]
    lost: F64


def likelihoods(head: ScoringHead, x: Floats, targets: Ids) -> F64:
    """States x [T, d], the tokens that follow them [T] -> their negative log-likelihoods [T] in nats; inf where a lossy
    head gave no logit."""
    parts = []
    for at in range(0, len(x), head.strip_tokens):
        softmax = _Softmax(targets[at : at + head.strip_tokens])
        for logits in head.blocks(x[at : at + head.strip_tokens]):
            softmax.add(logits)
        parts.append(softmax.nats())
    return np.concatenate(parts) if parts else np.empty(0)


def differences(head: ScoringHead, x: Floats, reference: ScoringHead, reference_x: Floats, targets: Ids) -> Differences:
    """Two models' states [T, d of each] at the same places of a text, and the tokens [T] that follow there."""
    strip = min(head.strip_tokens, reference.strip_tokens)
    parts = []
    for at in range(0, len(x), strip):
        here = slice(at, at + strip)
        parts.append(_strip_differences(head, x[here], reference, reference_x[here], targets[here]))
    return joined(parts)


def joined(parts: Sequence[Differences]) -> Differences:
    """Of places one after the other, at least one part."""
    return Differences(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _strip_differences(
    head: ScoringHead, x: Floats, reference: ScoringHead, reference_x: Floats, targets: Ids
) -> Differences:
    q, p = _Softmax(targets), _Softmax(targets)
    kept, cross = np.zeros(len(x)), np.zeros(len(x))
    for logits, wanted in zip(head.blocks(x), reference.blocks(reference_x), strict=True):
        q.add(logits)
        weights, scale = p.add(wanted)
        missing = np.isneginf(logits)
        weights[missing] = 0
        difference = np.subtract(wanted, logits, where=~missing, out=np.zeros_like(logits))
        kept = kept * scale + weights.sum(1)
        cross = cross * scale + (weights * difference).sum(1)
    share = np.where(kept == 0, 1, kept)  # 0: nothing of the reference is left to be compared
    kl = cross / share - (p.largest + np.log(share)) + q.log_total()  # the sum of p_i (log p_i - log q_i)
    kl = np.maximum(np.where(kept == 0, 0, kl), 0)
    return Differences(q.nats(), p.nats(), kl, q.likeliest == p.likeliest, 1 - kept / p.total)
