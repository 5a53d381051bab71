"""The application: which path is answered by what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from smallthinker.errors import SmallThinkerError
from smallthinker.library import Library
from smallthinker.llm import LLM
from smallthinker.server import info
from smallthinker.server.access.request_limit import RequestLimit
from smallthinker.server.access.safety import Safety
from smallthinker.server.answers import ClientGoneError
from smallthinker.server.errors import ApiError, on_error
from smallthinker.server.models import Models
from smallthinker.server.ollama import answers as ollama
from smallthinker.server.ollama import embeddings as ollama_embeddings
from smallthinker.server.ollama import models as ollama_models
from smallthinker.server.openai.chat_completions import chat_completions
from smallthinker.server.openai.completions import completions
from smallthinker.server.openai.embeddings import embeddings
from smallthinker.server.openai.responses import responses
from smallthinker.server.page_file import Page
from smallthinker.server.settings import Settings

_NOT_HERE = ("pull", "push", "create", "copy", "delete")  # of Ollama's


def create_app(
    llm: LLM,
    name: str,
    settings: Settings,
    *,
    load: Callable[[Path], LLM] | None = None,
    library: Library | None = None,
) -> Starlette:
    """An ASGI application that answers for this model, under this name; with `load` and `library` for those of the
    library, too, one at a time: see Models. Closing the model is the caller's."""
    app = guarded(
        [
            Route("/", Page().respond),
            Route("/v1/models", info.models),
            Route("/v1/models/{name:path}", info.model),
            Route("/v1/chat/completions", chat_completions, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/responses", responses, methods=["POST"]),
            Route("/v1/embeddings", embeddings, methods=["POST"]),
            Route("/v1/tokenize", info.tokenize, methods=["POST"]),
            Route("/api/chat", ollama.chat, methods=["POST"]),
            Route("/api/generate", ollama.generate, methods=["POST"]),
            Route("/api/embed", ollama_embeddings.embed_texts, methods=["POST"]),
            Route("/api/embeddings", ollama_embeddings.embed_prompt, methods=["POST"]),
            Route("/api/tags", ollama_models.tags),
            Route("/api/show", ollama_models.show, methods=["POST"]),
            Route("/api/ps", ollama_models.running),
            Route("/api/version", ollama_models.version),
            *(Route(f"/api/{name}", ollama_models.unsupported, methods=["POST", "DELETE"]) for name in _NOT_HERE),
            Route("/health", info.health),
            Route("/metrics", info.metrics),
            Route("/api/stats", info.stats),
        ],
        settings,
    )
    app.state.models = Models(llm, name, settings, load, library)
    return app


def guarded(routes: Sequence[Route], settings: Settings) -> Starlette:
    """These, behind what keeps a server safe, with every error as JSON."""
    middleware = [Middleware(Safety, settings=settings)]
    if settings.cors:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(settings.cors),
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type"],
            )
        )
    middleware.append(Middleware(RequestLimit, limits=settings.limits))
    return Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={
            ApiError: on_error,
            SmallThinkerError: on_error,
            HTTPException: on_error,
            Exception: on_error,
            ClientGoneError: _nobody_there,
        },
    )


async def _nobody_there(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # as nginx has it in its log; nobody reads it here
