"""POST /v1/responses in its basic form: text or messages in, a thought and a message out. Nothing is stored."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from smallthinker.generation.answer import Completion, Finished, Token
from smallthinker.generation.grammar import ANY_OBJECT, Constraint
from smallthinker.server.access.clients import client_of
from smallthinker.server.answers import Answers, WantedAnswer, respond, unless_gone
from smallthinker.server.errors import bad_request, end_of_stream
from smallthinker.server.models import Models
from smallthinker.server.openai.response_items import Items
from smallthinker.server.openai.usage import Usage
from smallthinker.server.prompts import chat_prompt
from smallthinker.server.sampling.options import generation_params, processor_maker
from smallthinker.server.schemas import (
    JsonObjectFormat,
    ResponseJsonSchema,
    ResponseMessage,
    ResponsesRequest,
    Sampling,
)
from smallthinker.server.service import Service
from smallthinker.server.sse import PING
from smallthinker.text.answer_parser import Reasoning, Said
from smallthinker.text.chat_prompt import AnswerFormat


async def responses(request: Request) -> Response:
    models: Models = request.app.state.models
    client = client_of(request.scope)
    async with models.bodies.read(request, ResponsesRequest) as asked, models.using(request, asked.model) as service:
        answer = await unless_gone(request, service.prepare(client, _prepare, service, asked))
        answers = Answers(service, [answer.asked], service.timeout(asked.timeout), client)
    return await respond(request, answers, answer, stream=asked.stream)


def _prepare(service: Service, asked: ResponsesRequest) -> _Answer:
    """On a worker thread. Raises ApiError and SmallThinkerErrors."""
    llm, limits = service.llm, service.settings.limits
    messages: list[dict[str, Any]] = [{"role": "system", "content": asked.instructions}] if asked.instructions else []
    if isinstance(asked.input, str):
        messages.append({"role": "user", "content": asked.input})
    else:
        said = [item for item in asked.input if isinstance(item, ResponseMessage)]
        messages += [{"role": message.role, "content": message.content} for message in said]
    if not messages:
        raise bad_request("input: expected a message", "input")
    effort = None if asked.reasoning is None else asked.reasoning.effort
    prompt = chat_prompt(llm, limits, messages, thinking=asked.enable_thinking, effort=effort)
    params = generation_params(
        asked.model_dump(),
        limits,
        prompt_tokens=len(prompt.ids),
        context=llm.plan.context,
        max_tokens=asked.max_output_tokens,
    )
    make_processor = processor_maker(Sampling(), llm, limits, _constraint(asked, service, prompt.answer))
    return _Answer(service, asked, WantedAnswer(prompt.ids, params, None, make_processor, prompt.answer))


def _constraint(asked: ResponsesRequest, service: Service, answer: AnswerFormat) -> Constraint | None:
    form = None if asked.text is None else asked.text.format
    if isinstance(form, JsonObjectFormat):
        return service.grammars.of_schema(ANY_OBJECT, "text.format", answer)
    if isinstance(form, ResponseJsonSchema):
        return service.grammars.of_schema(form.json_schema, "text.format", answer)
    return None


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
                self._take(item[1])
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
                for event in self._take(item[1]):
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

    def _take(self, news: Token | Finished) -> list[bytes]:
        if isinstance(news, Token):
            self._reasoning_tokens += news.is_thought
        said = [part for part in news.parts if isinstance(part, (Reasoning, Said))]  # without tools there are no calls
        return [event for part in said for event in self._items.add(part.text, isinstance(part, Reasoning))]

    def _response(self, completion: Completion | None) -> dict[str, Any]:
        request, usage, incomplete = self.request, None, None
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
            "parallel_tool_calls": False,
            "tool_choice": "none",
            "tools": [],
            "temperature": self.asked.params.temperature,
            "top_p": self.asked.params.top_p,
            "text": {"format": {"type": "text"}} | form,
            "metadata": request.metadata or {},
            "store": False,
            "usage": usage,
        }
