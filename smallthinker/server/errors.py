"""Everything that goes wrong, as status codes and JSON in the shape of OpenAI's errors."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from smallthinker.errors import (
    CancelledError,
    ContextLengthError,
    QueueFullError,
    RequestError,
    SmallThinkerError,
    TokenizerError,
    one_line,
)

_log = logging.getLogger("smallthinker")
OLLAMA = "/api/"  # where its endpoints are
# The official clients repeat a request after 408, 409, 429 and 5xx; here that would only compute the same again.
DONT_REPEAT = {"x-should-retry": "false"}


class ApiError(SmallThinkerError):
    """An answer that is an error. `param`: the field of the request that is at fault; `code`: for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        message = one_line(message)  # what it repeats is the client's or a file's
        super().__init__(message)
        self.status, self.headers = status, headers
        self.body: dict[str, Any] = {"error": {"message": message, "type": type, "param": param, "code": code}}

    def response(self, path: str) -> JSONResponse:
        """path: of the request; Ollama's endpoints have an error's text alone."""
        body = {"error": str(self)} if path.startswith(OLLAMA) else self.body
        return JSONResponse(body, self.status, self.headers)


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def timed_out(seconds: float) -> ApiError:
    return ApiError(
        504,
        f"the answer was not finished after {seconds:g} s; ask for fewer tokens or a longer timeout",
        type="timeout_error",
        code="timeout",
        headers=DONT_REPEAT,
    )


def shutting_down() -> ApiError:
    return ApiError(503, "the server is shutting down", type="server_error", code="shutting_down", headers=DONT_REPEAT)


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told; of what nobody expected, nothing. What only whoever runs the server can mend is logged."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        headers = {"retry-after": str(math.ceil(error.retry_after_sec))}
        return ApiError(429, str(error), type="rate_limit_error", code="rate_limit_exceeded", headers=headers)
    if isinstance(error, ContextLengthError):
        return bad_request(str(error), "messages", "context_length_exceeded")
    if isinstance(error, RequestError):
        param = str(error).partition(":")[0]
        return bad_request(str(error), param if param.replace(".", "").isidentifier() else None)
    if isinstance(error, TokenizerError):
        return bad_request(str(error).partition(": ")[2] or str(error), "messages")  # without the path on this machine
    if isinstance(error, CancelledError):
        return shutting_down()
    if isinstance(error, SmallThinkerError):
        _log.error("%s: %s", type(error).__name__, error)
        message = "the model could not compute the answer"
        return ApiError(500, message, type="server_error", headers=DONT_REPEAT)
    headers = DONT_REPEAT | {"connection": "close"}  # uvicorn closes it, and the client's next request would be lost
    return ApiError(500, "internal error", type="server_error", headers=headers)


def end_of_stream(error: Exception) -> dict[str, Any]:
    """The body of what a client is told within its answer; nothing else hears of the error any more."""
    told = as_api_error(error)
    if told.status == 500 and not isinstance(error, SmallThinkerError):
        _log.error("Exception in a streamed answer", exc_info=error)
    return told.body


async def on_error(request: Request, error: Exception) -> JSONResponse:
    """Starlette's handler of every exception; what nobody expected it raises again, and uvicorn logs that."""
    path = request.url.path
    if isinstance(error, HTTPException):  # of the router: no such path, or not with this method
        what = f"{request.method} {path}: {error.detail.lower()}"
        return ApiError(error.status_code, what, code="not_found", headers=error.headers).response(path)
    return as_api_error(error).response(path)
