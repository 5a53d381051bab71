"""POST /api/chat and /api/generate: an answer as lines of JSON, or as one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from smallthinker.generation.answer import Completion, Finished, Token
from smallthinker.server.access.clients import client_of
from smallthinker.server.answers import Answers, WantedAnswer, respond, unless_gone
from smallthinker.server.errors import end_of_stream
from smallthinker.server.models import Models
from smallthinker.server.ollama.requests import wanted
from smallthinker.server.ollama.schemas import ChatRequest, GenerateRequest
from smallthinker.server.openai.logprobs import chat_logprobs
from smallthinker.server.service import Service
from smallthinker.server.sse import LINES, line
from smallthinker.text.answer_parser import CallArguments, CallStart, Part, Reasoning, Said


async def chat(request: Request) -> Response:
    return await _answer(request, ChatRequest)


async def generate(request: Request) -> Response:
    return await _answer(request, GenerateRequest)


async def _answer(request: Request, schema: type[ChatRequest] | type[GenerateRequest]) -> Response:
    models: Models = request.app.state.models
    client = client_of(request.scope)
    async with models.bodies.read(request, schema) as asked, models.using(request, asked.model) as service:
        name, is_chat = asked.model or service.name, isinstance(asked, ChatRequest)
        if not (asked.messages if isinstance(asked, ChatRequest) else asked.prompt):
            return JSONResponse(_head(name) | _said(is_chat) | {"done": True, "done_reason": "load"})
        answer = await unless_gone(request, service.prepare(client, wanted, service, asked))
        answers = Answers(service, [answer], service.timeout(None), client)
        form = _Form(service, answer, name, is_chat)
    return await respond(request, answers, form, stream=asked.stream, media_type=LINES)


@dataclass
class _Form:
    """One request, ready to be answered."""

    service: Service
    asked: WantedAnswer
    name: str
    is_chat: bool
    logprobs: list[dict[str, Any]] = field(default_factory=list)  # since the last line
    called: list[CallStart] = field(default_factory=list)

    async def whole(self, answers: Answers) -> dict[str, Any]:
        parts: list[Part] = []
        async for item in answers:
            if isinstance(item, tuple):
                self._see(item[1])
                parts += item[1].parts
                if isinstance(item[1], Finished):
                    completion = item[1].completion
        text = completion.text
        calls = [call for part in parts if (call := self._call(part))]
        said = _said(self.is_chat, text, completion.reasoning, calls) | self._take_logprobs()
        return _head(self.name) | said | _end(completion)

    async def stream(self, answers: Answers) -> AsyncIterator[bytes]:
        try:
            async for item in answers:
                if item is None:  # a line without a word, for clients that give up on a silent connection
                    yield self._line(_said(self.is_chat))
                if not isinstance(item, tuple):
                    continue
                event = item[1]
                self._see(event)
                # a text that is only continued has no parts
                parts = [Said(event.text)] if event.text and self.asked.chat is None else event.parts
                for part in parts:
                    if isinstance(part, Reasoning):
                        yield self._line(_said(self.is_chat, thinking=part.text))
                    elif isinstance(part, Said):
                        yield self._line(_said(self.is_chat, part.text))
                    elif call := self._call(part):
                        yield self._line(_said(self.is_chat, calls=[call]))
                if isinstance(event, Finished):
                    last = _head(self.name) | _said(self.is_chat) | self._take_logprobs()
                    yield line(last | _end(event.completion))
        except Exception as error:
            yield line({"error": end_of_stream(error)["error"]["message"]})

    def _see(self, event: Token | Finished) -> None:
        if isinstance(event, Token) and event.logprobs is not None:
            self.logprobs.append(chat_logprobs(self.service.llm.tokenizer, event.logprobs))

    def _call(self, part: Part) -> dict[str, Any] | None:
        """A call as soon as all of it is there."""
        if isinstance(part, CallStart):
            self.called.append(part)
        if not isinstance(part, CallArguments):
            return None
        start = self.called[part.index]
        function = {"index": start.index, "name": start.name, "arguments": json.loads(part.text)}
        return {"id": start.id, "function": function}

    def _take_logprobs(self) -> dict[str, Any]:
        taken, self.logprobs = self.logprobs, []
        return {"logprobs": taken} if taken else {}

    def _line(self, said: dict[str, Any]) -> bytes:
        return line(_head(self.name) | said | self._take_logprobs() | {"done": False})


def _head(name: str) -> dict[str, Any]:
    return {"model": name, "created_at": datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")}


def _said(
    is_chat: bool, text: str = "", thinking: str = "", calls: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    more: dict[str, Any] = {"thinking": thinking} if thinking else {}
    if not is_chat:
        return {"response": text} | more
    return {"message": {"role": "assistant", "content": text} | more | ({"tool_calls": calls} if calls else {})}


def _end(completion: Completion) -> dict[str, Any]:
    """Durations in nanoseconds. Nothing is loaded for a request, but it may wait, which is in the total alone."""
    stats = completion.stats
    return {
        "done": True,
        "done_reason": "length" if completion.finish_reason == "length" else "stop",
        "total_duration": _nanoseconds(stats.ttft_sec + stats.decode_sec),
        "load_duration": 0,
        "prompt_eval_count": stats.prompt_tokens,
        "prompt_eval_duration": _nanoseconds(stats.ttft_sec - stats.queue_sec),
        "eval_count": len(completion.token_ids),
        "eval_duration": _nanoseconds(stats.decode_sec),
    }


def _nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e9))
