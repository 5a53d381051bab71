"""Constrained decoding: at each token, llguidance says which may come next so that the answer fits a JSON schema.

A grammar's compilation, and the work for each token, are bounded: what takes more is refused, or ends its own answer.
Needs llguidance, which only who asks for such an answer needs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from smallthinker import host
from smallthinker.errors import RequestError
from smallthinker.generation.answer import LogitsProcessor
from smallthinker.models.description import Model
from smallthinker.text.chat_prompt import AnswerFormat
from smallthinker.text.tokenizer import Tokenizer

# 20 ms to compile and 7 ms a token at most on one core, by llguidance's own figures; states take 2 kB each.
_LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=50_000,
    step_max_items=50_000,
    max_items_in_row=2_000,
    max_lexer_states=8_000,
    max_grammar_size=100_000,
    verbose_errors=False,  # they repeat what the model wrote
)
# The spaces that models write. With free ones, an answer might go on with spaces for ever.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# Tokens that are allowed together in a JSON text, as a trie of their own. llguidance's usual four take 27 MiB more for
# 150,000 tokens and save nothing that was measured; without any, a text with a maxLength takes 8 ms a token, not 1.
_SLICES = [r"[^\"\\\x00-\x1F\x7F]{1,10}"]
# As a double, in which llguidance keeps it, this has no positive counterpart: it recurses without end, and the process
# dies of that.
_LOWEST = -(2**63)
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


@dataclass(frozen=True)
class SchemaLimits:
    """Of one schema, or of all of a request's tools together."""

    bytes: int = 64 * 1024
    nodes: int = 4096
    depth: int = 32


@dataclass(frozen=True)
class Function:
    """That may be called. parameters: a JSON schema of its arguments; None where it has none."""

    name: str
    parameters: Mapping[str, Any] | None = None


class Grammars:
    """Makes constraints for one model's tokenizer. Loading takes two seconds and 34 MiB for 150,000 tokens, of which 25
    stay: `constraints.GRAMMAR_BYTES_PER_TOKEN`."""

    def __init__(self, tokenizer: Tokenizer, model: Model, limits: SchemaLimits | None = None) -> None:
        self._limits, self._vocab_size = limits or SchemaLimits(), model.vocab_size
        vocabulary, self._text_tokenizer = _Vocabulary(tokenizer, model), tokenizer
        self._tokenizer = LLTokenizer(
            TokenizerWrapper(vocabulary),
            n_vocab=self._vocab_size,
            eos_token=list(vocabulary.eos_token_ids),
            slices=_SLICES,
        )
        host.trim_heap()

    def of_schema(self, schema: Mapping[str, Any], param: str, answer: AnswerFormat) -> Constraint:
        """An answer that says JSON which fits the schema. answer: in what form the model answers. param: how whoever
        asked calls it. Raises RequestError, which begins with that."""
        self.check([schema], param)
        return self._compile(f"{self._literal(answer.format.says)} {_rule(schema)}", param, answer)

    def of_calls(self, functions: Sequence[Function], param: str, answer: AnswerFormat) -> Constraint:
        """An answer that calls one of the functions, with arguments that fit its parameters. Raises RequestError.

        answer: in a notation of calls that `writable` has found."""
        self.check([function.parameters or _NO_ARGUMENTS for function in functions], param)
        block, calls = answer.format.of("call")[0], []
        for function in functions:
            head, end = self._literal(block.written % function.name), self._literal(block.closed)
            calls.append(f"{head} {_rule(function.parameters or _NO_ARGUMENTS)} {end}")
        return self._compile("(" + " | ".join(calls) + ")", param, answer)

    def check(self, schemas: Sequence[Mapping[str, Any]], param: str) -> None:
        """Raises RequestError for more than the limits allow, before any of it is compiled."""
        limits, nodes, size = self._limits, 0, sum(len(_json(schema)) for schema in schemas)
        if size > limits.bytes:
            raise RequestError(f"{param}: at most {limits.bytes:,} bytes are taken, found {size:,}")
        level: list[Any] = list(schemas)
        for _ in range(limits.depth):
            nodes += len(level)
            if any(isinstance(node, int | float) and _LOWEST <= node <= _LOWEST + 512 for node in level):
                raise RequestError(f"{param}: numbers as low as {_LOWEST} are not taken")
            level = [child for node in level for child in _children(node)]
            if not level:
                break
        if level:
            raise RequestError(f"{param}: nested deeper than the {limits.depth} levels that are taken")
        if nodes > limits.nodes:
            raise RequestError(f"{param}: at most {limits.nodes:,} values are taken, found {nodes:,}")

    def _compile(self, body: str, param: str, answer: AnswerFormat) -> Constraint:
        grammar = f"%llguidance {_json({'no_forcing': True})}\n{self._with_thought(body, answer)}"
        matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(grammar), log_level=0, limits=_LIMITS)
        if not matcher.is_error():
            matcher.compute_bitmask()  # what can't even begin is found out here
        if matcher.is_error():
            raise RequestError(f"{param}: not a schema that can be kept to: {_first_line(matcher.get_error())}")
        return Constraint(matcher, self._vocab_size, param)

    def _with_thought(self, body: str, answer: AnswerFormat) -> str:
        """The body behind a thought, where the model may have one or the prompt has opened one."""
        block = next(iter(answer.format.of("thought")), None)
        if block is None or answer.has_thought:
            return f"start: {body}"
        end, resumes = self._literal(block.end[0]), self._literal(answer.format.resumes)
        if end.startswith("<"):
            thought, rule = f"thought {end}", "thought: /(.|\\n)*/"
        else:
            thought, rule = "thought", f"thought[suffix={end}]: /(.|\\n)*/"
        thought = f"{thought} /\\n*/ {resumes}"
        if not answer.is_thinking:
            thought = f"({self._literal(block.written)} {thought})?"
        return f"start: {thought} {body}\n{rule}"

    def _literal(self, text: str) -> str:
        """A text of the protocol's own: special tokens in it are such."""
        special = sorted((name for name in self._text_tokenizer.special_names if name in text), key=len, reverse=True)
        if not special:
            return _json(text) if text else ""
        pieces = re.split(f"({'|'.join(map(re.escape, special))})", text)
        ids = {name: self._text_tokenizer.ids_of([name])[0] for name in special}
        return " ".join(f"<[{ids[piece]}]>" if piece in ids else _json(piece) for piece in pieces if piece)


def writable(answer: AnswerFormat) -> AnswerFormat:
    """The answer's form, with calls in a notation that a grammar can write."""
    if all(block.written for block in answer.format.of("call")):
        return answer
    return replace(answer, format=answer.format.with_default_calls())


class Constraint:
    """A compiled grammar; `begin` makes a logits processor for one answer."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, param: str) -> None:
        self._matcher, self._vocab_size, self._param = matcher, vocab_size, param

    def begin(self) -> LogitsProcessor:
        return _Masking(self._matcher.deep_copy(), self._vocab_size, self._param)


class _Masking:
    """Sets the logits of what must not come next to -inf."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, param: str) -> None:
        self._matcher, self._vocab_size, self._param = matcher, vocab_size, param
        self._seen = 0

    def __call__(self, ids: Sequence[int], logits: npt.NDArray[np.float32]) -> None:
        """Raises RequestError when the grammar turns out to be too complex."""
        self._matcher.consume_tokens(list(ids[self._seen :]))
        self._seen = len(ids)
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise RequestError(f"{self._param}: {_first_line(self._matcher.get_error())}")
        allowed = np.unpackbits(mask, bitorder="little")[: self._vocab_size]
        logits[allowed == 0] = -np.inf


class _Vocabulary:
    """The tokenizer as llguidance wants it; its own reading of tokenizer.json takes six times the memory."""

    def __init__(self, tokenizer: Tokenizer, model: Model) -> None:
        ends = model.tokens.eos
        self.eos_token_ids = ends
        self.eos_token_id, self.bos_token_id = ends[0] if ends else 0, model.tokens.bos
        self.tokens = _Tokens(tokenizer, model.vocab_size)
        self.special_token_ids = [id for id, is_special in tokenizer.added_tokens.items() if is_special]
        self._tokenizer = tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        text = text if isinstance(text, str) else text.decode("utf-8", "replace")
        return self._tokenizer.encode(text, special_tokens=True)  # a grammar's are the protocol's own


class _Tokens(Sequence[bytes]):
    """Each made as it is asked for: a list of 150,000 takes 10 MiB, and llguidance would keep it."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self._tokenizer, self._size = tokenizer, size

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, at: int) -> bytes: ...

    @overload
    def __getitem__(self, at: slice) -> list[bytes]: ...

    def __getitem__(self, at: int | slice) -> bytes | list[bytes]:
        ids = range(self._size)[at]
        return self._tokenizer.token_bytes(ids) if isinstance(ids, int) else list(map(self._tokenizer.token_bytes, ids))


def _rule(schema: Mapping[str, Any]) -> str:
    return f"%json {_json({**schema, 'x-guidance': _SPACING})}"


def _children(node: Any) -> list[Any]:
    if isinstance(node, Mapping):
        return list(node.values())
    return list(node) if isinstance(node, list) else []


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:300]
