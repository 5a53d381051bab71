"""The small endpoints: models, tokenize, health, metrics, and the figures for the page's live panel."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from smallthinker.errors import TokenizerError
from smallthinker.library import LibraryModel
from smallthinker.library.folder import DEMO, DEMO_IS
from smallthinker.server.access.clients import client_of
from smallthinker.server.answers import unless_gone
from smallthinker.server.errors import ApiError, bad_request
from smallthinker.server.models import Models
from smallthinker.server.prompts import chat_prompt, encode
from smallthinker.server.schemas import TokenizeRequest
from smallthinker.server.service import Service
from smallthinker.text.chat_formats import chat_format
from smallthinker.text.chat_prompt import can_switch_thinking


def _model(known: Models, model: LibraryModel) -> dict[str, Any]:
    """The context only of the one that is loaded: of others nobody has planned it yet. The demo says what it is."""
    loaded = known.loaded(model)
    said = {"id": model.name, "object": "model", "created": round(model.modified), "owned_by": "smallthinker"}
    said |= {"description": f"a {DEMO_IS}"} if model.name == DEMO else {}
    return said | ({} if loaded is None else {"max_model_len": loaded.llm.plan.context})


async def models(request: Request) -> Response:
    known: Models = request.app.state.models
    found = await asyncio.to_thread(known.all)
    return JSONResponse({"object": "list", "data": [_model(known, model) for model in found]})


async def model(request: Request) -> Response:
    known: Models = request.app.state.models
    found = await asyncio.to_thread(known.find, request.path_params["name"])
    return JSONResponse(_model(known, found))


async def tokenize(request: Request) -> Response:
    known: Models = request.app.state.models
    async with known.bodies.read(request, TokenizeRequest) as asked, known.using(request, asked.model) as service:
        ids = await unless_gone(request, service.prepare(client_of(request.scope), _ids, service, asked))
    return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": service.llm.plan.context})


def _ids(service: Service, asked: TokenizeRequest) -> list[int]:
    if (asked.prompt is None) == (asked.messages is None):
        raise bad_request("expected either prompt or messages", "prompt")
    if asked.messages is not None:
        if asked.special_tokens:
            raise bad_request(
                "special_tokens: only for a prompt; those of messages are the template's", "special_tokens"
            )
        return chat_prompt(service.llm, service.settings.limits, asked.messages).ids
    return encode(service.llm, asked.prompt or "", special_tokens=asked.special_tokens)


async def health(request: Request) -> Response:
    known: Models = request.app.state.models
    if known.failed:
        raise ApiError(503, "the model is closed", type="server_error")
    return JSONResponse({"status": "ok"})


async def metrics(request: Request) -> Response:
    service: Service = request.app.state.models.current
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


async def stats(request: Request) -> Response:
    """See docs/server.md for the shape."""
    service: Service = request.app.state.models.current
    llm, now = service.llm, service.llm.scheduler.stats()
    thinks = can_switch = False
    with suppress(TokenizerError):  # a model that can't chat
        template = llm.tokenizer.chat_template
        thinks, can_switch = chat_format(template.source).thinks, can_switch_thinking(template)
    return JSONResponse(
        {
            "model": service.name,
            "context": llm.plan.context,
            "thinks": thinks,
            "can_switch_thinking": can_switch,
            "tokens_per_sec": round(service.activity.tokens_per_sec(), 2),
            "running": now.running,
            "waiting": now.waiting,
            "most_waiting": now.most_waiting,
            "sequences": llm.plan.sequences,
            "hit_rate": round(now.hit_rate, 4),
            "bytes_read": now.bytes_read,
            "slots": now.slots,
            "num_experts": now.num_experts,
            "memory_bytes": now.memory_bytes,
            "memory_budget_bytes": now.memory_budget_bytes,
            "kv_bytes": now.kv_bytes,
            "kv_planned_bytes": now.kv_planned_bytes,
            "prompt_tokens": now.prompt_tokens,
            "reused_tokens": now.reused_tokens,
            "new_tokens": now.new_tokens,
            "uptime_sec": round(now.uptime_sec, 1),
            "expert_uses": llm.expert_uses().tolist(),
        },
        headers={"cache-control": "no-store"},
    )
