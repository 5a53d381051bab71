"""What a layer that misses experts costs beside reading and arithmetic."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import FrameType

from smallthinker.engine import Engine

ANSWER = [5, 9, 60, 2, 33, 18]


def calls_of_answer(store: Path, max_slots: int | None, look_ahead: bool) -> tuple[Counter[tuple[str, str]], int]:
    """Calls of Python's functions while an answer is computed for the second time, by file and name; and its misses."""
    calls: Counter[tuple[str, str]] = Counter()

    def count(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            calls[Path(frame.f_code.co_filename).name, frame.f_code.co_name] += 1

    with Engine(store, memory="1GiB", look_ahead=look_ahead, hot_set=False, max_slots=max_slots) as engine:
        for profile in (None, count):
            engine.forget()
            engine.prefill([1, 2, 3])
            before = engine.experts.counters()
            sys.setprofile(profile)
            try:
                for token in ANSWER:
                    engine.decode(token)
            finally:
                sys.setprofile(None)
        return calls, (engine.experts.counters() - before).misses


def test_it_runs_no_python(hybrid_store: Path) -> None:
    with_room, no_misses = calls_of_answer(hybrid_store, None, look_ahead=False)
    tight, misses = calls_of_answer(hybrid_store, 4, look_ahead=False)
    assert no_misses == 0 and misses > len(ANSWER)
    assert tight == with_room


def test_its_guesses_run_none_either(hybrid_store: Path) -> None:
    calls, misses = calls_of_answer(hybrid_store, 4, look_ahead=True)
    assert misses > len(ANSWER)
    of_guesses = {name for file, name in calls if file == "look_ahead.py"}
    assert of_guesses <= {"begin_token", "ahead", "target", "_is_on"}  # of a token
