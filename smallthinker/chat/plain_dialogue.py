"""A conversation as a text that a model without a chat template goes on with: questions and answers.

Owns the words for that. Such a model has only learned to continue texts, and this is the plainest that has turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_TURNS = {"system": "{}\n\n", "user": "Question: {}\n", "assistant": "Answer: {}\n"}
STOPS = ("\nQuestion:", "\nAnswer:")
NOTE = "this model has no chat template: it goes on with your lines as questions, and answers between them"


def as_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Up to the next answer."""
    return "".join(_TURNS[message["role"]].format(message["content"].strip()) for message in messages) + "Answer:"
