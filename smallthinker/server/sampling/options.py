"""From a request's sampling fields to what is computed: parameters, logits processors, how many answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from smallthinker.generation.answer import GenerationParams, LogitsProcessor
from smallthinker.generation.grammar import Constraint
from smallthinker.generation.logits import Bias, Penalties, in_turn
from smallthinker.llm import LLM
from smallthinker.server.errors import bad_request
from smallthinker.server.schemas import Sampling
from smallthinker.server.settings import Limits

_PASSED_ON = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "repeat_last_n")


def generation_params(
    fields: Mapping[str, Any],
    limits: Limits,
    *,
    prompt_tokens: int,
    context: int,
    max_tokens: int | None,
) -> GenerationParams:
    """What isn't given has the engine's default; an answer that would outgrow the context is cut to what is left of it.

    Raises ApiError and RequestError.
    """
    given = {name: fields[name] for name in _PASSED_ON if fields.get(name) is not None}
    seed = fields.get("seed")
    room = max(1, context - prompt_tokens)
    return GenerationParams(
        **given,
        seed=None if seed is None else seed % 2**64,
        stop=_stops(fields.get("stop"), limits),
        max_tokens=room if max_tokens is None else min(max_tokens, room),
    )


def processor_maker(
    asked: Sampling, llm: LLM, limits: Limits, constraint: Constraint | None
) -> Callable[[], LogitsProcessor | None]:
    """Makes a fresh one for each answer. Raises ApiError."""
    biases = _biases(asked.logit_bias or {}, llm, limits)
    frequency, presence = asked.frequency_penalty or 0.0, asked.presence_penalty or 0.0

    def make() -> LogitsProcessor | None:
        processors: list[LogitsProcessor] = []
        if frequency or presence:
            processors.append(Penalties(frequency, presence))
        if biases:
            processors.append(Bias(biases))
        if constraint is not None:
            processors.append(constraint.begin())
        return in_turn(processors)

    return make


def choices(asked: Sampling, limits: Limits) -> int:
    n = asked.n or 1
    if n > limits.choices:
        raise bad_request(f"n: at most {limits.choices} are taken, found {n}", "n")
    if asked.stream_options is not None and not asked.stream:
        raise bad_request("stream_options: has no meaning without stream", "stream_options")
    if asked.return_progress and not asked.stream:
        raise bad_request("return_progress: has no meaning without stream", "return_progress")
    return n


def _stops(stop: str | list[str] | None, limits: Limits) -> list[str]:
    stops = [stop] if isinstance(stop, str) else stop or []
    if len(stops) > limits.stops:
        raise bad_request(f"stop: at most {limits.stops} are taken, found {len(stops)}", "stop")
    if any(not 0 < len(text) <= limits.stop_characters for text in stops):
        raise bad_request(f"stop: each must have 1 to {limits.stop_characters} characters", "stop")
    return stops


def _biases(biases: Mapping[str, float], llm: LLM, limits: Limits) -> dict[int, float]:
    if len(biases) > limits.logit_biases:
        raise bad_request(f"logit_bias: at most {limits.logit_biases} are taken, found {len(biases)}", "logit_bias")
    found: dict[int, float] = {}
    for key, bias in biases.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < llm.config.vocab_size):
            raise bad_request(
                f"logit_bias: expected token ids below {llm.config.vocab_size}, found {key[:20]!r}", "logit_bias"
            )
        found[int(key)] = bias
    return found
