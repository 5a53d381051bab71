"""A plugin for the `llm` command (https://llm.datasette.io): the models that `smallthinker list` names as its own.

    llm -m smallthinker/demo "It was a dark night"
    llm -m smallthinker/smollm2 -o memory 1GiB "What is a mixture of experts?"

Each is called smallthinker/NAME, and by its aliases. Nothing of the engine is imported before a model is used: `llm`
loads its plugins at every start.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llm
from pydantic import Field

if TYPE_CHECKING:
    from smallthinker.generation.answer import Completion
    from smallthinker.llm import LLM, TextStream
    from smallthinker.text.message_types import Message


class StoreOptions(llm.Options):
    """What `llm -o NAME VALUE` takes; what is left out is the engine's default."""

    memory: str | None = Field(default=None, description="Ceiling for the whole process, e.g. 1GiB")
    context: int | None = Field(default=None, description="Tokens of prompt and answer together")
    max_tokens: int | None = Field(default=None, description="Longest answer in tokens")
    temperature: float | None = Field(default=None, description="0 is greedy")
    top_k: int | None = Field(default=None, description="Keep the K likeliest tokens; 0 is off")
    top_p: float | None = Field(default=None, description="Keep tokens up to this mass; 1 is off")
    min_p: float | None = Field(default=None, description="Keep tokens this likely, relative to the best; 0 is off")
    repeat_penalty: float | None = Field(default=None, description="Weaken recent tokens; 1 is off")
    seed: int | None = Field(default=None, description="The same seed gives the same text")
    stop: str | None = Field(default=None, description="End before this text")


class SharedLLM:
    """One loaded model for all that ask for the same store, reloaded when they ask for another size of it."""

    def __init__(self, store: Path | None) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._loaded: LLM | None = None
        self._sizes: tuple[str | None, int | None] = (None, None)

    def stream(self, prompt: Any, on_end: Callable[[Completion], None]) -> _Answer:
        """The answer to an `llm` prompt. Raises a SmallThinkerError."""
        options = prompt.options.model_dump(exclude_none=True)
        sizes = options.pop("memory", None), options.pop("context", None)
        if "stop" in options:
            options["stop"] = [options["stop"]]
        messages: list[Message] = [{"role": m.role, "content": _text(m)} for m in prompt.messages]
        with self._lock:
            if self._loaded is None or sizes != self._sizes:
                self.close()
                from smallthinker.llm import LLM

                self._loaded, self._sizes = LLM(self._store, memory=sizes[0], context=sizes[1]), sizes
                atexit.unregister(self.close)
                atexit.register(self.close)  # what it learned makes the next start faster
            return _Answer(self._loaded.stream(messages, **options), on_end)

    def close(self) -> None:
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None


class _Answer:
    def __init__(self, stream: TextStream, on_end: Callable[[Completion], None]) -> None:
        self._stream, self._on_end = stream, on_end

    def pieces(self) -> Iterator[str]:
        with self._stream:
            yield from self._stream
        self._end()

    async def apieces(self) -> AsyncGenerator[str, None]:
        with self._stream:
            async for event in self._stream.request:
                if event.text:
                    yield event.text
        self._end()

    def _end(self) -> None:
        if self._stream.completion is not None:
            self._on_end(self._stream.completion)


class StoreModel(llm.Model):
    can_stream = True

    class Options(StoreOptions):
        pass

    def __init__(self, name: str, shared: SharedLLM) -> None:
        self.model_id, self._shared = f"smallthinker/{name}", shared

    def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> Iterator[str]:
        yield from self._shared.stream(prompt, _reporting(response)).pieces()


class AsyncStoreModel(llm.AsyncModel):
    can_stream = True

    class Options(StoreOptions):
        pass

    def __init__(self, name: str, shared: SharedLLM) -> None:
        self.model_id, self._shared = f"smallthinker/{name}", shared

    async def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> AsyncGenerator[str, None]:
        answer = await asyncio.to_thread(self._shared.stream, prompt, _reporting(response))  # loading takes seconds
        async for piece in answer.apieces():
            yield piece


@llm.hookimpl
def register_models(register: Callable[..., None]) -> None:
    from smallthinker.library import Library

    for model in Library().models():
        if model.runs:
            shared = SharedLLM(model.path)
            aliases = tuple(f"smallthinker/{alias}" for alias in model.aliases)
            register(StoreModel(model.name, shared), AsyncStoreModel(model.name, shared), aliases=aliases)


def _text(message: Any) -> str:
    return "".join(part.text for part in message.parts if hasattr(part, "text"))


def _reporting(response: Any) -> Callable[[Completion], None]:
    def report(completion: Completion) -> None:
        stats = completion.stats
        response.set_usage(input=stats.prompt_tokens, output=stats.new_tokens)
        response.response_json = {"finish_reason": completion.finish_reason, "seed": stats.seed}

    return report
