"""What the endpoints accept. A field that isn't here is refused, never ignored.

Types are strict: "1" is no number. How many and how long is checked where the limits are known.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Count = Annotated[int, Field(ge=1, le=2**31)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Verbosity = Literal["low", "medium", "high"]
Temperature = Annotated[float, Field(ge=0, le=100)]


def _only(value: bool | str, why: str) -> BeforeValidator:
    """Of a field that has one value here, or null: others are refused in plain words."""
    said = f"expected {json.dumps(value)}: {why}"

    def check(given: Any) -> Any:
        if given is not None and (type(given) is not type(value) or given != value):
            raise PydanticCustomError("only", said)
        return given

    return BeforeValidator(check)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _without_unknown_nulls(cls, given: Any) -> Any:
        """Clients write null for what they don't ask for, also in fields that this server has never heard of."""
        if not isinstance(given, dict):
            return given
        known = {field.alias or name for name, field in cls.model_fields.items()}
        return {key: value for key, value in given.items() if value is not None or key in known}


# Of one message; checked by smallthinker.text.messages, as those of the Python interface are.
Message = dict[str, Any]


class Function(Strict):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    name: str


class NamedTool(Strict):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Strict):
    name: str
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextFormat(Strict):
    type: Literal["text"]


class JsonObjectFormat(Strict):
    type: Literal["json_object"]


class JsonSchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class TextRequest(Strict):
    """What every request for text may say."""

    model: str | None = None
    stream: bool = False
    temperature: Temperature | None = None
    top_p: float | None = None
    timeout: Annotated[float, Field(gt=0)] | None = None
    # These change nothing in what a server with one model and one user computes.
    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None
    store: Annotated[Literal[False] | None, _only(False, "nothing is stored, so a conversation is sent whole")] = None


class Sampling(TextRequest):
    """What `chat/completions` and `completions` share."""

    stream_options: StreamOptions | None = None
    return_progress: bool = False  # as llama.cpp's server has it
    n: Count | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: str | list[str] | None = None
    max_tokens: Count | None = None


class ChatRequest(Sampling):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    enable_thinking: bool | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: dict[str, bool | int | str] | None = None
    modalities: list[Literal["text"]] | None = None
    # No model here was taught what they ask for.
    verbosity: Verbosity | None = None
    prediction: dict[str, Any] | None = None


class CompletionRequest(Sampling):
    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool = False
    special_tokens: bool = False
    best_of: Literal[1] | None = None


class EmbeddingRequest(Strict):
    model: str | None = None
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Count | None = None
    pooling: Literal["mean", "last"] = "mean"  # an addition of this server's
    timeout: Annotated[float, Field(gt=0)] | None = None
    user: str | None = None  # changes nothing


class TokenizeRequest(Strict):
    model: str | None = None
    prompt: str | None = None
    special_tokens: bool = False
    messages: Annotated[list[Message], Field(min_length=1)] | None = None


class ResponseTextFormat(Strict):
    type: Literal["text"]


class ResponseJsonSchema(Strict):
    type: Literal["json_schema"]
    name: str
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseText(Strict):
    format: (
        Annotated[ResponseTextFormat | JsonObjectFormat | ResponseJsonSchema, Field(discriminator="type")] | None
    ) = None
    verbosity: Verbosity | None = None  # changes nothing, as of a chat


class ResponseMessage(Strict):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, Any]]
    id: str | None = None
    status: Literal["completed", "in_progress", "incomplete"] | None = None


class ResponseReasoning(Strict):
    """What an earlier response thought: templates leave thoughts out of later turns, and so does this server."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: list[Any] | None = None
    content: list[Any] | None = None
    status: Literal["completed", "in_progress", "incomplete"] | None = None


class ResponseCall(Strict):
    """What an earlier response asked for."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: Literal["completed", "in_progress", "incomplete"] | None = None


class ResponseResult(Strict):
    """What came of it."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[dict[str, Any]]
    id: str | None = None
    status: Literal["completed", "in_progress", "incomplete"] | None = None


class ResponseTool(Function):
    type: Literal["function"]


class ResponseNamedTool(Strict):
    type: Literal["function"]
    name: str


class ResponseEffort(Strict):
    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None  # thoughts are sent as they are


ResponseItem = ResponseMessage | ResponseReasoning | ResponseCall | ResponseResult


class ResponsesRequest(TextRequest):
    input: str | Annotated[list[ResponseItem], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    text: ResponseText | None = None
    enable_thinking: bool | None = None
    reasoning: ResponseEffort | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseNamedTool | None = None
    parallel_tool_calls: bool | None = None
    # Change nothing: thoughts are sent as they are, nothing is left out of an input or runs in the background.
    include: list[str] | None = None
    truncation: Annotated[
        Literal["disabled"] | None, _only("disabled", "an input that is too long is refused, not cut")
    ] = None
    background: Annotated[Literal[False] | None, _only(False, "an answer is sent in reply to its request")] = None
