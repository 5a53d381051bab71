"""The keys `tokenizer.*` of a GGUF file, checked: tokens, their kinds, special tokens, what belongs around a text.

Owns the rules for all kinds of vocabularies. Knows nothing about how a text is cut into tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from functools import cached_property
from itertools import chain, repeat, starmap
from operator import add
from typing import Any

from smallthinker.errors import CheckpointError, shown_or_nothing

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # kinds of tokens
DAMAGED = "the file is damaged: copy or download it again"
CONVERT = "convert from the original weights"

# What ends an answer wherever a vocabulary has it, beside the ids that the file names: as llama.cpp has it.
_ENDS = frozenset((
    "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|return|>", "<|call|>",
    "<end_of_turn>", "<turn|>", "<|tool_response>", "<end_of_utterance>", "<eos>", "</s>", "<EOT>", "_<EOT>", "[EOT]",
    "[EOS]", "<\uff5cend▁of▁sentence\uff5c>", "<|flush|>", "<|calls|>", "[e~[",
))  # fmt: skip
_MARKUP = frozenset(("</s>", "<EOT>"))  # ends only as control tokens: elsewhere, as in Gemma's vocabularies, words
# Where a vocabulary has these, <|end|> is the end of one message of several in an answer.
_OTHER_ENDS = ({"<|return|>", "<|call|>"}, {"<|calls|>", "<|flush|>"})


class GgufVocabulary:
    """Raises CheckpointError, here and where a property says so, for keys that are missing, broken or contradictory."""

    def __init__(self, metadata: Mapping[str, Any], where: str) -> None:
        self._metadata, self._where = metadata, where
        self.tokens: list[str] = self.list_of("ggml.tokens", str)
        kinds: list[int] = self.list_of("ggml.token_type", int)
        if len(kinds) != len(self.tokens):
            raise self.fault("ggml.token_type", f"{len(self.tokens)} entries, one a token", len(kinds))
        if unknown := set(kinds) - {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE}:
            raise self.fault("ggml.token_type", "kinds 1 to 6", min(unknown))
        # no text has an empty token, or one that only fills up the vocabulary
        self.kinds = [kind if token else UNUSED for token, kind in zip(self.tokens, kinds, strict=True)]
        used = [token for token, kind in zip(self.tokens, self.kinds, strict=True) if kind != UNUSED]
        if len(set(used)) < len(used):
            ((twice, times),) = Counter(used).most_common(1)
            raise self.fault("ggml.tokens", f"every token once, not {times} times", twice)
        for id in self.eos_token_ids:
            if self.tokens[id]:
                self.kinds[id] = CONTROL

    def ids_of(self, *kinds: int) -> dict[str, int]:
        """The ids of these kinds of tokens, by their texts."""
        return {token: i for i, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True)) if kind in kinds}

    @cached_property
    def used(self) -> dict[str, int]:
        """The ids of all tokens that a text may have."""
        return self.ids_of(NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE)

    @property
    def bos_token_id(self) -> int | None:
        return self.id("ggml.bos_token_id")

    @cached_property
    def eos_token_ids(self) -> list[int]:
        """What ends an answer: the file's own ids and the tokens that are named so. In order."""
        named = (self.id(f"ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
        known = {}
        for i, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True)):
            if token in _ENDS and (kind == CONTROL or (kind in (NORMAL, USER_DEFINED) and token not in _MARKUP)):
                known[token] = i
        if any(others <= known.keys() for others in _OTHER_ENDS):
            known.pop("<|end|>", None)
        return sorted({i for i in named if i is not None} | set(known.values()))

    def around(self, key: str, default: bool) -> int | None:
        """The id of the token that belongs before ("bos") or after ("eos") a text, if the file says so."""
        if not self.flag(f"ggml.add_{key}_token", default):
            return None
        id = self.id(f"ggml.{key}_token_id")
        if id is None:
            raise self.fault(f"ggml.{key}_token_id", f"the id of a token (add_{key}_token says that texts have it)", id)
        return id

    def text(self, key: str, one_of: Collection[str] = ()) -> str | None:
        value = self._metadata.get(f"tokenizer.{key}")
        if one_of and value not in tuple(one_of):
            raise self.fault(key, " or ".join(f"'{name}'" for name in one_of), value, CONVERT)
        if value is not None and not isinstance(value, str):
            raise self.fault(key, "a text", value)
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._metadata.get(f"tokenizer.{key}", default)
        if type(value) is not bool:
            raise self.fault(key, "true or false", value)
        return value

    def id(self, key: str) -> int | None:
        value = self._metadata.get(f"tokenizer.{key}")
        if value is not None and (type(value) is not int or not 0 <= value < len(self.tokens)):
            raise self.fault(key, f"the id of one of {len(self.tokens)} tokens", value)
        return value

    def scores(self) -> list[float]:
        """One of each token."""
        found = self._metadata.get("tokenizer.ggml.scores")
        is_whole = isinstance(found, list) and found and type(found[0]) is int
        scores: list[float] = self.list_of("ggml.scores", int if is_whole else float)
        if len(scores) != len(self.tokens):
            raise self.fault("ggml.scores", f"{len(self.tokens)} entries, one a token", len(scores))
        if not all(map(math.isfinite, scores)):
            raise self.fault("ggml.scores", "finite numbers", next(s for s in scores if not math.isfinite(s)))
        return scores

    def merges(self) -> list[tuple[str, str]]:
        """Pairs of tokens that make a third, the first to be merged first."""
        texts, has = self.list_of("ggml.merges", str), self.used.__contains__
        # hundreds of thousands: without a line of Python for each of the checks
        pairs = [(left, right) for left, _, right in map(str.partition, texts, repeat(" "))]
        for i in [i for i, (left, _) in enumerate(pairs) if not left]:  # the first token begins with the space
            cut = texts[i].find(" ", 1)
            pairs[i] = texts[i][: max(cut, 0)], texts[i][cut + 1 :]
        if not all(map(has, chain.from_iterable(pairs))) or not all(map(has, starmap(add, pairs))):
            wrong = (i for i, (left, right) in enumerate(pairs) if not (has(left) and has(right) and has(left + right)))
            raise self.fault("ggml.merges", "two tokens that make a third", texts[next(wrong)])
        return pairs

    def list_of(self, key: str, kind: type) -> list[Any]:
        value = self._metadata.get(f"tokenizer.{key}")
        if not isinstance(value, list) or not {kind}.issuperset(map(type, value)):
            what = {str: "texts", int: "integers"}.get(kind, "numbers")
            raise self.fault(key, f"a list of {what}", value)
        return value

    def fault(self, key: str, expected: str, found: object, remedy: str = DAMAGED) -> CheckpointError:
        if isinstance(found, list):
            found = found[:8]  # it may have millions of entries
        text = shown_or_nothing(found)
        return CheckpointError(f"{self._where}: tokenizer.{key}: expected {expected}, found {text}; {remedy}")
