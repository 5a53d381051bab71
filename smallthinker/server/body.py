"""A request's body: received within bounds, parsed, and checked against its schema."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from smallthinker.files import parse_json
from smallthinker.server.access.clients import Shares, client_of
from smallthinker.server.errors import ApiError, bad_request
from smallthinker.server.settings import Limits

Schema = TypeVar("Schema", bound=BaseModel)
_SHOWN_FAULTS = 3
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class Bodies:
    """Counts the bytes of all bodies that are held, so that many clients together can't exceed the budget."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._shares = Shares(limits.bodies_bytes, limits.body_bytes)

    @property
    def held_bytes(self) -> int:
        return self._shares.taken

    @asynccontextmanager
    async def read(self, request: Request, schema: type[Schema]) -> AsyncIterator[Schema]:
        """The checked body, counted until the block is left. Raises ApiError: 400, 408, 413, 429."""
        async with self.received(request) as body:
            yield parse(body, schema)

    @asynccontextmanager
    async def received(self, request: Request) -> AsyncIterator[bytearray]:
        """As `read`, but not parsed."""
        limits, body = self._limits, bytearray()
        try:
            try:
                with anyio.fail_after(limits.body_sec):
                    await self._receive(request, body)
            except TimeoutError:
                raise ApiError(408, f"the body had not arrived after {limits.body_sec:g} s", code="timeout") from None
            except ClientDisconnect:
                raise ApiError(400, "the connection ended within the body") from None
            yield body
        finally:
            self._shares.give_back(client_of(request.scope), len(body))

    async def _receive(self, request: Request, body: bytearray) -> None:
        limits = self._limits
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > limits.body_bytes:
            raise _too_large(limits)
        async for chunk in request.stream():
            if len(body) + len(chunk) > limits.body_bytes:
                raise _too_large(limits)
            if not self._shares.take(client_of(request.scope), len(chunk)):
                message = "too many requests are being received at once; try again in a second"
                raise ApiError(
                    429, message, type="rate_limit_error", code="rate_limit_exceeded", headers={"retry-after": "1"}
                )
            body += chunk


def _too_large(limits: Limits) -> ApiError:
    message = f"the body is larger than the {limits.body_bytes:,} bytes that this server takes"
    return ApiError(413, message, code="body_too_large", headers={"connection": "close"})


def parse(body: bytes | bytearray, schema: type[Schema]) -> Schema:
    """Raises ApiError 400, naming the field; of values that a client sent, nothing is repeated."""
    try:
        raw = parse_json(bytes(body))
        if _ESCAPED_SURROGATE.search(body):  # half a pair is no text: nothing could be answered that repeats it
            json.dumps(raw, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise bad_request("the body has half a surrogate pair, which is no text", code="invalid_json") from None
    except (ValueError, RecursionError) as error:
        raise bad_request(f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(raw, dict):
        raise bad_request("the body must be a JSON object")
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        raise _fault(error) from None


def _fault(error: ValidationError) -> ApiError:
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    described = [f"{_path(fault['loc'])}: {fault['msg']}" for fault in faults[:_SHOWN_FAULTS]]
    unknown = next((_path(fault["loc"]) for fault in faults if fault["type"] == "extra_forbidden"), None)
    if unknown is not None and len(faults) == 1:
        return bad_request(f"{unknown}: this server doesn't support this field", unknown, "unsupported_parameter")
    return bad_request("; ".join(described), _path(faults[0]["loc"]))


def _path(location: tuple[Any, ...]) -> str:
    """`messages.0.content`; what a client may have named itself is cut short."""
    return ".".join(str(part)[:64] for part in location) or "body"
