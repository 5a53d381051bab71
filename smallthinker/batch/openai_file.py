"""OpenAI's batch files: a request a line in, a response a line out, as its batch API has them.

Requests go to the server's own application without a socket, so that every field means what it means there and every
refusal reads the same. Needs what the server needs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from smallthinker.batch.job import row_seed
from smallthinker.batch.journal import Answered
from smallthinker.batch.rows import Row
from smallthinker.errors import RequestError, SmallThinkerError, shown_or_nothing
from smallthinker.llm import LLM
from smallthinker.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from starlette.applications import Starlette

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
_SEEDED = URLS[:2]
_LONGEST_SEC = 30 * 24 * 3600.0
_BODY_BYTES = 16 << 20
_TEMPLATE_TOKENS = 64  # around each message, at most
_MAX_TOKENS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


def is_request(row: Row) -> bool:
    return {"custom_id", "url", "body"} <= set(row)


def check_requests(rows: Iterable[Row]) -> None:
    """All of them, before anything is computed. Raises RequestError, naming the request."""
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        id, body = row.get("custom_id"), row.get("body")
        what = f"request {number}"
        if not isinstance(id, str) or not id:
            raise RequestError(f"{what}: custom_id: expected text, found {shown_or_nothing(id)}")
        if id in seen:
            raise RequestError(f"{what}: custom_id: {shown_or_nothing(id)} is there twice; each needs its own")
        seen.add(id)
        if row.get("method") != "POST":
            raise RequestError(f"{what}: method: expected POST, found {shown_or_nothing(row.get('method'))}")
        if row.get("url") not in URLS:
            raise RequestError(f"{what}: url: expected {', '.join(URLS)}, found {shown_or_nothing(row.get('url'))}")
        if not isinstance(body, dict):
            raise RequestError(f"{what}: body: expected an object, found {shown_or_nothing(body)}")


def tokens_of(tokenizer: Tokenizer, row: Row, max_tokens: int) -> int:
    """About as many as prompt and answer take, rather more."""
    body = row["body"]
    asked = [{name: body[name] for name in ("messages", "prompt", "input", "instructions", "tools") if name in body}]
    most = next((body[name] for name in _MAX_TOKENS if type(body.get(name)) is int), max_tokens)
    messages = body.get("messages", ())
    around = _TEMPLATE_TOKENS * (2 + (len(messages) if isinstance(messages, list) else 0))
    return len(tokenizer.encode(json.dumps(asked, ensure_ascii=False))) + around + max(0, min(most, 1 << 20))


def sort_key(row: Row) -> str:
    """See `job.SortKey`."""
    beginnings = (row["body"].get(name) for name in ("messages", "instructions", "input", "prompt"))
    return json.dumps([row["url"], *beginnings])


class RequestAnswers:
    """An Answerer. Whatever model a body names, the one that is loaded answers."""

    def __init__(self, llm: LLM, name: str, seed: int, job: str) -> None:
        """job: what tells this batch from others. Raises RequestError without what the server needs."""
        try:
            from smallthinker.server.app import create_app
            from smallthinker.server.settings import Limits, Settings
        except ImportError as e:
            raise RequestError(f"OpenAI's batch files need {e.name}: pip install 'smallthinker[serve]'") from None
        limits = Limits(body_bytes=_BODY_BYTES, bodies_bytes=64 * _BODY_BYTES, requests=1024)
        self._app: Starlette = create_app(llm, name, Settings(timeout_sec=_LONGEST_SEC, limits=limits))
        self._seed, self._job = seed, job

    async def answer(self, index: int, row: Row) -> Answered:
        """See Answerer."""
        body = {name: value for name, value in row["body"].items() if name not in ("model", "stream", "stream_options")}
        if row["url"] in _SEEDED and body.get("seed") is None:
            body["seed"] = row_seed(self._seed, index) >> 1  # clients' numbers have a sign
        status, response = await _post(self._app, row["url"], json.dumps(body).encode())
        if status >= 500 or status == 429:  # the machine's fault, not the request's
            raise SmallThinkerError(f"request {row['custom_id']!a}: {_message(response)}; what is done stays")
        name = sha256(f"{self._job} {row['custom_id']}".encode("utf-8", "surrogatepass")).hexdigest()[:24]
        if isinstance(response.get("id"), str):
            response["id"] = f"{response['id'].partition('-')[0].partition('_')[0]}-{name}"
        response.pop("timings", None)
        said = {"status_code": status, "request_id": f"req_{name}", "body": response}
        answer = {"id": f"batch_req_{name}", "custom_id": row["custom_id"], "response": said, "error": None}
        return Answered(index, answer, None if status < 400 else _message(response))


def _message(response: dict[str, Any]) -> str:
    error = response.get("error")
    return str(error.get("message")) if isinstance(error, dict) else "no answer"


async def _post(app: Starlette, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
    """What the application answers: a status and an object."""
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 0),
        "server": ("localhost", 0),
    }
    unread, status, parts = [body], 0, list[bytes]()

    async def receive() -> dict[str, Any]:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        await asyncio.Event().wait()  # a client that stays
        raise AssertionError

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)
        parts.append(message.get("body", b""))

    await app(scope, receive, send)
    found: dict[str, Any] = json.loads(b"".join(parts))
    return status, found
