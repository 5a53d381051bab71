"""What a benchmark measures: the settings that hold for all of it, its cells, and the tokens that a cell is made of.

Pure data: knows nothing about engines, processes or files of results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import numpy as np

from smallthinker.errors import RequestError
from smallthinker.options import EngineOptions

RAW = "raw"  # the real disk, as it is
Start = Literal["cold", "warm"]
STARTS: tuple[Start, ...] = ("cold", "warm")
"""A process answers twice. The first answer is cold: nothing of the store in the page cache, no hot set, an empty
expert cache. The second is warm: another prompt of the same length, with what the first left in the expert cache."""


@dataclass(frozen=True)
class BenchSettings:
    """What all runs of one results file have in common.

    tokens: decoded after each prompt. source: where token ids come from, the generator's seed or a text. greedy: decode
    what the model finds likeliest; else the source's next tokens, whatever the model says, since a small or random
    model soon repeats itself, and its experts with it. limit: a memory cgroup of the budget's size around each run.
    options: of every run's engine; budget, context and disk are each cell's. throttle: who slows the disk down for a
    profile.
    """

    tokens: int
    seed: int
    source: Literal["random", "text"]
    greedy: bool
    options: EngineOptions
    limit: bool
    throttle: Literal["emulated", "kernel"]

    def to_dict(self) -> dict[str, Any]:
        """As results files have it."""
        found = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "options"}
        return found | {name: getattr(self.options, name) for name in ("threads", "reader", "kv")}


class Cell(NamedTuple):
    """One budget, one storage profile's name, one prompt length."""

    memory_bytes: int
    profile: str
    prompt_tokens: int


class BenchAnswer(NamedTuple):
    """Token ids of a prompt, and those to decode after it."""

    prompt: list[int]
    following: list[int]


def cells(memory: Sequence[int], profiles: Sequence[str], prompts: Sequence[int]) -> list[Cell]:
    """All of them, each once, in the order given."""
    all_cells = [Cell(m, profile, prompt) for profile in profiles for prompt in prompts for m in memory]
    return list(dict.fromkeys(all_cells))


def random_answers(vocab_size: int, prompt_tokens: int, tokens: int, seed: int) -> list[BenchAnswer]:
    """One for each of STARTS, with ids that the seed and the prompt's length decide."""
    ids = np.random.default_rng([seed, prompt_tokens]).integers(0, vocab_size, len(STARTS) * (prompt_tokens + tokens))
    return _cut(ids.tolist(), prompt_tokens, tokens)


def text_answers(ids: Sequence[int], prompt_tokens: int, tokens: int) -> list[BenchAnswer]:
    """The same from a text's token ids, in order. Raises RequestError where it is too short."""
    needed = len(STARTS) * (prompt_tokens + tokens)
    if len(ids) < needed:
        raise RequestError(
            f"text: expected {needed} tokens or more, {len(STARTS)} prompts of {prompt_tokens} and {tokens} decoded "
            f"after each, found {len(ids)}; give a longer text, a smaller `prompt` or `max_tokens`"
        )
    return _cut(list(ids[:needed]), prompt_tokens, tokens)


def _cut(ids: list[int], prompt_tokens: int, tokens: int) -> list[BenchAnswer]:
    each = prompt_tokens + tokens
    parts = [ids[at : at + each] for at in range(0, len(ids), each)]
    return [BenchAnswer(part[:prompt_tokens], part[prompt_tokens:]) for part in parts]
