"""One answer: from the logits of each step to its tokens and its text, until something ends it.

Owns what ends an answer (end-of-text token, stop string, token limit) and the figures of it. Knows nothing about who
computes the logits, nor when: the scheduler drives it.

Shape letters: V vocabulary.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from smallthinker import _kernels, host
from smallthinker.arguments import callback, flag, refuse, texts, token_ids, whole
from smallthinker.engine import Engine
from smallthinker.errors import RequestError
from smallthinker.generation.sampling import Sampler
from smallthinker.generation.sampling_params import SamplingParams
from smallthinker.generation.stats import GenerationStats, SpeculationCounters
from smallthinker.lossy_head import HeadCounters
from smallthinker.lossy_routing import RoutingCounters
from smallthinker.measures.profile import Clocks, Profile, Stopwatch
from smallthinker.measures.roofline import Phase
from smallthinker.text.answer_parser import Part
from smallthinker.text.answer_reader import AnswerReader, said
from smallthinker.text.chat_prompt import AnswerFormat

FinishReason = Literal["stop", "length", "cancelled", "timeout"]
# Called before each sampling with the ids generated so far and a copy of the logits, float32 [V], which it may change:
# -inf for what may not come next.
LogitsProcessor = Callable[[Sequence[int], npt.NDArray[np.float32]], None]
DEFAULT_MAX_TOKENS = 256
MOST_LOGPROBS = 64


@dataclass(frozen=True)
class GenerationParams(SamplingParams):
    """What to generate, and how to pick its tokens.

    `max_tokens` None: up to 256, or what the context leaves if that is less. `stop`: the answer ends before any of
    these texts, of which one may stand alone; names of special tokens count in them as these tokens. In a chat they
    count in what is said, not in thoughts and calls. `ignore_eos` goes on after an end-of-text token.
    """

    max_tokens: int | None = None
    stop: str | Sequence[str] | None = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        """Raises RequestError, naming the parameter."""
        super().__post_init__()
        if self.max_tokens is not None:
            self._set("max_tokens", whole("max_tokens", self.max_tokens, 1))
        self._set("stop", texts("stop", self.stop))
        self._set("ignore_eos", flag("ignore_eos", self.ignore_eos))


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural logarithms of probabilities, as the model gave them: before penalties, temperature and filters.

    `top`: the likeliest tokens (id, logprob), best first, as many as were asked for.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Token:
    """One token of an answer. `text` is what became certain with it: '' while a character is incomplete or a stop
    string may be beginning. Of a chat's answer `text` is what is said, and `parts` all that became certain;
    `is_thought`: it belongs to a thought."""

    id: int
    text: str
    logprobs: TokenLogprobs | None = None
    parts: tuple[Part, ...] = ()
    is_thought: bool = False


@dataclass(frozen=True)
class Call:
    """Of a function, as a chat's answer asks for it. `arguments`: a JSON object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Completion:
    """A finished answer. `text` is without the stop string, `token_ids` without the end-of-text token; `logprobs` has
    an entry for each of `token_ids`, if they were asked for. Of a chat's answer `text` is what is said, `reasoning`
    what was thought before, and `calls` the functions that are to be called. `embedding` [hidden_size]: of a text that
    was only read, see `LLM.embed`."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stats: GenerationStats
    profile: Profile
    logprobs: tuple[TokenLogprobs, ...] | None = None
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    embedding: npt.NDArray[np.float32] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Finished:
    """The end of an answer. `text`, `parts`: what was held back until now and belongs behind the last token's."""

    text: str
    completion: Completion
    parts: tuple[Part, ...] = ()


class Answer:
    """One sequence's state: `begin`, then `push` the logits of each step until `reason` says why it has ended, then
    `finish`. The last of `ids` is the next to be computed."""

    def __init__(
        self,
        engine: Engine,
        prompt: Sequence[int],
        params: GenerationParams,
        *,
        logits_processor: LogitsProcessor | None = None,
        logprobs: int | None = None,
        chat: AnswerFormat | None = None,
    ) -> None:
        """logprobs: report each token's, and those of so many of the likeliest. chat: how a chat's answer is read.

        Raises ContextLengthError and RequestError here, before anything is computed.
        """
        if not isinstance(params, GenerationParams):
            refuse("params", "GenerationParams", params)
        self.prompt = prompt = token_ids("prompt", prompt)
        if not prompt:
            raise RequestError("prompt: expected text, found nothing")
        if logprobs is not None:
            logprobs = whole("logprobs", logprobs, 0, MOST_LOGPROBS)
        callback("logits_processor", logits_processor)
        engine.check_prompt(prompt)
        room = engine.plan.context - len(prompt)
        self.limit = params.max_tokens or max(1, min(DEFAULT_MAX_TOKENS, room))
        engine.check_fits(len(prompt), self.limit)
        if params.seed is None:  # drawn here and reported, so that a good answer can be had again
            params = replace(params, seed=int.from_bytes(os.urandom(4), "little"))
        self.ids: list[int] = []
        self.reason: FinishReason | None = None
        self.speculation = SpeculationCounters()  # counted by whoever computes
        self._params, self._logprobs, self._process = params, logprobs, logits_processor
        self._found: list[TokenLogprobs] = []
        self._decoder = engine.tokenizer.stream()
        self._reader = AnswerReader(engine.tokenizer.special_names, texts("stop", params.stop), chat)
        self._last: list[Part] = []  # what became certain with the token that ended it
        self._sampler = Sampler(params, self.prompt, engine.pool)
        self._eos = () if params.ignore_eos else engine.config.tokens.eos + (() if chat is None else chat.ends)
        self._engine, self._asked = engine, time.perf_counter()
        self._meter: _Meter | None = None

    def begin(self, reused_tokens: int = 0) -> None:
        """Its prompt is about to be computed, but for its first `reused_tokens`."""
        self._meter = _Meter(self._engine, len(self.prompt), reused_tokens, self._params.seed, self._asked)

    def push(self, logits: npt.NDArray[np.float32]) -> Token | None:
        """logits [V] float32, not changed -> the next token; None for one that ends the text. Sets `reason` if this
        was the last. Raises RequestError when no token can be drawn, and what the logits processor raises."""
        assert self._meter is not None
        with self._meter.sampling:
            seen = logits
            if self._process is not None:
                seen = logits.copy()
                self._process(self.ids, seen)
            id = self._sampler.sample(seen)
        self._meter.token()
        if id in self._eos:
            self.reason = "stop"
            self._last = self._reader.push(self._decoder.finish(), self._engine.tokenizer.hidden_text(id))
            return None
        logprobs = None
        if self._logprobs is not None:
            logprobs = _token_logprobs(self._engine.pool, logits, id, self._logprobs)
            self._found.append(logprobs)
        self.ids.append(id)
        with self._meter.text:
            is_thought = self._reader.is_thinking
            parts = self._reader.push(self._decoder.push(id), self._engine.tokenizer.hidden_text(id))
        if self._reader.stopped:
            self.reason = "stop"
        elif len(self.ids) == self.limit:
            self.reason = "length"
        return Token(id, said(parts), logprobs, tuple(parts), is_thought)

    def finish(self, reason: FinishReason | None = None) -> Finished:
        """The end, for `reason` where the answer hasn't ended by itself; perhaps before it began."""
        reason = self.reason or reason
        if self._meter is None:
            self.begin()
        assert reason is not None and self._meter is not None
        rest = self._last
        if not self._reader.stopped:
            rest = [*rest, *self._reader.push(self._decoder.finish()), *self._reader.finish()]
            reason = "stop" if self._reader.stopped else reason
        self.reason = reason
        completion = Completion(
            self._reader.text,
            tuple(self.ids),
            reason,
            replace(self._meter.stats(), speculation=replace(self.speculation)),
            self._meter.profile(),
            None if self._logprobs is None else tuple(self._found),
            self._reader.reasoning,
            tuple(Call(start.id, start.name, arguments.text) for start, arguments in self._reader.calls),
        )
        return Finished(said(rest), completion, tuple(rest))


def _token_logprobs(pool: _kernels.ThreadPool, logits: npt.NDArray[np.float32], id: int, top: int) -> TokenLogprobs:
    best = np.empty(min(max(top, 1), len(logits)), np.int32)
    _kernels.top_ids(pool, logits, best)
    largest, log_sum = float(logits[best[0]]), _kernels.log_sum_exp(pool, logits)

    def logprob(id: int) -> float:
        logit = float(logits[id])
        return -log_sum if logit == largest else logit - largest - log_sum  # also where both are infinite

    return TokenLogprobs(id, logprob(id), tuple((i, logprob(i)) for i in best[:top].tolist()))


class _Meter:
    """Reads the engine's counters at the start of an answer, at its first token and at its end.

    What is computed in the same steps for other answers is in them, too.
    """

    def __init__(self, engine: Engine, prompt_tokens: int, reused_tokens: int, seed: int | None, asked: float) -> None:
        self._engine, self._prompt_tokens, self._reused_tokens, self._seed = engine, prompt_tokens, reused_tokens, seed
        self._tokens = 0
        disk = engine.disk_profile
        self._disk = disk.bandwidth_bytes_per_sec if disk.measured else None, engine.disk_bytes_per_sec_allowed
        self.sampling, self.text = Stopwatch(), Stopwatch()
        self._asked = asked
        self._began = self._first_token = self._last_token = time.perf_counter()
        self._at_start = self._at_first_token = engine.experts.counters()
        self._head_at_start = HeadCounters() if engine.lossy_head is None else engine.lossy_head.counters()
        self._routing_at_start = engine.routing_counters() or RoutingCounters()
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
        engine, head, routing = self._engine, self._engine.lossy_head, self._engine.routing_counters()
        end = engine.experts.counters()
        first = self._at_first_token if self._tokens else end
        prefill, decode = self._clocks()
        return GenerationStats(
            prompt_tokens=self._prompt_tokens,
            reused_tokens=self._reused_tokens,
            new_tokens=self._tokens,
            queue_sec=self._began - self._asked,
            ttft_sec=self._first_token - self._asked,
            decode_sec=self._last_token - self._first_token,
            load_sec=engine.load_sec,
            prefill=Phase.of(prefill, first - self._at_start, *self._disk),
            decode=Phase.of(decode, end - first, *self._disk),
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
            lossy_routing=None if routing is None else routing - self._routing_at_start,
        )
