"""POST /api/embed, and /api/embeddings of older clients."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.responses import JSONResponse

from smallthinker.server.access.clients import client_of
from smallthinker.server.answers import unless_gone
from smallthinker.server.embeddings import check_dimensions, embed, prompts_of
from smallthinker.server.models import Models
from smallthinker.server.ollama.schemas import EmbeddingsRequest, EmbedRequest
from smallthinker.server.service import Service


async def embed_texts(request: Request) -> JSONResponse:
    began = time.perf_counter()
    models: Models = request.app.state.models
    async with models.bodies.read(request, EmbedRequest) as asked, models.using(request, asked.model) as service:
        check_dimensions(service, asked.dimensions)
        line = service.prepare(client_of(request.scope), _prompts, service, asked)
        prompts = await unless_gone(request, line)
        vectors = await embed(request, service, prompts, "mean", service.timeout(None))
    return JSONResponse(
        {
            "model": asked.model or service.name,
            "embeddings": [vector.astype(float).tolist() for vector in vectors],
            "total_duration": round((time.perf_counter() - began) * 1e9),
            "load_duration": 0,
            "prompt_eval_count": sum(map(len, prompts)),
        }
    )


def _prompts(service: Service, asked: EmbedRequest) -> list[list[int]]:
    return prompts_of(service, asked.input, truncate=asked.truncate)


async def embed_prompt(request: Request) -> JSONResponse:
    models: Models = request.app.state.models
    async with models.bodies.read(request, EmbeddingsRequest) as asked, models.using(request, asked.model) as service:
        line = service.prepare(client_of(request.scope), prompts_of, service, asked.prompt)
        prompts = await unless_gone(request, line)
        (vector,) = await embed(request, service, prompts, "mean", service.timeout(None))
    return JSONResponse({"embedding": vector.astype(float).tolist()})
