"""The output items of a response as they grow, and the events that tell of it."""

from __future__ import annotations

import secrets
from typing import Any

from smallthinker.server import sse
from smallthinker.text.answer_parser import CallArguments, CallStart, Part, Reasoning


class Items:
    """A thought, a message and calls, each begun by its first part. What `add` and `finish` return is to be sent."""

    def __init__(self) -> None:
        self.output: list[dict[str, Any]] = []
        self._sequence_number = 0
        self._open = False

    def event(self, type: str, **fields: Any) -> bytes:
        payload = {"type": type, "sequence_number": self._sequence_number, **fields}
        self._sequence_number += 1
        return sse.event(payload, type)

    def add(self, part: Part) -> list[bytes]:
        if isinstance(part, CallStart):
            return self._end() + self._begin_call(part)
        if isinstance(part, CallArguments):
            return self._end_call(part)
        text, reasoning = part.text, isinstance(part, Reasoning)
        events: list[bytes] = []
        kind = "reasoning" if reasoning else "message"
        if not self._open or self.output[-1]["type"] != kind:
            events += self._end() + self._begin(kind)
        self._part["text"] += text
        extra: dict[str, Any] = {} if reasoning else {"logprobs": []}
        events.append(self.event(f"response.{self._part['type']}.delta", **self._place(), delta=text, **extra))
        return events

    def finish(self) -> list[bytes]:
        """The last item ends; an answer without any text still is a message."""
        has_said = any(item["type"] in ("message", "function_call") for item in self.output)
        return ([] if has_said else self._end() + self._begin("message")) + self._end()

    def _begin_call(self, start: CallStart) -> list[bytes]:
        item = {"type": "function_call", "id": f"fc_{secrets.token_hex(12)}", "call_id": start.id, "name": start.name}
        self.output.append(item | {"arguments": "", "status": "in_progress"})
        return [self.event("response.output_item.added", output_index=len(self.output) - 1, item=self.output[-1])]

    def _end_call(self, arguments: CallArguments) -> list[bytes]:
        """A call's arguments come whole."""
        item = self.output[-1]
        place = {"item_id": item["id"], "output_index": len(self.output) - 1}
        delta = self.event("response.function_call_arguments.delta", **place, delta=arguments.text)
        item |= {"arguments": arguments.text, "status": "completed"}
        done = {"name": item["name"], "arguments": arguments.text}
        return [
            delta,
            self.event("response.function_call_arguments.done", **place, **done),
            self.event("response.output_item.done", output_index=place["output_index"], item=item),
        ]

    @property
    def _part(self) -> dict[str, Any]:
        part: dict[str, Any] = self.output[-1]["content"][0]
        return part

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.output[-1]["id"], "output_index": len(self.output) - 1, "content_index": 0}

    def _begin(self, kind: str) -> list[bytes]:
        item: dict[str, Any] = {"type": kind, "status": "in_progress", "content": []}
        if kind == "message":
            item |= {"id": f"msg_{secrets.token_hex(12)}", "role": "assistant"}
            part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        else:
            item |= {"id": f"rs_{secrets.token_hex(12)}", "summary": []}
            part = {"type": "reasoning_text", "text": ""}
        self.output.append(item)
        self._open = True
        added = self.event("response.output_item.added", output_index=len(self.output) - 1, item=item)
        item["content"].append(part)
        return [added, self.event("response.content_part.added", **self._place(), part=part)]

    def _end(self) -> list[bytes]:
        if not self._open:
            return []
        self._open = False
        item, part = self.output[-1], self._part
        extra: dict[str, Any] = {"logprobs": []} if item["type"] == "message" else {}
        item["status"] = "completed"
        return [
            self.event(f"response.{part['type']}.done", **self._place(), text=part["text"], **extra),
            self.event("response.content_part.done", **self._place(), part=part),
            self.event("response.output_item.done", output_index=len(self.output) - 1, item=item),
        ]
