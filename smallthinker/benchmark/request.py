"""What somebody asks to be measured, checked before anything runs -> a series, and the environment of its results."""

from __future__ import annotations

import datetime
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from smallthinker.benchmark.cgroup import is_v2
from smallthinker.benchmark.disk import describe_disk
from smallthinker.benchmark.environment import machine, model_facts, versions
from smallthinker.benchmark.matrix import RAW, BenchSettings, cells, random_answers, text_answers
from smallthinker.benchmark.results import Row
from smallthinker.benchmark.series import Series, default_budgets
from smallthinker.errors import RequestError
from smallthinker.expert_store.device.storage_profile import StorageProfile, load_profile
from smallthinker.expert_store.store import Store
from smallthinker.memory_plan import parse_size
from smallthinker.options import EngineOptions
from smallthinker.text.tokenizer import Tokenizer

_MOST = 1 << 20  # of tokens and repeats: more is a slip of the finger


@dataclass(frozen=True)
class BenchRequest:
    """memory: budgets as people write them; none takes three, from the floor to everything. profiles: RAW, names and
    files. prompts: lengths in tokens. text: where token ids come from; None takes random ones of the seed. The others
    are as in Settings."""

    store: Path
    memory: list[str]
    profiles: list[str]
    prompts: list[int]
    tokens: int
    repeats: int
    seed: int = 0
    text: str | None = None
    greedy: bool = False
    options: EngineOptions = field(default_factory=EngineOptions)
    limit: bool = False
    throttle: Literal["emulated", "kernel"] = "emulated"

    def __post_init__(self) -> None:
        """Raises RequestError."""
        for name, values in (("max_tokens", [self.tokens]), ("repeats", [self.repeats]), ("prompt", self.prompts)):
            bad = next((value for value in values if not 1 <= value <= _MOST), None)
            if bad is not None:
                raise RequestError(f"{name}: expected 1 to {_MOST}, found {bad}")
        if self.seed < 0:
            raise RequestError(f"seed: expected 0 or more, found {self.seed}")


def plan(request: BenchRequest) -> tuple[Series, Row]:
    """The series and the first line of its results.

    Raises RequestError, ProfileError, what Store.open and Tokenizer raise, ResultsError where even the floor of memory
    can't be found out.
    """
    profiles = _profiles(request)
    tokens, seed, text = request.tokens, request.seed, request.text
    settings = BenchSettings(
        tokens=tokens,
        seed=seed,
        source="random" if text is None else "text",
        greedy=request.greedy,
        options=request.options,
        limit=request.limit,
        throttle=request.throttle,
    )
    with Store.open(request.store) as store:
        vocab = store.config.vocab_size
        ids = [] if text is None else Tokenizer(store.small_files, vocab, store).encode_prompt(text)
        environment: Row = {
            "kind": "environment",
            "format": "smallthinker-bench",
            "format_version": 1,
            "measured": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "machine": machine(),
            "disk": describe_disk(store.path),
            "versions": versions(),
            "model": model_facts(store),
            "settings": settings.to_dict()
            | {"text_sha256": None if text is None else hashlib.sha256(text.encode()).hexdigest()},
            "profiles": {name: profile.to_dict() for name, profile in profiles.items() if profile is not None},
        }
    answers = {
        prompt: random_answers(vocab, prompt, tokens, seed) if text is None else text_answers(ids, prompt, tokens)
        for prompt in request.prompts
    }
    series = Series(request.store, settings, [], profiles, answers, request.repeats)
    budgets = [parse_size(size) for size in request.memory]
    budgets = budgets or default_budgets(request.store, series.floor_bytes())
    series.cells.extend(cells(budgets, list(profiles), request.prompts))
    return series, environment


def _profiles(request: BenchRequest) -> dict[str, StorageProfile | None]:
    """By name; None is the real disk."""
    is_throttled = request.throttle == "kernel"
    if is_throttled and request.limit and is_v2():
        raise RequestError("limit: with the kernel's throttle it needs cgroups of version 1, found version 2")
    found: dict[str, StorageProfile | None] = {}
    for asked in dict.fromkeys(request.profiles):
        profile = None if asked == RAW else load_profile(asked)
        name = RAW if profile is None else profile.name
        if name in found or (name == RAW) != (profile is None):
            raise RequestError(f"storage: {asked}: expected profiles of different names, found {name!r} twice")
        found[name] = profile
    if is_throttled and list(found) == [RAW]:
        raise RequestError("storage: expected one to throttle the disk to, found only raw")
    return found
