"""One answer: prefill, then decode step by step, sampling, until something ends it.

Owns what ends an answer (end-of-text token, stop string, token limit, cancellation) and the figures of it.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal

from smallthinker.engine import Engine
from smallthinker.errors import CancelledError, RequestError
from smallthinker.expert_store import host
from smallthinker.lossy_head import HeadCounters
from smallthinker.profile import Clocks, Profile, Stopwatch
from smallthinker.roofline import Phase
from smallthinker.sampling import Sampler, SamplingParams
from smallthinker.stats import GenerationStats
from smallthinker.stop_strings import StopStrings

FinishReason = Literal["stop", "length", "cancelled"]
DEFAULT_MAX_TOKENS = 256


@dataclass(frozen=True)
class GenerationParams(SamplingParams):
    """What to generate, and how to pick its tokens.

    `max_tokens` None: up to 256, or what the context leaves if that is less. `stop`: the answer ends before any of
    these texts. `ignore_eos` goes on after an end-of-text token.
    """

    max_tokens: int | None = None
    stop: Sequence[str] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        """Raises RequestError, naming the parameter."""
        super().__post_init__()
        if self.max_tokens is not None and self.max_tokens < 1:
            raise RequestError(f"max_tokens: expected 1 or more, found {self.max_tokens}")
        if isinstance(self.stop, str):
            raise RequestError(f"stop: expected a list of texts, found the text {self.stop!r}")


@dataclass(frozen=True)
class Completion:
    """A finished answer. `text` is without the stop string, `token_ids` without the end-of-text token."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stats: GenerationStats
    profile: Profile


class TextStream:
    """Iterate for pieces of text as they are generated; `completion` is there once the iteration has ended.

    Not iterating to the end is fine: close it, leave a `with` block, or drop it.
    """

    def __init__(
        self,
        engine: Engine,
        prompt: list[int],
        params: GenerationParams,
        *,
        cancelled: threading.Event,
        computing: threading.Lock,
        on_end: Callable[[], None],
    ) -> None:
        """cancelled: ends the answer when set. computing: held during each step. on_end: called once, at the end.

        Raises ContextLengthError and RequestError here, before anything is computed.
        """
        self._on_end: Callable[[], None] | None = None
        if not prompt:
            raise RequestError("prompt: expected text, found nothing")
        room = engine.plan.context - len(prompt)
        limit = params.max_tokens or max(1, min(DEFAULT_MAX_TOKENS, room))
        engine.check_fits(len(prompt), limit)
        if params.seed is None:  # drawn here and reported, so that a good answer can be had again
            params = replace(params, seed=secrets.randbits(32))
        self._computing = computing
        self._pieces = _answer(engine, prompt, params, limit, cancelled)
        self._on_end = on_end
        self.completion: Completion | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            with self._computing:
                return next(self._pieces)
        except StopIteration as end:
            self.completion = self.completion or end.value
            self._end()
            raise
        except BaseException:  # a fault, or Ctrl-C
            self._end()
            raise

    def close(self) -> None:
        """End the answer here. May be called twice."""
        self._pieces.close()
        self._end()

    def _end(self) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end()

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self._end()


def _answer(
    engine: Engine, prompt: list[int], params: GenerationParams, limit: int, cancelled: threading.Event
) -> Generator[str, None, Completion]:
    """Yields pieces of text, returns the completion. Holds no reference to its stream, so a dropped stream ends it."""
    decoder, stops = engine.tokenizer.stream(), StopStrings(params.stop)
    sampler = Sampler(params, prompt)
    eos = () if params.ignore_eos else engine.config.eos_token_ids
    ids: list[int] = []
    text: list[str] = []
    reason: FinishReason = "length"
    meter = _Meter(engine, len(prompt), params.seed)
    try:
        logits, meter.reused_tokens = engine.prefill(prompt, cancelled=cancelled.is_set)
        while True:
            with meter.sampling:
                token = sampler.sample(logits)
            meter.token()
            if token in eos:
                reason = "stop"
                break
            ids.append(token)
            with meter.text:
                piece = stops.push(decoder.push(token))
            if piece:
                text.append(piece)
                yield piece
            if stops.stopped:
                reason = "stop"
                break
            if len(ids) == limit:
                break
            if cancelled.is_set():  # also when the model was closed between two pieces
                raise CancelledError("cancelled")
            logits = engine.decode(token, cancelled=cancelled.is_set)
    except CancelledError:
        reason = "cancelled"
    if not stops.stopped:
        rest = stops.push(decoder.finish()) + stops.finish()
        reason = "stop" if stops.stopped else reason
        if rest:
            text.append(rest)
            yield rest
    return Completion("".join(text), tuple(ids), reason, meter.stats(), meter.profile())


class _Meter:
    """Reads the engine's counters at the start of an answer, at its first token and at its end."""

    def __init__(self, engine: Engine, prompt_tokens: int, seed: int | None) -> None:
        self._engine, self._prompt_tokens, self._seed = engine, prompt_tokens, seed
        self.reused_tokens = 0
        self._tokens = 0
        disk = engine.disk_profile
        self._probed = disk.bandwidth_bytes_per_sec if disk.measured else None
        self._began = time.perf_counter()
        self._first_token = self._last_token = self._began
        self._at_start = engine.experts.counters()
        self._at_first_token = self._at_start
        self._head_at_start = HeadCounters() if engine.lossy_head is None else engine.lossy_head.counters()
        self.sampling, self.text = Stopwatch(), Stopwatch()
        self._clocks_at_start = self._clocks_at_first_token = engine.clocks()

    def token(self) -> None:
        self._last_token = time.perf_counter()
        self._tokens += 1
        if self._tokens == 1:
            self._first_token = self._last_token
            self._at_first_token = self._engine.experts.counters()
            self._clocks_at_first_token = self._engine.clocks()

    def profile(self) -> Profile:
        return Profile(*self._clocks(), self.sampling.sec, self.text.sec, self._tokens)

    def _clocks(self) -> tuple[Clocks, Clocks]:
        """Of prefill and of decode."""
        start, end = self._clocks_at_start, self._engine.clocks()
        first = self._clocks_at_first_token if self._tokens else end  # cancelled before it: all was prefill
        return first - start, end - first

    def stats(self) -> GenerationStats:
        engine, head = self._engine, self._engine.lossy_head
        end = engine.experts.counters()
        first = self._at_first_token if self._tokens else end
        prefill, decode = self._clocks()
        return GenerationStats(
            prompt_tokens=self._prompt_tokens,
            reused_tokens=self.reused_tokens,
            new_tokens=self._tokens,
            ttft_sec=self._first_token - self._began,
            decode_sec=self._last_token - self._first_token,
            load_sec=engine.load_sec,
            prefill=Phase.of(prefill, first - self._at_start, self._probed),
            decode=Phase.of(decode, end - first, self._probed),
            sampling_sec=self.sampling.sec,
            text_sec=self.text.sec,
            peak_memory_bytes=host.peak_memory_bytes(),
            slots=engine.plan.slots,
            least_slots=engine.least_slots,
            num_experts=engine.plan.num_experts,
            reader=engine.reader_name,
            isa=engine.isa,
            threads=engine.threads,
            seed=self._seed,
            storage=None if engine.storage is None else engine.storage.name,
            lossy_head=None if head is None else head.counters() - self._head_at_start,
        )
