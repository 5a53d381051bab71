"""What the endpoints of Ollama's protocol accept. A field or an option that isn't here is refused, never ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from smallthinker.server.schemas import Count, Message, Penalty, Strict, Temperature, Tool

Think = bool | Literal["none", "low", "medium", "high", "max"]
Format = Literal["", "json"] | dict[str, Any]


class OllamaTool(Tool):
    type: Literal["function"] = "function"


class Options(Strict):
    """How to draw tokens, by Ollama's names."""

    num_predict: int | None = None  # 0 and less: as far as the context reaches
    temperature: Temperature | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: str | list[str] | None = None
    repeat_penalty: float | None = None
    repeat_last_n: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    # How a model is loaded, which the server's own options say: these change nothing.
    num_ctx: Count | None = None
    num_keep: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    num_thread: int | None = None
    numa: bool | None = None
    low_vram: bool | None = None
    f16_kv: bool | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    # Ways to draw that this engine doesn't have, by the values that switch them off; and what has no meaning without.
    tfs_z: Annotated[float, Field(ge=1, le=1)] | None = None
    typical_p: Annotated[float, Field(ge=1, le=1)] | None = None
    mirostat: Literal[0] | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    penalize_newline: bool | None = None


class OllamaRequest(Strict):
    model: str | None = None
    options: Options | None = None
    keep_alive: float | str | None = None


class TextRequest(OllamaRequest):
    """What both requests for text may say."""

    stream: bool = True
    format: Format | None = None
    think: Think | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class ChatRequest(TextRequest):
    messages: list[Message] = Field(default_factory=list)
    tools: list[OllamaTool] | None = None


class GenerateRequest(TextRequest):
    prompt: str = ""
    system: str | None = None
    raw: bool = False
    # Refused, in one line that says what to do instead.
    images: list[Any] | None = None
    context: list[int] | None = None
    suffix: str | None = None
    template: str | None = None


class EmbedRequest(OllamaRequest):
    input: str | list[str]
    truncate: bool = True
    dimensions: Count | None = None


class EmbeddingsRequest(OllamaRequest):
    prompt: str


class ShowRequest(Strict):
    model: str | None = None
    name: str | None = None  # of older clients
    verbose: bool = False
    system: str | None = None
    options: Options | None = None
