"""The public Python interface: a model that writes text.

Prints nothing, installs no signal handlers, keeps no global state: several models can live in one process.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypedDict

from smallthinker.cache.kv_cache import KvKind
from smallthinker.engine import Engine
from smallthinker.errors import RequestError
from smallthinker.expert_store.queues import QueueKind
from smallthinker.expert_store.storage_profile import StorageProfile
from smallthinker.generation import Completion, GenerationParams, TextStream
from smallthinker.layers import LOOK_AHEAD
from smallthinker.lossy_head import DEFAULT_THRESHOLD
from smallthinker.memory_plan import MemoryPlan
from smallthinker.tokenizer import Message

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


class LLM:
    """A model loaded from a store, inside a memory budget.

    >>> with LLM(memory="1GiB") as llm:
    ...     print(llm.generate("Once upon a time", max_tokens=50).text)

    A prompt is text, or messages ({"role": ..., "content": ...}) that the model's chat template turns into text.
    One answer at a time; `cancel` may be called from any thread.
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
        storage: StorageProfile | str | Path | None = None,
        prefetch: bool = True,
        look_ahead: bool = True,
        lossy_head: str | Path | None = None,
        lossy_threshold: float = DEFAULT_THRESHOLD,
    ) -> None:
        """path: a store (see `smallthinker convert`); None is the bundled demo model. memory: a ceiling for the whole
        process, bytes or '1GiB'; None takes what is free, less a margin. context: tokens of prompt and answer together.
        kv: 'f16', or 'q8' for a KV cache of half the size that changes outputs slightly.
        storage: a slower disk to emulate: a bundled profile's name ('emmc'), a file that `smallthinker probe` wrote, or
        a StorageProfile.
        prefetch, look_ahead: ask for a layer's experts before its attention, and read what later layers will likely
        want in the disk's idle time; no output depends on them.
        lossy_head: a published LM-head predictor (model_lm_head.pt): only logits that it scores above lossy_threshold
        are computed, and answers differ from the exact ones.

        Raises a SmallThinkerError: StoreFormatError, ConfigError, TokenizerError, MemoryBudgetError,
        ContextLengthError, RequestError, StoreReadError, ProfileError, CheckpointError.
        """
        self._engine = Engine(
            DEMO_STORE if path is None else path,
            memory=memory,
            context=context,
            kv=kv,
            threads=threads,
            reader=reader,
            storage=storage,
            prefetch=prefetch,
            look_ahead=LOOK_AHEAD if look_ahead else (),
            lossy_head=lossy_head,
            lossy_threshold=lossy_threshold,
        )
        self._cancelled = threading.Event()
        self._computing = threading.Lock()  # held during each step: `close` waits for it, then frees the memory
        self._idle = threading.Lock()  # held from the start of an answer to its end
        self._closed = False

    @property
    def plan(self) -> MemoryPlan:
        """Where the memory goes."""
        return self._engine.plan

    @property
    def storage(self) -> StorageProfile | None:
        """The disk that is emulated."""
        return self._engine.storage

    @property
    def storage_warning(self) -> str | None:
        """Why the emulated disk may be slower than its profile says, in one line; None where nothing is known of it."""
        return self._engine.storage_warning

    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Completion:
        """Write the whole answer. Options are the fields of GenerationParams (temperature, max_tokens, seed, stop ...).

        Raises ContextLengthError and RequestError before anything is computed; StoreReadError when the disk fails.
        """
        with self.stream(prompt, **options) as stream:
            for _ in stream:
                pass
            assert stream.completion is not None
            return stream.completion

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> TextStream:
        """Like `generate`, piece by piece: iterate over the stream for text; `stream.completion` holds the rest.

        Raises RequestError as well while another answer of this model is being written.
        """
        text = prompt if isinstance(prompt, str) else self._engine.tokenizer.render_chat(prompt)
        params = GenerationParams(**options)
        if not self._idle.acquire(blocking=False):
            raise RequestError("this model is writing another answer: finish, close or cancel that stream first")
        try:
            self._cancelled.clear()
            if self._closed:
                raise RequestError("this model is closed")
            return TextStream(
                self._engine,
                self._engine.tokenizer.encode(text),
                params,
                cancelled=self._cancelled,
                computing=self._computing,
                on_end=self._idle.release,
            )
        except BaseException:
            self._idle.release()
            raise

    def tokenize(self, text: str) -> list[int]:
        return self._engine.tokenizer.encode(text)

    def detokenize(self, ids: Iterable[int]) -> str:
        return self._engine.tokenizer.decode(list(ids))

    def cancel(self) -> None:
        """End the answer that is being written, from any thread; it finishes with reason 'cancelled' within a layer."""
        self._cancelled.set()

    def close(self) -> None:
        """Free files, threads and memory; a running answer ends first, with reason 'cancelled'. May be called twice."""
        self._closed = True
        self._cancelled.set()
        with self._computing:
            self._engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
