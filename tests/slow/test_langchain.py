"""LangChain beyond a chain of texts, which the fast tests have: forms, tools, the Responses API and embeddings."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smallthinker import LLM

pytestmark = pytest.mark.slow

sys.path.insert(0, str(Path(__file__).parents[1] / "server"))
# Both closed and short, so that a model that knows nothing of them comes to an end.
FORM: Any = {
    "title": "colour", "description": "A colour.", "type": "object", "additionalProperties": False,
    "properties": {"name": {"enum": ["blue", "green"]}}, "required": ["name"],
}  # fmt: skip


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    pytest.importorskip("langchain_openai", reason="needs smallthinker[examples]")
    from running import serving

    with LLM(threads=1, context=768) as llm, serving(llm) as running:
        yield f"{running.url}/v1"


def model(url: str, **options: Any) -> Any:
    from langchain_openai import ChatOpenAI
    from running import NAME

    return ChatOpenAI(base_url=url, api_key="none", model=NAME, temperature=0, max_tokens=120, **options)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_an_answer_has_the_form_that_is_asked_for(url: str, method: str) -> None:
    asked = model(url).with_structured_output(FORM, method=method, strict=True)
    assert asked.invoke("What colour is the sky?")["name"] in ("blue", "green")


def test_a_call_and_its_result_are_messages(url: str) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage

    question = HumanMessage("What colour is the sky?")
    answer = model(url).bind_tools([FORM], tool_choice="any", strict=True).invoke([question])
    (call,) = answer.tool_calls
    assert call["name"] == "colour" and answer.usage_metadata["output_tokens"] > 0
    assert model(url).invoke([question, answer, ToolMessage("blue", tool_call_id=call["id"])]).content


def test_the_responses_api_gives_the_same_text(url: str) -> None:
    whole = model(url).invoke("Who is it?").content
    (part,) = model(url, use_responses_api=True).invoke("Who is it?").content
    assert part["text"] == whole


def test_texts_become_vectors(url: str) -> None:
    from langchain_openai import OpenAIEmbeddings
    from running import NAME

    # else it would send ids of OpenAI's own vocabulary
    vectors = OpenAIEmbeddings(base_url=url, api_key="none", model=NAME, check_embedding_ctx_length=False)
    first, second, again = vectors.embed_documents(["The sea was calm.", "The night was long.", "The sea was calm."])
    assert first == again != second
