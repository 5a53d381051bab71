"""From a request of Ollama's to the one of OpenAI's that means the same: there is one way to an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smallthinker.errors import RequestError
from smallthinker.server import schemas
from smallthinker.server.answers import WantedAnswer
from smallthinker.server.errors import ApiError, bad_request
from smallthinker.server.ollama.schemas import ChatRequest, GenerateRequest, Options, TextRequest
from smallthinker.server.openai.chat_request import wanted_chat
from smallthinker.server.prompts import encode
from smallthinker.server.sampling.constraints import chat_constraint
from smallthinker.server.sampling.options import generation_params, processor_maker
from smallthinker.server.service import Service
from smallthinker.text.chat_prompt import AnswerFormat

_SAME = ("temperature", "top_k", "top_p", "min_p", "stop", "repeat_penalty", "presence_penalty", "frequency_penalty")
# What a fault in a field of ours is called by whoever wrote one of Ollama's.
_NAMES = {
    "enable_thinking": "think",
    "reasoning_effort": "think",
    "response_format": "format",
    "max_tokens": "num_predict",
}
_ONLY_TEXT = "this model reads only text"
_REFUSED = {
    "images": _ONLY_TEXT,
    "context": "a conversation goes on with its messages, by /api/chat",
    "suffix": "this server continues texts and fills no gaps in them",
    "template": "the model's own is used; with raw, a prompt is taken as it is",
}


def wanted(service: Service, asked: ChatRequest | GenerateRequest) -> WantedAnswer:
    """On a worker thread. Raises ApiError and SmallThinkerErrors, by Ollama's names."""
    try:
        if isinstance(asked, ChatRequest):
            messages = [_message(message, f"messages.{at}") for at, message in enumerate(asked.messages)]
            return wanted_chat(service, _same_of_openai(service, asked, messages, asked.tools or []))
        for field, why in _REFUSED.items():
            if getattr(asked, field):
                raise bad_request(f"{field}: {why}")
        if asked.raw or not service.llm.tokenizer.has_chat_template:
            return _continued(service, asked)
        system = [{"role": "system", "content": asked.system}] if asked.system else []
        messages = [*system, {"role": "user", "content": asked.prompt}]
        return wanted_chat(service, _same_of_openai(service, asked, messages))
    except (ApiError, RequestError) as error:
        field, colon, rest = str(error).partition(":")
        if field not in _NAMES:
            raise
        raise bad_request(f"{_NAMES[field]}{colon}{rest}") from None


def _continued(service: Service, asked: GenerateRequest) -> WantedAnswer:
    """A text that is its own template, or all that a model without one is asked."""
    field = "system" if asked.system else "think" if asked.think else None
    if field is not None and asked.raw:
        raise bad_request("raw: a text is continued as it is, without system and think")
    if field is not None:
        raise bad_request(f"{field}: this model has no chat template, so that a text is continued as it is")
    llm, limits = service.llm, service.settings.limits
    same = _same_of_openai(service, asked, [{"role": "user", "content": asked.prompt}])
    ids = encode(llm, asked.prompt, special_tokens=True, is_prompt=True)
    answer, constraint = chat_constraint(same, [], service, AnswerFormat())
    params = generation_params(
        same.model_dump(), limits, prompt_tokens=len(ids), context=llm.plan.context, max_tokens=same.max_tokens
    )
    logprobs = (same.top_logprobs or 0) if same.logprobs else None
    return WantedAnswer(ids, params, logprobs, processor_maker(same, llm, limits, constraint), answer)


def _same_of_openai(
    service: Service, asked: TextRequest, messages: list[dict[str, Any]], tools: list[Any] | None = None
) -> schemas.ChatRequest:
    options, form = asked.options or Options(), asked.format
    fields: dict[str, Any] = {name: getattr(options, name) for name in _SAME}
    if (options.num_predict or 0) > 0:
        fields["max_tokens"] = options.num_predict
    if options.seed != -1:  # which is none
        fields["seed"] = options.seed
    if options.repeat_last_n is not None:
        fields["repeat_last_n"] = service.llm.plan.context if options.repeat_last_n < 0 else options.repeat_last_n
    if form == "json":
        fields["response_format"] = {"type": "json_object"}
    elif isinstance(form, Mapping):
        fields["response_format"] = {"type": "json_schema", "json_schema": {"name": "format", "schema": form}}
    fields["reasoning_effort" if isinstance(asked.think, str) else "enable_thinking"] = asked.think
    fields |= {"logprobs": asked.logprobs or asked.top_logprobs is not None, "top_logprobs": asked.top_logprobs}
    fields["tools"] = [tool.model_dump() for tool in tools or []]
    return schemas.ChatRequest.model_validate(fields | {"messages": messages})


def _message(given: dict[str, Any], place: str) -> dict[str, Any]:
    """One of Ollama's, as OpenAI's clients would write it; what is in neither is refused later."""
    message = dict(given)
    if message.pop("images", None):
        raise bad_request(f"{place}.images: {_ONLY_TEXT}")
    name = message.pop("tool_name", None)
    return message if name is None else message | {"name": name}
