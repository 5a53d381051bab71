"""POST /v1/responses: text or items in; a thought, a message and calls out. Nothing is stored."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from smallthinker.errors import RequestError
from smallthinker.generation.answer import Completion, Finished, Token
from smallthinker.server.access.clients import client_of
from smallthinker.server.answers import Answers, WantedAnswer, respond, unless_gone
from smallthinker.server.errors import ApiError, bad_request, end_of_stream
from smallthinker.server.models import Models
from smallthinker.server.openai.chat_request import wanted_chat
from smallthinker.server.openai.response_items import Items
from smallthinker.server.openai.usage import Usage
from smallthinker.server.schemas import (
    ChatRequest,
    JsonObjectFormat,
    ResponseCall,
    ResponseItem,
    ResponseJsonSchema,
    ResponseMessage,
    ResponseNamedTool,
    ResponseResult,
    ResponsesRequest,
)
from smallthinker.server.service import Service
from smallthinker.server.sse import PING
from smallthinker.text.answer_parser import CallArguments, CallStart


async def responses(request: Request) -> Response:
    models: Models = request.app.state.models
    client = client_of(request.scope)
    async with models.bodies.read(request, ResponsesRequest) as asked, models.using(request, asked.model) as service:
        answer = await unless_gone(request, service.prepare(client, _prepare, service, asked))
        answers = Answers(service, [answer.asked], service.timeout(asked.timeout), client)
    return await respond(request, answers, answer, stream=asked.stream)


def _prepare(service: Service, asked: ResponsesRequest) -> _Answer:
    """On a worker thread. Raises ApiError and SmallThinkerErrors."""
    try:
        wanted = wanted_chat(service, _as_chat(asked))
    except (ApiError, RequestError) as error:
        field, colon, rest = str(error).partition(":")
        if field != "response_format":
            raise
        raise bad_request(f"text.format{colon}{rest}", "text.format") from None
    return _Answer(service, asked, wanted)


def _as_chat(asked: ResponsesRequest) -> ChatRequest:
    """The request for a chat's answer that means the same."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": asked.instructions}] if asked.instructions else []
    if isinstance(asked.input, str):
        messages.append({"role": "user", "content": asked.input})
    else:
        for item in asked.input:
            _add(messages, item)
    if not messages:
        raise bad_request("input: expected a message", "input")
    form = None if asked.text is None else asked.text.format
    choice: Any = asked.tool_choice
    if isinstance(choice, ResponseNamedTool):
        choice = {"type": "function", "function": {"name": choice.name}}
    fields: dict[str, Any] = {
        "messages": messages,
        "tools": [{"type": "function", "function": tool.model_dump(exclude={"type"})} for tool in asked.tools or []],
        "tool_choice": choice,
        "parallel_tool_calls": asked.parallel_tool_calls if asked.tools else None,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "max_tokens": asked.max_output_tokens,
        "enable_thinking": asked.enable_thinking,
        "reasoning_effort": None if asked.reasoning is None else asked.reasoning.effort,
    }
    if isinstance(form, JsonObjectFormat):
        fields["response_format"] = {"type": "json_object"}
    elif isinstance(form, ResponseJsonSchema):
        schema = {"name": form.name, "schema": form.json_schema}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    return ChatRequest.model_validate(fields)


def _add(messages: list[dict[str, Any]], item: ResponseItem) -> None:
    """An item's message; calls belong to the assistant's message before them. Thoughts are left out."""
    if isinstance(item, ResponseMessage):
        messages.append({"role": item.role, "content": item.content})
    elif isinstance(item, ResponseResult):
        messages.append({"role": "tool", "tool_call_id": item.call_id, "content": item.output})
    elif isinstance(item, ResponseCall):
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        function = {"name": item.name, "arguments": item.arguments}
        calls = messages[-1].setdefault("tool_calls", [])
        calls.append({"id": item.call_id, "type": "function", "function": function})


@dataclass
class _Answer:
    """One request, ready to be answered."""

    service: Service
    request: ResponsesRequest
    asked: WantedAnswer

    def __post_init__(self) -> None:
        self._id, self._created = f"resp_{secrets.token_hex(12)}", int(time.time())
        self._items = Items()
        self._reasoning_tokens = 0

    async def whole(self, answers: Answers) -> dict[str, Any]:
        completion: Completion | None = None
        async for item in answers:
            if isinstance(item, tuple):
                self._take(answers, item[1])
                completion = item[1].completion if isinstance(item[1], Finished) else None
        assert completion is not None
        self._items.finish()
        return self._response(completion)

    async def stream(self, answers: Answers) -> AsyncIterator[bytes]:
        items = self._items
        try:
            yield items.event("response.created", response=self._response(None))
            yield items.event("response.in_progress", response=self._response(None))
            async for item in answers:
                if not isinstance(item, tuple):
                    yield PING
                    continue
                for event in self._take(answers, item[1]):
                    yield event
                if isinstance(item[1], Finished):
                    for event in items.finish():
                        yield event
                    response = self._response(item[1].completion)
                    yield items.event(f"response.{response['status']}", response=response)
        except Exception as error:
            fault = end_of_stream(error)["error"]
            failed = self._response(None) | {"status": "failed"}
            failed["error"] = {"code": "server_error", "message": fault["message"]}
            yield items.event("response.failed", response=failed)

    def _take(self, answers: Answers, news: Token | Finished) -> list[bytes]:
        parts = news.parts
        if isinstance(news, Token):
            self._reasoning_tokens += news.is_thought
        if self.request.parallel_tool_calls is False:
            if isinstance(news, Token) and any(isinstance(part, CallStart) for part in parts):
                answers.stop(0)
            parts = tuple(part for part in parts if not (isinstance(part, (CallStart, CallArguments)) and part.index))
        return [event for part in parts for event in self._items.add(part)]

    def _response(self, completion: Completion | None) -> dict[str, Any]:
        request, usage, incomplete = self.request, None, None
        choice = request.tool_choice
        status = "in_progress"
        if completion is not None:
            cut = completion.finish_reason == "length"
            status, incomplete = ("incomplete", {"reason": "max_output_tokens"}) if cut else ("completed", None)
            counted = Usage.of([completion], self._reasoning_tokens)
            usage = {
                "input_tokens": counted.prompt_tokens,
                "input_tokens_details": {"cached_tokens": counted.cached_tokens, "cache_write_tokens": 0},
                "output_tokens": counted.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": counted.reasoning_tokens},
                "total_tokens": counted.prompt_tokens + counted.completion_tokens,
            }
        form = request.text.model_dump(by_alias=True, exclude_none=True) if request.text is not None else {}
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": incomplete,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "model": self.service.name,
            "output": self._items.output if completion is not None else [],
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "tool_choice": choice.model_dump() if isinstance(choice, ResponseNamedTool) else choice or "auto",
            "tools": [tool.model_dump(exclude_none=True) for tool in request.tools or []],
            "temperature": self.asked.params.temperature,
            "top_p": self.asked.params.top_p,
            "text": {"format": {"type": "text"}} | form,
            "metadata": request.metadata or {},
            "store": False,
            "usage": usage,
        }
