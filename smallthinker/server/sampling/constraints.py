"""Which grammar, if any, a chat's answer has to keep to: of its `response_format`, or of the tool that it must call."""

from __future__ import annotations

from collections.abc import Sequence

from smallthinker.generation.grammar import ANY_OBJECT, Constraint, Function, writable
from smallthinker.server.errors import bad_request
from smallthinker.server.schemas import ChatRequest, JsonObjectFormat, JsonSchemaFormat, NamedTool, Tool
from smallthinker.server.service import Service
from smallthinker.text.chat_prompt import AnswerFormat


def chosen_functions(asked: ChatRequest, service: Service) -> list[Tool]:
    """The tools that the model is told of. Raises ApiError for too many, a name twice, a choice that isn't there."""
    tools, choice, limits = asked.tools or [], asked.tool_choice, service.settings.limits
    if len(tools) > limits.tools:
        raise bad_request(f"tools: at most {limits.tools} are taken, found {len(tools)}", "tools")
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise bad_request("tools: two functions have the same name", "tools")
    service.grammars.check([tool.function.parameters or {} for tool in tools], "tools")
    if not tools and choice not in (None, "none", "auto"):
        raise bad_request("tool_choice: there are no tools to choose from", "tool_choice")
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        raise bad_request("tool_choice: no tool has this name", "tool_choice")
    if asked.parallel_tool_calls is not None and not tools:
        raise bad_request("parallel_tool_calls: has no meaning without tools", "parallel_tool_calls")
    return [] if choice == "none" else tools


def chat_constraint(
    asked: ChatRequest, tools: Sequence[Tool], service: Service, answer: AnswerFormat
) -> tuple[AnswerFormat, Constraint | None]:
    """The constraint, and how the answer that keeps to it is read. Raises ApiError for a schema that can't be kept to,
    or that contradicts the choice of a tool."""
    form, choice = asked.response_format, asked.tool_choice
    if tools and (choice == "required" or isinstance(choice, NamedTool)):
        if form is not None and form.type != "text":
            raise bad_request("response_format: an answer can't be both JSON and a tool's call", "response_format")
        wanted = [
            Function(tool.function.name, tool.function.parameters)
            for tool in tools
            if not isinstance(choice, NamedTool) or tool.function.name == choice.function.name
        ]
        answer = writable(answer)
        return answer, service.grammars.of_calls(wanted, "tools", answer)
    if isinstance(form, JsonObjectFormat):
        return answer, service.grammars.of_schema(ANY_OBJECT, "response_format", answer)
    if isinstance(form, JsonSchemaFormat):
        schema = form.json_schema.json_schema
        return answer, service.grammars.of_schema(ANY_OBJECT if schema is None else schema, "response_format", answer)
    return answer, None
