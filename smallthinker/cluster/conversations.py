"""Which conversation a request goes on with, as far as its body tells: clients send all of it again at each turn.

Knows nothing about replicas.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

from smallthinker.files import parse_json

_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/api/chat", "/api/generate")
_CHARACTERS = 64  # of a text that grows from call to call


def conversation_of(path: str, body: bytes) -> str:
    """The same for all turns of one, and for others that begin alike: of the client's `prompt_cache_key`, or of all up
    to the first thing that the user says. "" where there is nothing to return to."""
    if path not in _PATHS:
        return ""
    try:
        said = parse_json(body)
    except ValueError:
        return ""  # which whoever answers says
    if not isinstance(said, dict):
        return ""
    key = said.get("prompt_cache_key")
    beginning = [key] if isinstance(key, str) else [said.get("instructions"), said.get("system"), _beginning(said)]
    return sha256(json.dumps([said.get("model"), *beginning]).encode("utf-8", "surrogatepass")).hexdigest()[:24]


def _beginning(said: dict[str, Any]) -> Any:
    messages = next((said[name] for name in ("messages", "input", "prompt") if said.get(name)), None)
    if isinstance(messages, str):
        return messages[:_CHARACTERS]
    if not isinstance(messages, list):
        return None
    users = (i for i, one in enumerate(messages) if isinstance(one, dict) and one.get("role") == "user")
    return messages[: next(users, 0) + 1]
