"""POST /v1/embeddings."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse

from smallthinker.server.access.clients import client_of
from smallthinker.server.answers import unless_gone
from smallthinker.server.embeddings import check_dimensions, embed, prompts_of
from smallthinker.server.models import Models
from smallthinker.server.schemas import EmbeddingRequest


async def embeddings(request: Request) -> JSONResponse:
    models: Models = request.app.state.models
    async with models.bodies.read(request, EmbeddingRequest) as asked, models.using(request, asked.model) as service:
        check_dimensions(service, asked.dimensions)
        client = client_of(request.scope)
        prompts = await unless_gone(request, service.prepare(client, prompts_of, service, asked.input))
        vectors = await embed(request, service, prompts, asked.pooling, service.timeout(asked.timeout))

    def shown(vector: Any) -> Any:
        if asked.encoding_format == "base64":
            return b64encode(vector.astype("<f4").tobytes()).decode()
        return vector.astype(np.float64).tolist()

    tokens = sum(map(len, prompts))
    return JSONResponse(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": at, "embedding": shown(vector)} for at, vector in enumerate(vectors)
            ],
            "model": service.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )
