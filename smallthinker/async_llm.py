"""The public interface for asyncio: the same model, awaited.

Nothing blocks the event loop: the model computes on a thread of its own, and loading and closing go to another.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from smallthinker.forks import StaysHere
from smallthinker.generation.answer import Completion
from smallthinker.generation.embedding import Pooling
from smallthinker.generation.request import Request
from smallthinker.llm import LLM, CallOptions, Prompt, embedding_of
from smallthinker.options import EngineChanges, EngineOptions
from smallthinker.text.message_types import Message

if TYPE_CHECKING:
    from typing_extensions import Unpack


class AsyncTextStream(StaysHere):
    """`async for` pieces of text as they are generated; `completion` is there once the iteration has ended.

    Close it, leave its `async with` block, drop it, or cancel the task that waits for it, and the rest of the answer is
    not written.
    """

    def __init__(self, request: Request) -> None:
        self.request = request

    @property
    def completion(self) -> Completion | None:
        return self.request.completion

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        while True:
            event = await self.request.__anext__()
            if event.text:
                return event.text

    async def aclose(self) -> None:
        """End the answer here. May be called twice."""
        self.request.cancel()

    async def __aenter__(self) -> AsyncTextStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        self.request.cancel()


class AsyncLLM(StaysHere):
    """An LLM for asyncio, from any number of tasks and event loops.

    >>> async def main():
    ...     async with await AsyncLLM.load(memory="1GiB", sequences=2) as llm:
    ...         async for piece in llm.stream("Once upon a time", max_tokens=50):
    ...             print(piece, end="", flush=True)
    """

    def __init__(self, llm: LLM) -> None:
        self.llm = llm

    @classmethod
    async def load(
        cls,
        path: str | Path | None = None,
        options: EngineOptions | None = None,
        **changes: Unpack[EngineChanges],
    ) -> AsyncLLM:
        """What LLM takes, and raises; `progress` is called on another thread."""
        import asyncio  # 17 ms, which whoever awaits this has spent already

        return cls(await asyncio.to_thread(LLM, path, options, **changes))

    async def generate(self, prompt: Prompt, **options: Unpack[CallOptions]) -> Completion:
        """See `LLM.generate`. When the task is cancelled, so is the answer."""
        return await self.llm.submit(prompt, **options).aresult()

    async def chat(self, messages: Sequence[Message | Mapping[str, Any]], **options: Unpack[CallOptions]) -> Completion:
        """See `LLM.chat`."""
        return await self.generate(messages, **options)

    def stream(self, prompt: Prompt, **options: Unpack[CallOptions]) -> AsyncTextStream:
        """See `LLM.stream`; returns at once."""
        return AsyncTextStream(self.llm.submit(prompt, **options))

    async def embed(
        self, texts: str | Sequence[str], *, pooling: Pooling = "mean", timeout_sec: float | None = None
    ) -> npt.NDArray[np.float32]:
        """See `LLM.embed`. When the task is cancelled, so are the texts that wait."""
        found: list[npt.NDArray[np.float32]] = []
        for requests in self.llm.submit_embeddings(texts, pooling=pooling, timeout_sec=timeout_sec):
            with contextlib.ExitStack() as stack:
                for request in requests:
                    stack.callback(request.cancel)
                found += [embedding_of(await request.aresult()) for request in requests]
        return np.stack(found) if found else np.empty((0, self.llm.config.hidden_size), np.float32)

    def tokenize(self, text: str, *, special_tokens: bool = False) -> list[int]:
        return self.llm.tokenize(text, special_tokens=special_tokens)

    def detokenize(self, ids: Iterable[int]) -> str:
        return self.llm.detokenize(ids)

    async def close(self) -> None:
        """See `LLM.close`."""
        import asyncio

        await asyncio.to_thread(self.llm.close)

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()
