"""Conversations as files: of the user's choosing, and the last one at a terminal, to be gone on with.

Owns their form: JSON messages, each with a role and a content, questions and answers in turns behind at most one system
message. Knows nothing about models.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from smallthinker.errors import RequestError
from smallthinker.files import parse_json, read_small, write_whole

Message = dict[str, str]
_ROLES = ("system", "user", "assistant")
HISTORY, LAST = "chat-history", "last-chat.json"


def to_json(messages: list[Message]) -> bytes:
    return (json.dumps(messages, ensure_ascii=False, indent=1) + "\n").encode()


def read_messages(path: Path) -> list[Message]:
    """Raises OSError, ValueError."""
    messages = parse_json(read_small(path))
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        raise ValueError("expected a list of messages with role and content, as /save FILE.json writes them")
    first = len(messages) and messages[0]["role"] == "system"
    roles = [message["role"] for message in messages[first:]]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError("expected questions and answers in turns")
    return messages


def state_folder() -> Path | None:
    """Where a user's terminal conversations are remembered, for that user alone; None where nothing can be."""
    from platformdirs import user_state_path

    try:
        folder = user_state_path("smallthinker", appauthor=False).expanduser()
        if not folder.is_absolute():
            return None
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return None
    return folder


def keep_last(messages: list[Message], folder: Path | None) -> None:
    """For `--resume`; as well as can be."""
    if folder is None:
        return
    with contextlib.suppress(OSError):
        write_whole(folder / LAST, to_json(messages))
        (folder / LAST).chmod(0o600)


def last_messages() -> list[Message]:
    """Raises RequestError where there are none."""
    folder = state_folder()
    try:
        if folder is None:
            raise FileNotFoundError
        return read_messages(folder / LAST)
    except FileNotFoundError:
        raise RequestError("resume: no conversation at a terminal is remembered; start one without it") from None
    except (OSError, ValueError) as e:
        said = e.strerror if isinstance(e, OSError) and e.strerror else e
        raise RequestError(f"{folder}/{LAST}: cannot be read: {said}; start a conversation without resume") from None


def _is_message(value: object) -> bool:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        return False
    return value.get("role") in _ROLES and "content" in value
