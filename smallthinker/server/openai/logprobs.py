"""Logprobs as the protocol shows them: with each token's text and bytes."""

from __future__ import annotations

from typing import Any

from smallthinker.generation.answer import TokenLogprobs
from smallthinker.text.tokenizer import Tokenizer

# JSON has no -inf; OpenAI's servers give this for what was not among the likeliest.
_LEAST = -9999.0


def chat_logprobs(tokenizer: Tokenizer, token: TokenLogprobs) -> dict[str, Any]:
    top = [_entry(tokenizer, id, logprob) for id, logprob in token.top]
    return _entry(tokenizer, token.id, token.logprob) | {"top_logprobs": top}


def token_text(tokenizer: Tokenizer, id: int) -> str:
    """Of a part of a character, U+FFFD: its bytes tell."""
    return tokenizer.token_bytes(id).decode("utf-8", "replace")


def finite(logprob: float) -> float:
    return max(logprob, _LEAST)


def _entry(tokenizer: Tokenizer, id: int, logprob: float) -> dict[str, Any]:
    content = tokenizer.token_bytes(id)
    return {"token": content.decode("utf-8", "replace"), "logprob": finite(logprob), "bytes": list(content)}
