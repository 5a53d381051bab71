"""Eviction policies: books that are right, victims that may go, and the order that each is named for."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallthinker.cache.policies import LFU, LRU, POLICIES, Frequency
from smallthinker.cache.replay import hits

LAYERS, EXPERTS, K = 3, 5, 2
N = LAYERS * EXPERTS
keys = st.integers(0, N - 1)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), keys),
        st.tuples(st.just("remove"), keys),
        st.tuples(st.just("use"), st.integers(0, LAYERS - 1), st.sets(st.integers(0, EXPERTS - 1))),
        st.tuples(
            st.just("chunk"), st.integers(0, LAYERS - 1), st.sets(st.integers(0, EXPERTS - 1)), st.integers(1, 9)
        ),
        st.tuples(st.just("step"), st.integers(1, 2000)),
        st.tuples(st.just("victim"), st.sets(keys), st.integers(0, LAYERS - 1)),
    ),
    max_size=40,
)


@pytest.mark.parametrize("name", POLICIES)
@given(operations=operations)
def test_a_victim_is_resident_and_never_pinned_whatever_happened(name: str, operations: list[tuple]) -> None:
    policy, resident = POLICIES[name]([EXPERTS] * LAYERS, [K] * LAYERS), set[int]()
    for operation, *rest in operations:
        if operation == "insert":
            policy.insert(rest[0])
            resident.add(rest[0])
        elif operation == "remove" and rest[0] in resident:
            policy.remove(rest[0])
            resident.remove(rest[0])
        elif operation == "remove":
            with pytest.raises(KeyError):
                policy.remove(rest[0])
        elif operation == "use":
            policy.use(rest[0], [rest[0] * EXPERTS + expert for expert in rest[1]])
        elif operation == "chunk":
            layer, experts, tokens = rest
            counts = [1 + expert % tokens for expert in experts]
            policy.use(layer, [layer * EXPERTS + expert for expert in experts], counts, tokens)
        elif operation == "step":
            policy.step(rest[0])
        elif operation == "victim":
            victim = policy.victim(rest[0], rest[1])
            assert victim in resident - rest[0] if resident - rest[0] else victim is None
        state = policy.state()
        assert state.shape == (N,) and state.dtype == np.float32
        assert (state >= 0).all() and (state <= 1).all()
        assert policy.score(N - 1) == pytest.approx(state[N - 1], abs=1e-6)


@given(seed=st.integers(0, 999), slots=st.integers(K, N))
def test_lru_hits_as_the_textbook_says(seed: int, slots: int) -> None:
    ids = random_routing(seed, tokens=30)
    order: OrderedDict[int, None] = OrderedDict()
    found = 0
    for token in ids.tolist():
        for layer, experts in enumerate(token):
            wanted = [layer * EXPERTS + expert for expert in experts]
            missing = [key for key in wanted if key not in order]
            found += K - len(missing)
            for key in wanted:
                if key in order:
                    order.move_to_end(key)
            for key in missing:
                if len(order) == slots:
                    del order[next(old for old in order if old not in wanted)]
                order[key] = None
    assert hits(LRU([EXPERTS] * LAYERS, [K] * LAYERS), ids, EXPERTS, slots) == found


def random_routing(seed: int, tokens: int) -> np.ndarray:
    """ids [T, L, k] of a skewed routing in which every expert occurs."""
    rng = np.random.default_rng(seed)
    taste = rng.normal(size=(LAYERS, EXPERTS)) + rng.normal(size=(tokens, LAYERS, EXPERTS))
    ids = np.argsort(-taste, 2)[:, :, :K]
    ids[0, 0, 0], ids[0, 0, 1] = EXPERTS - 1, 0
    return ids


@pytest.mark.parametrize("policy", [LFU, Frequency])
def test_what_is_used_more_often_stays(policy: type) -> None:
    p = policy([4] * 1, [1] * 1)
    for key in range(4):
        p.insert(key)
    for at in range(40):
        p.use(0, [(0, 1, 1, 2, 0, 1, 3, 1, 0, 2)[at % 10]])
        p.step()
    assert p.victim([], 0) == 3
    assert p.victim({3}, 0) == 2
    assert p.score(1) > p.score(0) > p.score(3)


@pytest.mark.parametrize("policy", [LFU, Frequency])
def test_a_new_favourite_replaces_an_old_one_in_time(policy: type) -> None:
    p = policy([2] * 1, [1] * 1)
    p.insert(0)
    p.insert(1)
    for key, tokens in ((0, 500), (1, 1000)):
        for _ in range(tokens):
            p.use(0, [key])
            p.step()
        assert p.victim([], 0) == 1 - key


def test_of_equally_used_experts_the_one_of_the_layer_just_served_goes() -> None:
    p = Frequency([2] * 4, [1] * 4)
    for layer in range(4):
        p.insert(2 * layer)
    for _ in range(5):
        for layer in range(4):
            p.use(layer, [2 * layer])
        p.step()
    assert [p.victim([], layer) for layer in range(4)] == [0, 2, 4, 6]
    assert p.victim([4, 6], 3) == 2  # then the layer before, which comes last of the others


def test_lru_keeps_nothing_of_a_cycle_that_is_too_long_and_frequency_does() -> None:
    ids = np.tile(np.arange(4) % 2, (20, 1))[:, :, None]  # every token uses one expert in each of 4 layers
    assert hits(LRU([2] * 4, [1] * 4), ids, 2, 3) == 0
    assert hits(Frequency([2] * 4, [1] * 4), ids, 2, 3) >= 19 * 2


class LongMemory(Frequency):
    MEMORY_TOKENS = (200.0,)


class ShortMemory(Frequency):
    MEMORY_TOKENS = (12.0,)


def test_a_chunk_counts_each_expert_as_often_as_tokens_chose_it() -> None:
    one_by_one, at_once = LongMemory([3] * 1, [1] * 1), LongMemory([3] * 1, [1] * 1)
    for p in (one_by_one, at_once):
        for _ in range(200):  # past the first tokens, which count for more
            p.use(0, [0])
            p.step()
    for key in (0, 1, 1, 1):
        one_by_one.use(0, [key])
        one_by_one.step()
    at_once.use(0, [0, 1], [1, 3], 4)
    at_once.step(4)
    assert at_once.state() == pytest.approx(one_by_one.state(), abs=0.001)


@pytest.mark.parametrize("name", POLICIES)
def test_what_one_run_learned_another_begins_with(name: str) -> None:
    first, second = (POLICIES[name]([4] * 1, [1] * 1) for _ in range(2))
    for key in (2, 0, 1, 1, 3, 3, 3, 3):
        first.use(0, [key])
        first.step()
    second.restore(first.state())
    for p in (first, second):
        for key in range(4):
            if name == "lru":
                p.use(0, [(2, 0, 1, 3)[key]])  # an insertion is a use
            p.insert((2, 0, 1, 3)[key])
    assert second.victim([], 0) == first.victim([], 0)
    assert second.score(3) > second.score(0)
    for bad in (np.zeros(3, np.float32), np.full(4, np.nan, np.float32)):
        with pytest.raises(ValueError, match="state: expected 4 finite numbers"):
            second.restore(bad)


def test_what_another_text_left_behind_gives_way_to_this_one() -> None:
    """Routing may depend on the text: twenty tokens that use the others must outweigh what was restored."""
    other, p = Frequency([4] * 1, [1] * 1), Frequency([4] * 1, [1] * 1)
    for _ in range(200):
        other.use(0, [1])
        other.step()
    p.restore(other.state())
    for _ in range(20):
        p.use(0, [2])
        p.step()
    assert p.score(2) > p.score(1)


def chosen(rng: np.random.Generator, texts: int, length: int) -> np.ndarray:
    """ids [texts * length, layers, 2] of tokens that choose by how popular experts are in their text."""
    tokens = []
    for _ in range(texts):
        popular = rng.standard_normal((4, 16))
        logits = popular + rng.standard_normal((length, 4, 16))
        tokens.append(np.argsort(-logits, axis=2)[:, :, :2])
    return np.concatenate(tokens)


@pytest.mark.parametrize(("texts", "length"), [(20, 60), (1, 1200)])
def test_the_past_counts_for_as_long_as_it_tells_what_comes(texts: int, length: int) -> None:
    """Of texts that want different experts, and of one text, about as much is hit as with the memory that suits it."""
    ids = chosen(np.random.default_rng(0), texts, length)
    rates = {p: hits(p([16] * 4, [2] * 4), ids, 16, 20) / ids.size for p in (Frequency, LongMemory, ShortMemory)}
    best, other = (ShortMemory, LongMemory) if texts > 1 else (LongMemory, ShortMemory)
    assert rates[Frequency] > rates[best] - 0.01
    assert rates[best] > rates[other] + (0.05 if texts > 1 else 0.005)


def test_of_layers_that_differ_each_counts_its_own_experts() -> None:
    p = Frequency([2, 0, 3], [1, 0, 3])  # the last uses all of its own
    assert p.state().tolist() == pytest.approx([0.5, 0.5, 1, 1, 1])
    p.use(2, [2, 3, 4])
    with pytest.raises(IndexError):
        p.use(0, [2])
    with pytest.raises(IndexError):
        p.insert(5)
