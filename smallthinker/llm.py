"""The public Python interface: a model that writes text.

Prints nothing, installs no signal handlers, keeps no global state: several models can live in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import numpy.typing as npt

from smallthinker.cache.kv_cache import KvKind
from smallthinker.config import ModelConfig
from smallthinker.engine import Engine
from smallthinker.expert_store.queues import QueueKind
from smallthinker.generation import Completion, GenerationParams, LogitsProcessor
from smallthinker.layers import LOOK_AHEAD
from smallthinker.lossy_head import DEFAULT_THRESHOLD
from smallthinker.memory_plan import MemoryPlan
from smallthinker.request import Request
from smallthinker.scheduler import MOST_WAITING, Scheduler
from smallthinker.tokenizer import Message, Tokenizer

DEMO_STORE = Path(__file__).parent / "demo"

if TYPE_CHECKING:
    from typing_extensions import Unpack

Prompt = str | Sequence[Message]


class Options(TypedDict, total=False):
    """The fields of GenerationParams, as keyword arguments; what is left out keeps its default there."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    repeat_last_n: int
    seed: int | None
    max_tokens: int | None
    stop: Sequence[str]
    ignore_eos: bool


class TextStream:
    """Iterate for pieces of text as they are generated; `completion` is there once the iteration has ended.

    The answer is written whether or not anybody iterates. Close the stream, leave its `with` block or drop it, and the
    rest of the answer is not.
    """

    def __init__(self, request: Request) -> None:
        self.request = request

    @property
    def completion(self) -> Completion | None:
        return self.request.completion

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while True:
            event = next(self.request)
            if event.text:
                return event.text

    def close(self) -> None:
        """End the answer here. May be called twice."""
        self.request.cancel()

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class LLM:
    """A model loaded from a store, inside a memory budget.

    >>> with LLM(memory="1GiB") as llm:
    ...     print(llm.generate("Once upon a time", max_tokens=50).text)

    A prompt is text, or messages ({"role": ..., "content": ...}) that the model's chat template turns into text.
    Everything may be called from any thread: answers that are asked for at the same time wait for each other.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        memory: str | int | None = None,
        context: int | None = None,
        kv: KvKind = "f16",
        threads: int | None = None,
        reader: QueueKind = "auto",
        prefetch: bool = True,
        look_ahead: bool = True,
        lossy_head: str | Path | None = None,
        lossy_threshold: float = DEFAULT_THRESHOLD,
        sequences: int = 1,
        max_waiting: int = MOST_WAITING,
        reserved: int = 0,
    ) -> None:
        """path: a store (see `smallthinker convert`); None is the bundled demo model. memory: a ceiling for the whole
        process, bytes or '1GiB'; None takes what is free, less a margin. context: tokens of prompt and answer together.
        kv: 'f16', or 'q8' for a KV cache of half the size that changes outputs slightly.
        prefetch, look_ahead: ask for a layer's experts before its attention, and read what later layers will likely
        want in the disk's idle time; no output depends on them.
        lossy_head: a published LM-head predictor (model_lm_head.pt): only logits that it scores above lossy_threshold
        are computed, and answers differ from the exact ones.
        sequences: answers that are written side by side, and conversations whose KV cache is kept for a next turn; each
        is planned for a whole context. max_waiting: requests that may wait for others before QueueFullError.
        reserved: bytes of the budget that are left to the application.

        Raises a SmallThinkerError: StoreFormatError, ConfigError, TokenizerError, MemoryBudgetError,
        ContextLengthError, RequestError, StoreReadError, CheckpointError.
        """
        self._engine = Engine(
            DEMO_STORE if path is None else path,
            memory=memory,
            context=context,
            kv=kv,
            threads=threads,
            reader=reader,
            prefetch=prefetch,
            look_ahead=LOOK_AHEAD if look_ahead else (),
            lossy_head=lossy_head,
            lossy_threshold=lossy_threshold,
            sequences=sequences,
            reserved=reserved,
        )
        self.scheduler = Scheduler(self._engine, max_waiting=max_waiting)

    @property
    def plan(self) -> MemoryPlan:
        """Where the memory goes."""
        return self._engine.plan

    @property
    def tokenizer(self) -> Tokenizer:
        """Texts and chat messages to token ids and back."""
        return self._engine.tokenizer

    @property
    def config(self) -> ModelConfig:
        return self._engine.config

    def expert_uses(self) -> npt.NDArray[np.uint32]:
        """How often each expert has been used since the model was loaded, uint32 [layers, experts]; a copy."""
        config = self._engine.config
        return self._engine.experts.uses().reshape(config.num_hidden_layers, config.moe_num_primary_experts)

    def generate(
        self,
        prompt: Prompt,
        *,
        logits_processor: LogitsProcessor | None = None,
        logprobs: int | None = None,
        timeout_sec: float | None = None,
        on_prefill: Callable[[int, int], None] | None = None,
        **options: Unpack[Options],
    ) -> Completion:
        """Write the whole answer. Options are the fields of GenerationParams (temperature, max_tokens, seed, stop ...);
        the others are those of `Scheduler.submit`.

        Raises ContextLengthError, RequestError and QueueFullError before anything is computed; StoreReadError when the
        disk fails.
        """
        with self.stream(
            prompt,
            logits_processor=logits_processor,
            logprobs=logprobs,
            timeout_sec=timeout_sec,
            on_prefill=on_prefill,
            **options,
        ) as stream:
            return stream.request.result()

    def stream(
        self,
        prompt: Prompt,
        *,
        logits_processor: LogitsProcessor | None = None,
        logprobs: int | None = None,
        timeout_sec: float | None = None,
        on_prefill: Callable[[int, int], None] | None = None,
        **options: Unpack[Options],
    ) -> TextStream:
        """Like `generate`, piece by piece: iterate over the stream for text; `stream.completion` holds the rest, and
        `stream.request` gives the tokens one by one."""
        tokenizer = self._engine.tokenizer
        text = prompt if isinstance(prompt, str) else tokenizer.render_chat(prompt)
        return TextStream(
            self.scheduler.submit(
                tokenizer.encode(text),
                GenerationParams(**options),
                logits_processor=logits_processor,
                logprobs=logprobs,
                timeout_sec=timeout_sec,
                on_prefill=on_prefill,
            )
        )

    def tokenize(self, text: str) -> list[int]:
        return self._engine.tokenizer.encode(text)

    def detokenize(self, ids: Iterable[int]) -> str:
        return self._engine.tokenizer.decode(list(ids))

    def cancel(self) -> None:
        """End every answer that is being written or waits, from any thread, with reason 'cancelled' within a layer."""
        self.scheduler.cancel_all()

    def close(self) -> None:
        """Free files, threads and memory; running answers end first, with reason 'cancelled'. May be called twice."""
        self.scheduler.close()
        self._engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
