"""The public Python interface: a model that writes text.

Prints nothing, installs no signal handlers, keeps no global state: several models can live in one process.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypedDict, cast

import numpy as np
import numpy.typing as npt

from smallthinker import arguments
from smallthinker.arguments import is_list, refuse, token_ids
from smallthinker.demo import DEMO_STORE as DEMO_STORE
from smallthinker.engine import Engine
from smallthinker.errors import CancelledError, MemoryBudgetError, RequestError
from smallthinker.expert_store.device.storage_profile import StorageProfile
from smallthinker.expert_store.store import Store
from smallthinker.forks import StaysHere
from smallthinker.generation.answer import Completion, GenerationParams, LogitsProcessor
from smallthinker.generation.constraints import constrained, grammar_bytes, offered
from smallthinker.generation.embedding import Pooling
from smallthinker.generation.logits import in_turn
from smallthinker.generation.request import Request
from smallthinker.generation.scheduler import Scheduler
from smallthinker.generation.speculation.proposer import proposer_of
from smallthinker.memory_plan import MemoryPlan
from smallthinker.models.description import Model
from smallthinker.options import EngineChanges, EngineOptions
from smallthinker.text.chat_prompt import chat_prompt, switches
from smallthinker.text.message_types import Message, Tool
from smallthinker.text.messages import plain_tools
from smallthinker.text.tokenizer import Tokenizer

# The collector may drop an LLM on a thread that holds a lock which the LLM's own needs to end: the longest to wait.
_DROPPED_SEC = 5.0
_EMBEDDED_AT_ONCE = 16  # texts of one call in the queue, where others wait, too

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from smallthinker.generation.grammar import Grammars
    from smallthinker.generation.speculation.draft_model import DraftModel

Prompt = str | Sequence[Message | Mapping[str, Any]]


class GenerationOptions(TypedDict, total=False):
    """The fields of GenerationParams, as keyword arguments; what is left out keeps its default there."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    repeat_last_n: int
    seed: int | None
    max_tokens: int | None
    stop: str | Sequence[str] | None
    ignore_eos: bool


class ChatOptions(TypedDict, total=False):
    """What a chat's template is given beside the messages: see LLM."""

    tools: Sequence[Tool | Mapping[str, Any]] | None
    tool_choice: str | None
    thinking: bool | None
    template_values: Mapping[str, Any] | None


class CallOptions(GenerationOptions, ChatOptions, total=False):
    """Those, what else `Scheduler.submit` takes, and how a prompt's text is read: see LLM."""

    logits_processor: LogitsProcessor | None
    logprobs: int | None
    timeout_sec: float | None
    on_prefill: Callable[[int, int], None] | None
    special_tokens: bool
    json_schema: Mapping[str, Any] | None


class TextStream(StaysHere):
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


def embedding_of(completion: Completion) -> npt.NDArray[np.float32]:
    """Raises CancelledError where the text has not been read to its end."""
    if completion.embedding is None:
        raise CancelledError(f"embedding: the text was not read to its end: {completion.finish_reason}")
    return completion.embedding


class LLM(StaysHere):
    """A model loaded from a store, inside a memory budget.

    >>> with LLM(memory="1GiB") as llm:
    ...     print(llm.generate("Once upon a time", max_tokens=50).text)

    A prompt is text, or messages as in OpenAI's API ({"role": ..., "content": ...}; see smallthinker.text.messages),
    which the model's chat template turns into text. Names of special tokens (`<|im_end|>`) in either are plain text;
    only a template's own stand for tokens, and those of a text with `special_tokens=True`. Of the answer to messages
    `text` is what is said; thoughts and calls stand apart, in `Completion.reasoning` and `calls`. With messages may
    come `tools`, functions as in OpenAI's API that the model may call, and `tool_choice`: "auto", "none", "required" or
    the name of one that it must call, with arguments that fit its parameters; `thinking`, True or False for templates
    with such a switch; and `template_values`, what else the template asks for.
    With `json_schema` the answer is JSON that fits it, token by token ({"type": "object"} for any). This needs
    smallthinker[json], and when it is first used two seconds and memory of the budget, for which experts give way.
    Everything may be called from any thread: answers that are asked for at the same time wait for each other. Not in a
    process that was forked from the one that loaded it: threads don't come along, and ForkedError says so.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        options: EngineOptions | None = None,
        **changes: Unpack[EngineChanges],
    ) -> None:
        """path: a store (see `smallthinker convert`); None is the bundled demo model. changes: options by name, as
        `memory="1GiB"`, instead of those in `options` or the defaults: see EngineOptions.

        Raises a SmallThinkerError: StoreFormatError, ConfigError, TokenizerError, MemoryBudgetError,
        ContextLengthError, RequestError, StoreReadError, ProfileError, CheckpointError.
        """
        options = EngineOptions.of(options, changes)
        self._grammars_lock, self._made_grammars = threading.Lock(), cast("Grammars | None", None)
        with ExitStack() as opened:
            drafts: list[DraftModel] = []
            if options.draft is not None:
                from smallthinker.generation.speculation.draft_model import DraftModel

                drafts = [opened.enter_context(closing(DraftModel.load(options)))]
                options = replace(options, reserved=options.reserved + drafts[0].reserved_bytes)
            self._engine = Engine(DEMO_STORE if path is None else path, options)
            opened.callback(self._engine.close)
            for draft in drafts:
                draft.check_same_words(self._engine.tokenizer)
            resources = opened.pop_all()
            try:
                self.scheduler = Scheduler(
                    self._engine,
                    max_waiting=options.max_waiting,
                    at_end=resources.close,
                    proposer=proposer_of(options, drafts),
                )
            except BaseException:
                resources.close()
                raise

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

    @property
    def store(self) -> Store:
        """The files that it is loaded from."""
        return self._engine.store

    @property
    def notes(self) -> tuple[str, ...]:
        """What was taken for granted of the model, since its files don't say it; a line each."""
        return self._engine.store.notes

    @property
    def tokenizer(self) -> Tokenizer:
        """Texts and chat messages to token ids and back."""
        return self._engine.tokenizer

    @property
    def config(self) -> Model:
        return self._engine.config

    def expert_uses(self) -> npt.NDArray[np.uint32]:
        """How often each expert has been used since the model was loaded, uint32 [layers, most experts of a layer]; a
        copy."""
        self.scheduler.home.check()
        uses, experts = self._engine.experts.uses(), self._engine.config.experts_of_layers
        table = np.zeros((len(experts), max(experts)), np.uint32)
        table[np.arange(max(experts)) < np.array(experts)[:, None]] = uses
        return table

    def generate(self, prompt: Prompt, **options: Unpack[CallOptions]) -> Completion:
        """Write the whole answer. Options are the fields of GenerationParams (temperature, max_tokens, seed, stop ...)
        and logits_processor, logprobs, timeout_sec and on_prefill of `Scheduler.submit`; and special_tokens, for a text
        whose special tokens are to act as such.

        Raises ContextLengthError, RequestError and QueueFullError before anything is computed; StoreReadError when the
        disk fails.
        """
        with self.stream(prompt, **options) as stream:
            return stream.request.result()

    def chat(self, messages: Sequence[Message | Mapping[str, Any]], **options: Unpack[CallOptions]) -> Completion:
        """The assistant's answer to a conversation; append it to the messages, and the next turn computes only what is
        new. Raises what `generate` does, and TokenizerError where the model has no chat template."""
        return self.generate(messages, **options)

    def stream(self, prompt: Prompt, **options: Unpack[CallOptions]) -> TextStream:
        """Like `generate`, piece by piece: iterate over the stream for text; `stream.completion` holds the rest."""
        return TextStream(self.submit(prompt, **options))

    def submit(self, prompt: Prompt, **options: Unpack[CallOptions]) -> Request:
        """Like `stream`, token by token: see Request."""
        self.scheduler.home.check()
        tokenizer = self._engine.tokenizer
        special_tokens = arguments.flag("special_tokens", options.pop("special_tokens", False))
        tools, thinking = options.pop("tools", None), options.pop("thinking", None)
        schema, tool_choice = options.pop("json_schema", None), options.pop("tool_choice", None)
        values, chat = options.pop("template_values", None) or {}, None
        functions: list[dict[str, Any]] = []
        if isinstance(prompt, str):
            only_chat = {
                "tools": tools,
                "tool_choice": tool_choice,
                "thinking": thinking,
                "template_values": values or None,
            }
            for name, value in only_chat.items():
                if value is not None:
                    raise RequestError(f"{name}: only for messages; a text is continued as it is")
            ids = tokenizer.encode_prompt(arguments.text("prompt", prompt), special_tokens=special_tokens)
        elif not is_list(prompt):
            refuse("prompt", "text or a list of messages", prompt)
        elif special_tokens:
            raise RequestError("special_tokens: only for a prompt that is text; those of messages are the template's")
        else:
            functions = offered(plain_tools(tools), tool_choice)
            asked = chat_prompt(
                tokenizer,
                prompt,
                tools=functions,
                values=switches(tokenizer.chat_template, thinking, **values),
            )
            ids, chat = asked.ids, asked.answer
        chat, constraint = constrained(self._grammars, chat, schema, functions, tool_choice)
        processor = options.pop("logits_processor", None)
        arguments.callback("logits_processor", processor)
        request = self.scheduler.submit(
            ids,
            logits_processor=in_turn([one for one in (processor, constraint) if one is not None]),
            logprobs=options.pop("logprobs", None),
            timeout_sec=options.pop("timeout_sec", None),
            on_prefill=options.pop("on_prefill", None),
            chat=chat,
            params=GenerationParams(**cast(GenerationOptions, options)),  # what is left; the last to be evaluated
        )
        request.hold(self)
        return request

    def _grammars(self) -> Grammars:
        with self._grammars_lock:
            if self._made_grammars is None:
                try:
                    from smallthinker.generation.grammar import Grammars
                except ImportError as e:
                    what = f"json_schema, tool_choice: need {e.name}: pip install 'smallthinker[json]'"
                    raise RequestError(what) from None
                needed = grammar_bytes(self.config.vocab_size)
                try:
                    self.scheduler.between_steps(lambda: self._engine.set_aside(needed))
                except MemoryBudgetError as e:
                    raise MemoryBudgetError(f"json_schema, tool_choice: {e}", e.floor_bytes) from None
                self._made_grammars = Grammars(self.tokenizer, self.config)
            return self._made_grammars

    def embed(
        self, texts: str | Sequence[str], *, pooling: Pooling = "mean", timeout_sec: float | None = None
    ) -> npt.NDArray[np.float32]:
        """Texts as vectors, float32 [texts, hidden_size], each of length 1, so that their products are cosines: the
        mean of the states behind the model's final norm over the text's tokens, or with `pooling="last"` the last
        token's, which alone has seen all the others. The same bits however the texts are asked for.

        timeout_sec: for each, waiting included. Raises ContextLengthError, RequestError for a text without a token,
        QueueFullError, CancelledError, StoreReadError.
        """
        found: list[npt.NDArray[np.float32]] = []
        for requests in self.submit_embeddings(texts, pooling=pooling, timeout_sec=timeout_sec):
            with contextlib.ExitStack() as stack:
                for request in requests:
                    stack.callback(request.cancel)
                found += [embedding_of(request.result()) for request in requests]
        return np.stack(found) if found else np.empty((0, self.config.hidden_size), np.float32)

    def submit_embeddings(
        self, texts: str | Sequence[str], *, pooling: Pooling = "mean", timeout_sec: float | None = None
    ) -> Iterator[list[Request]]:
        """The same as requests, some at a time, each to be waited for before the next: see `embedding_of`."""
        self.scheduler.home.check()
        named = arguments.texts("texts", texts)
        prompts = [self._engine.tokenizer.encode_prompt(text) for text in named]
        for at, prompt in enumerate(prompts):
            if not prompt:
                raise RequestError(f"texts.{at}: expected text, found nothing")
            self._engine.check_fits(len(prompt), 1)
        size = min(_EMBEDDED_AT_ONCE, self._engine.options.max_waiting)
        for first in range(0, len(prompts), size):
            requests: list[Request] = []
            try:
                for prompt in prompts[first : first + size]:
                    request = self.scheduler.submit(
                        prompt, GenerationParams(), pooling=pooling, timeout_sec=timeout_sec
                    )
                    request.hold(self)
                    requests.append(request)
            except BaseException:
                for request in requests:
                    request.cancel()
                raise
            yield requests

    def tokenize(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """special_tokens: names of such in the text stand for them. Raises RequestError."""
        special_tokens = arguments.flag("special_tokens", special_tokens)
        return self._engine.tokenizer.encode(arguments.text("text", text), special_tokens=special_tokens)

    def detokenize(self, ids: Iterable[int]) -> str:
        """Raises RequestError."""
        return self._engine.tokenizer.decode(token_ids("ids", ids))

    def cancel(self) -> None:
        """End every answer that is being written or waits, from any thread, with reason 'cancelled' within a layer."""
        self.scheduler.cancel_all()

    def close(self) -> None:
        """Free files, threads and memory; running answers end first, with reason 'cancelled'.

        May be called again, from any threads at once: each returns when all is free. Within a callback or a logits
        processor it returns before, as the answer that waits for that has to end. In a forked process it does nothing.
        """
        self.scheduler.close()

    def __enter__(self) -> LLM:
        return self

    def __del__(self) -> None:
        scheduler = vars(self).get("scheduler")  # none where the constructor raised
        if scheduler is None or scheduler.closed:
            return
        try:
            what = "an LLM was dropped and not closed: use it in a with block"
            warnings.warn(what, ResourceWarning, stacklevel=2, source=self)
        finally:
            scheduler.close(_DROPPED_SEC)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
