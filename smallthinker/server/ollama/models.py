"""The endpoints that tell of models: /api/tags, /api/show, /api/ps, /api/version; and those that would change them."""

from __future__ import annotations

from datetime import datetime, timezone
from hashlib import sha256
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

import smallthinker
from smallthinker.errors import TokenizerError
from smallthinker.expert_store.store import Store, is_gguf
from smallthinker.models.tensors import num_parameters
from smallthinker.server.errors import ApiError
from smallthinker.server.ollama.schemas import ShowRequest
from smallthinker.server.service import Service
from smallthinker.text.chat_formats import chat_format

# Whose protocol this is; clients ask whether it is new enough for them.
FOLLOWED_VERSION = "0.12.11"
_NEVER = "9999-12-31T23:59:59Z"


async def tags(request: Request) -> JSONResponse:
    service: Service = request.app.state.service
    return JSONResponse({"models": [_entry(service)]})


async def running(request: Request) -> JSONResponse:
    service: Service = request.app.state.service
    memory = service.llm.scheduler.stats().memory_bytes
    more = {"size": memory, "size_vram": 0, "expires_at": _NEVER, "context_length": service.llm.plan.context}
    return JSONResponse({"models": [_entry(service) | more]})


async def version(request: Request) -> JSONResponse:
    return JSONResponse({"version": FOLLOWED_VERSION, "smallthinker": smallthinker.__version__})


async def show(request: Request) -> JSONResponse:
    service: Service = request.app.state.service
    async with service.bodies.read(request, ShowRequest) as asked:
        service.check_model(asked.model or asked.name)
    llm, template, capabilities = service.llm, "", ["completion", "embedding"]
    config = llm.config
    try:
        found = llm.tokenizer.chat_template
        template = found.source
        capabilities += ["tools", *(["thinking"] if chat_format(template).thinks else [])]
    except TokenizerError:  # texts can be completed without one
        pass
    facts = {
        "general.architecture": config.family,
        "general.parameter_count": num_parameters(config),
        f"{config.family}.context_length": config.context,
        f"{config.family}.embedding_length": config.hidden_size,
        f"{config.family}.block_count": config.num_layers,
        f"{config.family}.expert_count": config.experts_per_layer,
        f"{config.family}.expert_used_count": config.experts_per_token,
    }
    return JSONResponse(
        {
            "modelfile": "",
            "parameters": f"num_ctx {llm.plan.context}",
            "template": template,
            "details": _details(llm.store),
            "model_info": facts,
            "capabilities": capabilities,
            "modified_at": _modified(llm.store),
        }
    )


async def unsupported(request: Request) -> JSONResponse:
    what = request.url.path.rpartition("/")[2]
    raise ApiError(501, f"{what}: models are added and removed on the server's own machine: see `smallthinker pull`")


def _entry(service: Service) -> dict[str, Any]:
    store = service.llm.store
    return {
        "name": service.name,
        "model": service.name,
        "modified_at": _modified(store),
        "size": sum(path.stat().st_size for path in store.weight_files),
        "digest": sha256(store.identity().encode()).hexdigest(),
        "details": _details(store),
    }


def _details(store: Store) -> dict[str, Any]:
    count = num_parameters(store.config)
    size = f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"
    return {
        "parent_model": "",
        "format": "gguf" if is_gguf(store.path) else "safetensors",
        "family": store.config.family,
        "families": [store.config.family],
        "parameter_size": size,
        "quantization_level": store.quant.upper(),
    }


def _modified(store: Store) -> str:
    latest = max(path.stat().st_mtime for path in store.weight_files)
    return datetime.fromtimestamp(latest, timezone.utc).isoformat().replace("+00:00", "Z")
