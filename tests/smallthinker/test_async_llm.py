from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from gate import Gate

from smallthinker import LLM, AsyncLLM
from smallthinker.errors import StoreFormatError

OPTIONS: Any = {"max_tokens": 20, "seed": 1, "ignore_eos": True}


def test_awaited_answers_are_those_of_a_thread(hybrid_store: Path) -> None:
    messages: Any = [{"role": "user", "content": "hi"}]
    with LLM(hybrid_store) as llm:
        expected = [llm.generate(f"The sea {i}", **OPTIONS).text for i in range(5)]
        answer = llm.chat(messages, **OPTIONS).text
        assert answer == llm.generate(messages, **OPTIONS).text

    async def stream(llm: AsyncLLM, prompt: str) -> str:
        pieces = []
        async with llm.stream(prompt, **OPTIONS) as stream:
            async for piece in stream:
                pieces.append(piece)
        assert stream.completion is not None
        assert stream.completion.text == "".join(pieces)
        return stream.completion.text

    async def run() -> None:
        async with await AsyncLLM.load(hybrid_store, sequences=2) as llm:
            texts = await asyncio.gather(*(stream(llm, f"The sea {i}") for i in range(4)))
            assert [*texts, (await llm.generate("The sea 4", **OPTIONS)).text] == expected
            assert (await llm.chat(messages, **OPTIONS)).text == answer
            assert llm.detokenize(llm.tokenize("hi")) == "hi"

    asyncio.run(run())


def test_a_cancelled_task_and_a_dropped_stream_end_their_answers(hybrid_store: Path) -> None:
    async def run() -> None:
        async with await AsyncLLM.load(hybrid_store) as llm:
            gates = Gate(1), Gate(1)
            long: Any = OPTIONS | {"max_tokens": 450, "logits_processor": gates[0]}
            stream = llm.stream("The sea", **long)
            request = stream.request
            await asyncio.to_thread(gates[0].wait)
            del stream
            gates[0].open()
            assert (await request.aresult()).finish_reason == "cancelled"

            long["logits_processor"] = gates[1]
            request = llm.llm.submit("The sea", **long)
            waiting = llm.llm.submit("The sky", **long)
            task = asyncio.create_task(waiting.aresult())
            await request.__anext__()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            request.cancel()
            gates[1].open()
            assert (await waiting.aresult()).finish_reason == "cancelled"
            assert (await llm.generate("The sea", **OPTIONS)).finish_reason == "length"

    asyncio.run(run())


def test_errors_of_loading_are_raised_where_it_is_awaited(tmp_path: Path) -> None:
    with pytest.raises(StoreFormatError):
        asyncio.run(AsyncLLM.load(tmp_path))
