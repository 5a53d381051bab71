"""From a request for a chat's answer to what is computed: its prompt, its parameters, its grammar, and every check."""

from __future__ import annotations

from smallthinker.server.answers import WantedAnswer
from smallthinker.server.errors import bad_request
from smallthinker.server.prompts import chat_prompt
from smallthinker.server.sampling.constraints import chat_constraint, chosen_functions
from smallthinker.server.sampling.options import generation_params, processor_maker
from smallthinker.server.schemas import ChatRequest
from smallthinker.server.service import Service


def wanted_chat(service: Service, asked: ChatRequest) -> WantedAnswer:
    """On a worker thread. Raises ApiError and SmallThinkerErrors."""
    llm, limits = service.llm, service.settings.limits
    if asked.max_tokens is not None and asked.max_completion_tokens is not None:
        raise bad_request("max_tokens: give either this or max_completion_tokens", "max_tokens")
    if asked.top_logprobs is not None and not asked.logprobs:
        raise bad_request("top_logprobs: has no meaning without logprobs", "top_logprobs")
    values = dict(asked.chat_template_kwargs or {})
    thinking = values.pop("enable_thinking", None) if asked.enable_thinking is None else asked.enable_thinking
    if thinking is not None and not isinstance(thinking, bool):
        raise bad_request("enable_thinking: expected true or false", "chat_template_kwargs.enable_thinking")
    tools = chosen_functions(asked, service)
    prompt = chat_prompt(
        llm,
        limits,
        asked.messages,
        tools=tools,
        thinking=thinking,
        effort=asked.reasoning_effort,
        template_values=values,
    )
    answer, constraint = chat_constraint(asked, tools, service, prompt.answer)
    params = generation_params(
        asked.model_dump(),
        limits,
        prompt_tokens=len(prompt.ids),
        context=llm.plan.context,
        max_tokens=asked.max_completion_tokens or asked.max_tokens,
    )
    make_processor = processor_maker(asked, llm, limits, constraint)
    logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    return WantedAnswer(prompt.ids, params, logprobs, make_processor, answer)
