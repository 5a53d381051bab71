"""How byte-level vocabularies cut a text into words before they merge bytes: a table by the names that GGUF has for it.

A name says what its tokenizer.json says: the normal form, the patterns, applied one after another to what those before
have left, and whether a word that is a token is taken whole. Knows nothing about tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Words(NamedTuple):
    """patterns: each match is a piece, and so is what lies between them. bos: whether a text begins with that token
    where the file doesn't say."""

    patterns: tuple[str, ...]
    normalizer: str | None = None
    ignore_merges: bool = False
    bos: bool = False

    def pre_tokenizer(self) -> dict[str, Any]:
        splits = [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
            for pattern in self.patterns
        ]
        return {"type": "Sequence", "pretokenizers": [*splits, BYTE_LEVEL]}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}

_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN2 = rf"{_ENDINGS}|{_WORD}|\p{{N}}|{_SIGNS}|{_SPACES}"
_QWEN35 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
_LLAMA3 = rf"{_ENDINGS}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"

# words of o200k: capitals first, then small letters, and a capital begins another one
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{{ending}}|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{{ending}}"
)
_SLASHED_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_GPT4O = rf"{_CASED.replace('{ending}', _ENDINGS + '?')}|\p{{N}}{{1,3}}|{_SLASHED_SIGNS}|{_SPACES}"
_TEKKEN = rf"{_CASED.replace('{ending}', '')}|\p{{N}}|{_SLASHED_SIGNS}|{_SPACES}"

# letters that have a case, and ideographs, as Unicode had them then
_DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376"
    "\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    "\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_DEEPSEEK_LETTERS}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    _CJK,
    r"\p{N}",
)
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    rf"|{_SPACES}",
)
_SIGN_RUN = r"[\p{P}\$\+<=>\^~\|`]+"
_THREE_DIGITS = "[0-9][0-9][0-9]"

_BY_KIND = (
    ("qwen2 deepseek-r1-qwen megrez", Words((_QWEN2,), normalizer="NFC")),
    ("qwen35", Words((_QWEN35,), normalizer="NFC")),
    ("llama-bpe llama3 llama-v3 falcon3 pixtral lfm2", Words((_LLAMA3,), ignore_merges=True, bos=True)),
    ("smaug-bpe dbrx chatglm-bpe", Words((_LLAMA3,))),
    ("glm4", Words((_LLAMA3,), ignore_merges=True)),
    ("gpt-2 phi-2", Words((_GPT2,))),
    ("mpt olmo", Words((_GPT2,), normalizer="NFC")),
    ("starcoder refact smollm", Words((r"\p{N}", _GPT2))),
    ("command-r", Words((r"\p{N}", _GPT2), normalizer="NFC")),
    ("falcon", Words((_SIGN_RUN, _GPT2, _THREE_DIGITS))),
    ("default", Words((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", _THREE_DIGITS))),
    ("gpt-4o llama4", Words((_GPT4O,))),
    ("tekken", Words((_TEKKEN,), ignore_merges=True, bos=True)),
    ("deepseek-llm", Words(_DEEPSEEK_LLM)),
    ("deepseek-coder", Words((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}"))),
    ("deepseek-v3", Words(_DEEPSEEK_V3)),
)
WORDS = {name: words for names, words in _BY_KIND for name in names.split()}
