"""The chat page: one file, and the policy that lets a browser run only what is in it."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

_INLINE = re.compile(rb"<(script|style)\b[^>]*>(.*?)</\1\s*>", re.DOTALL | re.IGNORECASE)


def policy(html: bytes) -> str:
    """The Content-Security-Policy of a page without other files: its own inline blocks, by their hashes, and requests
    to this server; nothing that a model's answer could slip in."""
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for name, content in _INLINE.findall(html):
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        hashes[name.lower().decode()].append(f"'sha256-{digest}'")
    sources = {name: " ".join(found) or "'none'" for name, found in hashes.items()}
    return (
        f"default-src 'none'; script-src {sources['script']}; style-src {sources['style']}; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class Page:
    """Read once, at the start: the hashes belong to these bytes."""

    def __init__(self) -> None:
        self._html = (files("smallthinker.server") / "page" / "index.html").read_bytes()
        self._headers = {
            "content-security-policy": policy(self._html),
            "referrer-policy": "no-referrer",
            "cross-origin-opener-policy": "same-origin",
            "cache-control": "no-cache",
        }

    async def respond(self, request: Request) -> Response:
        return Response(self._html, headers=self._headers, media_type="text/html; charset=utf-8")
