"""The endpoints that tell of models: /api/tags, /api/show, /api/ps, /api/version; and those that would change them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from hashlib import sha256
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

import smallthinker
from smallthinker.errors import SmallThinkerError, TokenizerError
from smallthinker.expert_store.store import Store
from smallthinker.library import LibraryModel
from smallthinker.library.facts import facts_of
from smallthinker.models.tensors import num_parameters
from smallthinker.server.errors import ApiError
from smallthinker.server.models import Models
from smallthinker.server.ollama.schemas import ShowRequest
from smallthinker.text.chat_formats import chat_format
from smallthinker.text.chat_template import load_chat_template

# Whose protocol this is; clients ask whether it is new enough for them.
FOLLOWED_VERSION = "0.12.11"
_LAST_SECOND = 253_402_300_799.0  # of the year 9999
_NEVER = "9999-12-31T23:59:59Z"


async def tags(request: Request) -> JSONResponse:
    models: Models = request.app.state.models
    return JSONResponse({"models": await asyncio.to_thread(lambda: [_entry(model) for model in models.all()])})


async def running(request: Request) -> JSONResponse:
    models: Models = request.app.state.models
    service = models.current
    model = await asyncio.to_thread(models.find, service.name)
    memory = service.llm.scheduler.stats().memory_bytes
    more = {"size": memory, "size_vram": 0, "expires_at": _NEVER, "context_length": service.llm.plan.context}
    return JSONResponse({"models": [await asyncio.to_thread(_entry, model) | more]})


async def version(request: Request) -> JSONResponse:
    return JSONResponse({"version": FOLLOWED_VERSION, "smallthinker": smallthinker.__version__})


async def show(request: Request) -> JSONResponse:
    models: Models = request.app.state.models
    async with models.bodies.read(request, ShowRequest) as asked:
        model = await asyncio.to_thread(models.find, asked.model or asked.name)
    loaded = models.loaded(model)
    parameters = "" if loaded is None else f"num_ctx {loaded.llm.plan.context}"
    return JSONResponse({"modelfile": "", "parameters": parameters} | await asyncio.to_thread(_shown, model))


async def unsupported(request: Request) -> JSONResponse:
    what = request.url.path.rpartition("/")[2]
    raise ApiError(501, f"{what}: models are added and removed on the server's own machine: see `smallthinker pull`")


def _shown(model: LibraryModel) -> dict[str, Any]:
    """From the model's headers, whether or not it is loaded. Raises a SmallThinkerError."""
    template, capabilities = "", ["completion", "embedding"]
    with Store.open(model.path) as store:
        config, quant = store.config, store.quant
        with suppress(TokenizerError):  # texts can be completed without a template
            template = load_chat_template(store.small_files).source
            capabilities += ["tools", *(["thinking"] if chat_format(template).thinks else [])]
    facts = {
        "general.architecture": config.family,
        "general.parameter_count": num_parameters(config),
        f"{config.family}.context_length": config.context,
        f"{config.family}.embedding_length": config.hidden_size,
        f"{config.family}.block_count": config.num_layers,
        f"{config.family}.expert_count": config.experts_per_layer,
        f"{config.family}.expert_used_count": config.experts_per_token,
    }
    return {
        "template": template,
        "details": _details(model, config.family, num_parameters(config), quant),
        "model_info": facts,
        "capabilities": capabilities,
        "modified_at": _time(model.modified),
    }


def _entry(model: LibraryModel) -> dict[str, Any]:
    details: dict[str, Any] = {}
    with suppress(SmallThinkerError):  # of a file that turns out to be broken, only that it is there
        facts = facts_of(model.path)
        details = _details(model, facts.family, facts.parameters, facts.quant)
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": _time(model.modified),
        "size": model.nbytes,
        "digest": sha256(f"{model.name} {model.nbytes} {model.modified}".encode()).hexdigest(),
        "details": details,
    }


def _details(model: LibraryModel, family: str, parameters: int, quant: str) -> dict[str, Any]:
    size = f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"
    return {
        "parent_model": "",
        "format": "gguf" if model.path.suffix.lower() == ".gguf" else "safetensors",
        "family": family,
        "families": [family],
        "parameter_size": size,
        "quantization_level": quant.upper(),
    }


def _time(seconds: float) -> str:
    """Of a file, whose date can be any: what no date can say is the nearest that one can."""
    since = timedelta(seconds=min(max(seconds, 0.0), _LAST_SECOND))
    return (datetime(1970, 1, 1, tzinfo=timezone.utc) + since).isoformat().replace("+00:00", "Z")
