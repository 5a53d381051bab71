"""litellm, which other programs reach models through, by both protocols. With what it needs it takes 281 MB, and an
older version of what other packages need, so no extra has it: CI installs it for itself (.ci/litellm.lock)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smallthinker import LLM

pytestmark = pytest.mark.slow

sys.path.insert(0, str(Path(__file__).parents[1] / "server"))
MESSAGES: Any = [{"role": "user", "content": "Who is it?"}]
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": {"enum": [{"city": "Riga"}]}}}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    pytest.importorskip("litellm", reason="litellm isn't installed")
    from running import serving

    with LLM(threads=1, context=512) as llm, serving(llm) as running:
        yield running.url


@pytest.mark.parametrize("protocol", ["openai", "ollama_chat"])
def test_answers_streams_calls_and_vectors(url: str, protocol: str) -> None:
    import litellm
    from running import NAME

    base = f"{url}/v1" if protocol == "openai" else url
    options: dict[str, Any] = {"model": f"{protocol}/{NAME}", "api_base": base, "api_key": "none"}
    asked = options | {"messages": MESSAGES, "temperature": 0, "max_tokens": 8}
    whole = litellm.completion(**asked).choices[0].message.content
    with LLM(threads=1, context=512) as llm:
        assert whole == llm.chat(MESSAGES, temperature=0, max_tokens=8).text
    pieces = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(**asked, stream=True)]
    assert "".join(pieces) == whole
    if protocol == "openai":
        answer = litellm.completion(**options, messages=MESSAGES, tools=[TOOL], tool_choice="required")
        assert answer.choices[0].message.tool_calls[0].function.name == "weather"
    embedding = options | {"model": f"{protocol.removesuffix('_chat')}/{NAME}", "input": ["The sea was calm."]}
    assert len(litellm.embedding(**embedding).data[0]["embedding"]) > 10
