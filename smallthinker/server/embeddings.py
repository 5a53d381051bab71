"""Texts as vectors, whichever protocol asks: their tokens, and the answers that hold a vector and no text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request

from smallthinker.generation.answer import Finished, GenerationParams
from smallthinker.generation.embedding import Pooling
from smallthinker.llm import embedding_of
from smallthinker.server.access.clients import client_of
from smallthinker.server.answers import Answers, WantedAnswer, unless_gone
from smallthinker.server.errors import bad_request
from smallthinker.server.prompts import encode
from smallthinker.server.service import Service

_AT_ONCE = 16  # of one request in the queue, where others wait, too


def check_dimensions(service: Service, dimensions: int | None) -> None:
    """Raises ApiError: of a vector that was not trained for it, a part is no smaller vector."""
    size = service.llm.config.hidden_size
    if dimensions is not None and dimensions != size:
        raise bad_request(f"dimensions: this model's embeddings have {size}, found {dimensions}", "dimensions")


def prompts_of(
    service: Service, given: str | Sequence[str | int | list[int]], *, truncate: bool = False
) -> list[list[int]]:
    """One text, several, or the same as token ids. truncate: what doesn't fit the context is cut at its end, else it is
    an error. On a worker thread. Raises ApiError."""
    llm, most = service.llm, service.settings.limits.inputs
    room = llm.plan.context - 1
    if isinstance(given, str):
        given = [given]
    elif given and isinstance(given[0], int):
        given = [[id for id in given if isinstance(id, int)]]
    if not 1 <= len(given) <= most:
        raise bad_request(f"input: expected 1 to {most} texts, found {len(given)}", "input")
    prompts = []
    for at, one in enumerate(given):
        if isinstance(one, str):
            ids = encode(llm, one[: room * 32] if truncate else one, is_prompt=True)
        else:
            ids = list(one) if isinstance(one, list) else [one]
        if not ids:
            raise bad_request(f"input.{at}: expected text, found nothing", "input")
        prompts.append(ids[:room] if truncate else ids)
    return prompts


async def embed(
    request: Request, service: Service, prompts: Sequence[list[int]], pooling: Pooling, timeout_sec: float
) -> list[Any]:
    """A float32 array [hidden_size] of length 1 for each. Raises ApiError and SmallThinkerErrors."""

    async def work() -> list[Any]:
        vectors: dict[int, Any] = {}
        for first in range(0, len(prompts), _AT_ONCE):
            wanted = [
                WantedAnswer(ids, GenerationParams(), pooling=pooling) for ids in prompts[first : first + _AT_ONCE]
            ]
            answers = Answers(service, wanted, timeout_sec, client_of(request.scope))
            try:
                async for item in answers:
                    if isinstance(item, tuple) and isinstance(item[1], Finished):
                        vectors[first + item[0]] = embedding_of(item[1].completion)
            finally:
                answers.close()
        return [vectors[at] for at in range(len(prompts))]

    return await unless_gone(request, work())
