"""Rows of a table answered by a template: its prompts, and what an answer's columns are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from smallthinker.async_llm import AsyncLLM
from smallthinker.batch.job import row_seed
from smallthinker.batch.journal import Answered
from smallthinker.batch.rows import Row
from smallthinker.batch.template import Template
from smallthinker.errors import CancelledError, ContextLengthError, RequestError, TokenizerError, one_line
from smallthinker.llm import LLM, CallOptions, Prompt
from smallthinker.text.chat_prompt import chat_prompt
from smallthinker.text.tokenizer import Tokenizer

OWN_FAULTS = (RequestError, ContextLengthError, TokenizerError)
"""What is wrong with one row alone; everything else, such as a disk that fails, ends the job."""


@dataclass(frozen=True)
class Prompts:
    """How a row becomes a prompt. is_chat: a message for the model's chat template, behind `system` if there is one.
    values: what else the template asks for."""

    template: Template
    is_chat: bool
    system: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    def prompt(self, row: Row) -> Prompt:
        """Raises RequestError."""
        text = self.template.fill(row)
        if not self.is_chat:
            return text
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": text}]

    def sort_key(self, row: Row) -> str:
        """See `job.SortKey`."""
        try:
            return self.template.fill(row)
        except RequestError:
            return ""

    def count(self, tokenizer: Tokenizer, row: Row) -> int:
        """Tokens of the row's prompt; 0 where it has none."""
        try:
            prompt = self.prompt(row)
            if isinstance(prompt, str):
                return len(tokenizer.encode_prompt(prompt))
            return len(chat_prompt(tokenizer, prompt, values=self.values).ids)
        except OWN_FAULTS:
            return 0


class PromptAnswers:
    """An Answerer: `text`, `reasoning`, `finish_reason`, and the tokens of prompt and answer, or an `error`."""

    def __init__(self, llm: LLM, prompts: Prompts, seed: int, options: CallOptions) -> None:
        """options: but for the seed, which each row has of its own."""
        self._llm, self._prompts, self._seed, self._options = llm, prompts, seed, options

    async def answer(self, index: int, row: Row) -> Answered:
        """See Answerer."""
        options: CallOptions = {**self._options, "seed": row_seed(self._seed, index)}
        if self._prompts.is_chat:
            options["template_values"] = self._prompts.values
        try:
            done = await AsyncLLM(self._llm).generate(self._prompts.prompt(row), **options)
        except OWN_FAULTS as e:
            if self._llm.scheduler.closed:
                raise
            return Answered(index, {"error": one_line(e)}, one_line(e))
        if done.finish_reason == "cancelled":
            raise CancelledError("the answer was cancelled")
        answer = {
            "text": done.text,
            "reasoning": done.reasoning or None,
            "finish_reason": done.finish_reason,
            "prompt_tokens": done.stats.prompt_tokens,
            "completion_tokens": done.stats.new_tokens,
        }
        return Answered(index, answer)
