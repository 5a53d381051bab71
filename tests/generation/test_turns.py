"""Turns in a line, for any comers: nobody waits for all that another has asked for, and nobody is left out."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallthinker import LLM
from smallthinker.generation.answer import GenerationParams
from smallthinker.generation.request import Request
from smallthinker.generation.turns import Place, Turns, crowded_out


@dataclass(eq=False)
class One:
    place: Place


COMERS = st.tuples(st.integers(0, 3), st.integers(0, 2))


class Overtaken:
    """Of each that waits: how often each other has had a turn since it began to, or had one itself."""

    def __init__(self) -> None:
        self._turns: dict[int, Counter[int]] = {}

    def comes(self, who: int) -> None:
        self._turns.setdefault(who, Counter())

    def has_a_turn(self, who: int, *, goes_on: bool) -> None:
        del self._turns[who]
        for turns in self._turns.values():
            turns[who] += 1
            assert turns[who] == 1
        if goes_on:
            self.comes(who)


@given(st.lists(COMERS | st.none(), max_size=60))
def test_while_one_waits_nobody_has_two_turns(comers: list[tuple[int, int] | None]) -> None:
    turns, clients, waiting = Turns(), Overtaken(), list[One]()
    batches = [Overtaken() for _ in range(4)]
    for comer in [*comers, *[None] * len(comers)]:
        if comer is not None:
            waiting.append(One(turns.arrive(*comer)))
            clients.comes(comer[0])
            batches[comer[0]].comes(comer[1])
        elif waiting:
            chosen = turns.next(waiting)
            client, batch = comer = chosen.place.client, chosen.place.batch
            assert chosen is next(one for one in waiting if (one.place.client, one.place.batch) == comer)
            waiting.remove(chosen)
            clients.has_a_turn(client, goes_on=any(one.place.client == client for one in waiting))
            left = [one.place.batch for one in waiting if one.place.client == client]
            batches[client].has_a_turn(batch, goes_on=batch in left)
    assert not waiting


@given(st.lists(COMERS, min_size=1, max_size=30), st.integers(0, 4))
def test_who_makes_room_still_holds_as_many_as_the_comer(comers: list[tuple[int, int]], client: int) -> None:
    turns = Turns()
    waiting = [One(turns.arrive(*comer)) for comer in comers]
    held = [comer[0] for comer in comers]
    out = crowded_out(waiting, client)
    if out is None:
        assert all(held.count(other) <= held.count(client) + 1 for other in held)
    else:
        largest = held.count(out.place.client)
        assert largest == max(held.count(other) for other in held) and largest - 1 >= held.count(client) + 1
        assert out is [one for one in waiting if one.place.client == out.place.client][-1]


@pytest.mark.parametrize("client", ["a", "b"])
def test_a_single_answer_waits_for_one_of_many_not_for_all(client: str) -> None:
    order: list[str] = []
    held, let_go = threading.Event(), threading.Event()
    with LLM(memory="8GiB", threads=1) as llm:

        def ask(client: str, batch: str) -> Request:
            def note(ids: Sequence[int], logits: npt.NDArray[np.float32]) -> None:
                held.set()
                assert let_go.wait(60)
                order.append(batch)

            params = GenerationParams(max_tokens=1)
            return llm.scheduler.submit([1, 2], params, client=client, batch=batch, logits_processor=note)

        asked = [ask("a", "many")]
        assert held.wait(60)
        asked += [*(ask("a", "many") for _ in range(7)), ask(client, "one")]
        let_go.set()
        for request in asked:
            request.result()
    assert order == ["many", "many", "one", *["many"] * 6]
