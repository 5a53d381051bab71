"""POST /v1/chat/completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from smallthinker.generation.answer import Completion, Finished, Token
from smallthinker.server.access.clients import client_of
from smallthinker.server.answers import PING_SEC, Answers, PromptRead, WantedAnswer, respond, unless_gone, with_seeds
from smallthinker.server.errors import end_of_stream
from smallthinker.server.models import Models
from smallthinker.server.openai.chat_request import wanted_chat
from smallthinker.server.openai.logprobs import chat_logprobs
from smallthinker.server.openai.usage import Usage, timings
from smallthinker.server.sampling.options import choices
from smallthinker.server.schemas import ChatRequest
from smallthinker.server.service import Service
from smallthinker.server.sse import DONE, PING, event
from smallthinker.text.answer_parser import CallArguments, CallStart, Part, Reasoning, Said


async def chat_completions(request: Request) -> Response:
    models: Models = request.app.state.models
    client = client_of(request.scope)
    async with models.bodies.read(request, ChatRequest) as asked, models.using(request, asked.model) as service:
        chat = await unless_gone(request, service.prepare(client, _prepare, service, asked))
        answers = Answers(
            service,
            with_seeds(chat.asked, chat.n),
            service.timeout(asked.timeout),
            client,
            tells_progress=asked.return_progress,
        )
    return await respond(request, answers, chat, stream=asked.stream)


def _prepare(service: Service, asked: ChatRequest) -> _Chat:
    """On a worker thread. Raises ApiError and SmallThinkerErrors."""
    n = choices(asked, service.settings.limits)
    return _Chat(
        service,
        wanted_chat(service, asked),
        n,
        one_call=asked.parallel_tool_calls is False,
        usage_wanted=asked.stream_options is not None and asked.stream_options.include_usage,
    )


@dataclass
class _Choice:
    """What has come of one of the answers."""

    reasoning: list[str] = field(default_factory=list)
    content: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    reasoning_tokens: int = 0
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    def add(self, part: Part) -> None:
        if isinstance(part, Reasoning):
            self.reasoning.append(part.text)
        elif isinstance(part, Said):
            self.content.append(part.text)
        elif isinstance(part, CallStart):
            call = {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": ""}}
            self.calls.append(call)
        else:
            self.calls[part.index]["function"]["arguments"] += part.text

    def message(self) -> dict[str, Any]:
        text = "".join(self.content)
        message: dict[str, Any] = {"role": "assistant", "content": text if text or not self.calls else None}
        message["refusal"] = None
        if self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        if self.calls:
            message["tool_calls"] = self.calls
        return message

    def finish_reason(self, completion: Completion) -> str:
        return "tool_calls" if self.calls and completion.finish_reason != "length" else _reason(completion)


@dataclass
class _Chat:
    """One request, ready to be answered."""

    service: Service
    asked: WantedAnswer
    n: int
    one_call: bool
    usage_wanted: bool

    def __post_init__(self) -> None:
        self._id, self._created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
        self._choices = [_Choice() for _ in range(self.n)]

    async def whole(self, answers: Answers) -> dict[str, Any]:
        completions: dict[int, Completion] = {}
        async for item in answers:
            if not isinstance(item, tuple):
                continue
            number, event = item
            choice = self._choices[number]
            for part in self._parts(answers, number, event):
                choice.add(part)
            if isinstance(event, Finished):
                completions[number] = event.completion
        return self._head("chat.completion") | {
            "choices": [
                {
                    "index": number,
                    "message": choice.message(),
                    "finish_reason": choice.finish_reason(completions[number]),
                    "logprobs": {"content": choice.logprobs, "refusal": None} if choice.logprobs else None,
                }
                for number, choice in enumerate(self._choices)
            ],
            "usage": self._usage(completions).to_dict(),
            "timings": timings(completions[0].stats),
        }

    async def stream(self, answers: Answers) -> AsyncIterator[bytes]:
        completions: dict[int, Completion] = {}
        told = time.monotonic()
        try:
            for number in range(self.n):
                yield self._chunk(number, {"role": "assistant", "content": ""})
            async for item in answers:
                if not isinstance(item, tuple):
                    yield PING if item is None else self._progress(item)
                    continue
                number, event_ = item
                choice = self._choices[number]
                parts = self._parts(answers, number, event_)
                if parts:
                    told = time.monotonic()
                elif time.monotonic() - told > PING_SEC:  # a call is handed on as a whole, and may be a long one
                    told = time.monotonic()
                    yield PING
                for part in parts:
                    choice.add(part)
                    yield self._chunk(number, _delta(part), logprobs=self._take_logprobs(choice))
                if isinstance(event_, Finished):
                    completions[number] = event_.completion
                    reason = choice.finish_reason(event_.completion)
                    yield self._chunk(number, {}, reason, logprobs=self._take_logprobs(choice))
            if self.usage_wanted:
                last = {"choices": [], "usage": self._usage(completions).to_dict()}
                yield event(self._head("chat.completion.chunk") | last | {"timings": timings(completions[0].stats)})
            yield DONE
        except Exception as error:
            yield event(end_of_stream(error))

    def _parts(self, answers: Answers, number: int, event: Token | Finished) -> list[Part]:
        choice = self._choices[number]
        if isinstance(event, Token):
            choice.reasoning_tokens += event.is_thought
            if event.logprobs is not None:
                choice.logprobs.append(chat_logprobs(self.service.llm.tokenizer, event.logprobs))
        parts = list(event.parts)
        if self.one_call:
            if isinstance(event, Token) and any(isinstance(part, CallStart) for part in parts):
                answers.stop(number)
            parts = [part for part in parts if not _belongs_to_second_call(part)]
        return parts

    def _take_logprobs(self, choice: _Choice) -> dict[str, Any] | None:
        """Those of the tokens since the last chunk; text may come later than its tokens."""
        taken, choice.logprobs = choice.logprobs, []
        return {"content": taken, "refusal": None} if taken else None

    def _usage(self, completions: dict[int, Completion]) -> Usage:
        return Usage.of(list(completions.values()), sum(choice.reasoning_tokens for choice in self._choices))

    def _chunk(
        self, number: int, delta: dict[str, Any], reason: str | None = None, *, logprobs: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": number, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
        chunk = self._head("chat.completion.chunk") | {"choices": [choice]}
        return event(chunk | {"usage": None} if self.usage_wanted else chunk)

    def _progress(self, read: PromptRead) -> bytes:
        said = {"choices": [], "prompt_progress": read.to_dict()}
        return event(self._head("chat.completion.chunk") | said | ({"usage": None} if self.usage_wanted else {}))

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self.service.name}


def _delta(part: Part) -> dict[str, Any]:
    if isinstance(part, Reasoning):
        return {"reasoning_content": part.text}
    if isinstance(part, Said):
        return {"content": part.text}
    if isinstance(part, CallStart):
        function = {"name": part.name, "arguments": ""}
        return {"tool_calls": [{"index": part.index, "id": part.id, "type": "function", "function": function}]}
    return {"tool_calls": [{"index": part.index, "function": {"arguments": part.text}}]}


def _belongs_to_second_call(part: Part) -> bool:
    return isinstance(part, (CallStart, CallArguments)) and part.index > 0


def _reason(completion: Completion) -> str:
    return "length" if completion.finish_reason == "length" else "stop"
