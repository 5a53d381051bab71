"""A model whose chat template is an attack: chats are refused, everything else goes on."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from running import MEMORY, demo_with_template, serving

from smallthinker import LLM
from smallthinker.sandbox import meter


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(100000) %}{% for b in range(100000) %}{{ messages }}{% endfor %}{% endfor %}",
        "{{ 'a' * 3000000000 }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% include 'x' %}",
        "{{ " + "[" * 50000,
    ],
)
def test_a_hostile_template_refuses_chats_and_the_server_goes_on(
    tmp_path: Path, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "BUDGET", 1 << 22)
    store = demo_with_template(tmp_path / "store", template)
    with LLM(store, memory=MEMORY, threads=1) as llm, serving(llm) as running:
        messages = [{"role": "user", "content": "Hello"}]
        for path, body in (
            ("/v1/chat/completions", {"messages": messages}),
            ("/v1/chat/completions", {"messages": messages, "stream": True}),
            ("/v1/responses", {"input": "Hello"}),
        ):
            refused = running.post(path, **body)
            assert refused.status_code == 400
            message = refused.json()["error"]["message"]
            assert "chat_template" in message and "\n" not in message and str(store) not in message
        assert running.post("/v1/completions", prompt="Hello", max_tokens=2).json()["choices"][0]["text"]
        assert httpx.get(f"{running.url}/api/stats").status_code == 200
