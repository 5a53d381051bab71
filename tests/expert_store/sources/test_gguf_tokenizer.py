"""Tokenizers made of GGUF metadata give the ids of those that the metadata came from, and broken ones are refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from gguf_vocabularies import SPACE, TEXTS, byte_level, gemma4, metadata, scores, sentencepiece_ids
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, normalizers
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.pre_tokenizers import ByteLevel, Digits, Punctuation, Sequence, Split

from smallthinker.errors import CheckpointError
from smallthinker.expert_store.sources.gguf_tokenizer.tokenizer import GgufTokenizer
from smallthinker.expert_store.sources.gguf_tokenizer.words import WORDS
from smallthinker.text.tokenizer import Tokenizer

NFC = normalizers.NFC()
BYTES = ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = ByteLevel(add_prefix_space=False, use_regex=True)


def split(*patterns: str) -> Sequence:
    return Sequence([*(Split(Regex(pattern), "isolated") for pattern in patterns), BYTES])


# As the published tokenizer.json have them, written another way where there is one.
WITH_DIGITS = Sequence([Digits(individual_digits=True), GPT2])
LLAMA3 = split(
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = split(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN35 = split(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
GPT4O = split(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = split(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK_CODER = Sequence(
    [
        *(Split(Regex(pattern), "isolated") for pattern in (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+")),
        Split(Regex("[一-龥ࠀ-一가-퟿]+"), "isolated"),
        Digits(individual_digits=True),
        BYTES,
    ]
)
FALCON = Sequence([Punctuation("contiguous"), GPT2, Split(Regex("[0-9][0-9][0-9]"), "isolated")])
ORIGINALS: dict[str, tuple[Any, Any]] = {
    "qwen2": (QWEN2, NFC),
    "qwen35": (QWEN35, NFC),
    "llama-bpe": (LLAMA3, None),
    "smaug-bpe": (LLAMA3, None),
    "glm4": (LLAMA3, None),
    "gpt-2": (GPT2, None),
    "mpt": (GPT2, NFC),
    "olmo": (GPT2, NFC),
    "starcoder": (WITH_DIGITS, None),
    "refact": (WITH_DIGITS, None),
    "smollm": (WITH_DIGITS, None),
    "command-r": (WITH_DIGITS, NFC),
    "falcon": (FALCON, None),
    "gpt-4o": (GPT4O, None),
    "tekken": (TEKKEN, None),
    "deepseek-coder": (DEEPSEEK_CODER, None),
}

gpt2 = cache(lambda: byte_level(GPT2))
characters = cache(gemma4)

SOME_TEXT = st.lists(
    st.sampled_from([word for text in TEXTS for word in text.split(" ")])
    | st.sampled_from(
        [" ", "  ", "   ", "     ", "\n", "\r\n", "\t", "<tool>", "<|im_end|>", "e\u0301", "\u00a0", "\u3000"]
    )
    | st.text(max_size=4),
    max_size=12,
).map("".join)


def made_of(facts: dict[str, Any]) -> HFTokenizer:
    return HFTokenizer.from_buffer(GgufTokenizer(facts, "x.gguf").files()["tokenizer.json"])


def sentencepiece(**more: Any) -> dict[str, Any]:
    facts = metadata(characters(), "llama", unknown_token_id=0, **more)
    tokens, merges = facts["tokenizer.ggml.tokens"], facts.pop("tokenizer.ggml.merges")
    return facts | {"tokenizer.ggml.scores": scores(tokens, merges)}


@pytest.mark.parametrize("name", ORIGINALS)
def test_a_byte_level_vocabulary_gives_the_ids_of_its_original(name: str) -> None:
    words, normalizer = ORIGINALS[name]
    original = byte_level(words, normalizer, ignore_merges=WORDS[name].ignore_merges)
    ours = made_of(metadata(original, "gpt2", name))

    @settings(max_examples=50)
    @given(text=SOME_TEXT)
    def same(text: str) -> None:
        ids = original.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, add_special_tokens=False).ids == ids
        assert ours.decode(ids) == original.decode(ids)

    same()
    for text in TEXTS:
        assert ours.encode(text, add_special_tokens=False).ids == original.encode(text).ids


@pytest.mark.parametrize("name", sorted(WORDS))
def test_nothing_of_a_text_is_lost_whatever_cuts_it_into_words(name: str) -> None:
    ours = made_of(metadata(gpt2(), "gpt2", name))
    for text in TEXTS:
        expected = ours.normalizer.normalize_str(text) if ours.normalizer else text
        assert ours.decode(ours.encode(text, add_special_tokens=False).ids) == expected


def test_a_vocabulary_of_characters_with_merges_gives_the_ids_of_its_original() -> None:
    original = characters()
    ours = made_of(metadata(original, "gemma4", unknown_token_id=0))

    @given(text=SOME_TEXT)
    def same(text: str) -> None:
        ids = original.encode(text).ids
        assert ours.encode(text, add_special_tokens=False).ids == ids
        assert ours.decode(ids) == original.decode(ids)

    same()


def test_a_vocabulary_with_scores_merges_the_best_neighbours_first() -> None:
    facts = sentencepiece(add_space_prefix=False)
    ours = made_of(facts)

    @given(text=SOME_TEXT)
    def same(text: str) -> None:
        text = text.replace("<|im_end|>", "").replace("<tool>", "").replace("    ", "")
        assert ours.encode(text, add_special_tokens=False).ids == sentencepiece_ids(facts, text)
        assert ours.decode(ours.encode(text, add_special_tokens=False).ids) == text.replace(SPACE, " ")

    same()


def test_a_space_that_is_not_shown_begins_a_text_and_what_follows_a_token_found_before_all_else() -> None:
    facts = sentencepiece()
    ours = made_of(facts)
    names = {token: id for id, token in enumerate(facts["tokenizer.ggml.tokens"])}
    ids = ours.encode("the cat<tool>the cat", add_special_tokens=False).ids
    assert ids == [*(words := sentencepiece_ids(facts, " the cat")), names["<tool>"], *words]
    assert ours.decode(words) == "the cat"


def test_the_scores_may_be_whole_numbers() -> None:
    facts = sentencepiece()
    whole = facts | {"tokenizer.ggml.scores": [int(score) for score in facts["tokenizer.ggml.scores"]]}
    assert made_of(whole).to_str() == made_of(facts).to_str()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, "[a]"),
        ({"add_bos_token": True}, "[<|start|>, a]"),
        ({"add_eos_token": True}, "[a, <|im_end|>]"),
        ({"add_bos_token": True, "add_eos_token": True}, "[<|start|>, a, <|im_end|>]"),
    ],
)
def test_what_belongs_around_a_text_is_put_there_where_that_is_asked_for(more: dict[str, Any], expected: str) -> None:
    ours = made_of(metadata(gpt2(), "gpt2", "gpt-2", **more))
    assert f"[{', '.join(ours.encode('a').tokens)}]" == expected
    assert ours.encode("a", add_special_tokens=False).tokens == ["a"]
    assert ours.decode(ours.encode("a").ids) == "a"


def test_kinds_whose_texts_begin_with_a_token_do_so_unless_the_file_says_otherwise() -> None:
    def first(name: str, **more: Any) -> str:
        return str(made_of(metadata(gpt2(), "gpt2", name, **more)).encode("a").tokens[0])

    assert first("llama-bpe") == first("tekken") == "<|start|>"
    assert first("llama-bpe", add_bos_token=False) == first("qwen2") == "a"
    assert made_of(sentencepiece()).encode("a").tokens[0] == "<|start|>"


def test_a_prompt_begins_as_the_models_texts_do_and_no_other_text(tmp_path: Path) -> None:
    facts = metadata(gpt2(), "gpt2", "llama-bpe")
    for name, content in GgufTokenizer(facts, "x.gguf").files().items():
        (tmp_path / name).write_bytes(content)
    tokenizer = Tokenizer(tmp_path, 1000)
    start = facts["tokenizer.ggml.bos_token_id"]
    assert tokenizer.encode_prompt("a") == [start, *tokenizer.encode("a")]
    assert tokenizer.encode_prompt("<|start|>a", special_tokens=True) == tokenizer.encode_prompt("a")
    assert tokenizer.encode_prompt("<|start|>a") == [start, *tokenizer.encode("<|start|>a")]  # plain text


def test_phi_3s_control_tokens_take_the_spaces_behind_them() -> None:
    facts = sentencepiece(add_space_prefix=False)
    plain, phi = made_of(facts), made_of(facts | {"general.name": "Phi 3 Mini-Phi3"})
    text = "<|im_end|>\n the"
    assert len(phi.encode(text).ids) < len(plain.encode(text).ids)
    assert phi.encode(text).ids == plain.encode("<|im_end|>the").ids


def with_tokens(**kinds: int) -> dict[str, Any]:
    """A vocabulary that has these, too."""
    facts = metadata(gpt2(), "gpt2", "gpt-2", eos_token_id=None)
    facts["tokenizer.ggml.tokens"] = facts["tokenizer.ggml.tokens"] + list(kinds)
    facts["tokenizer.ggml.token_type"] = facts["tokenizer.ggml.token_type"] + list(kinds.values())
    return facts


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ({}, []),
        ({"<|eot_id|>": 3, "<|eom_id|>": 3}, ["<|eot_id|>", "<|eom_id|>"]),
        ({"<end_of_turn>": 3, "</s>": 4}, ["<end_of_turn>"]),  # Gemma's </s> is a word
        ({"</s>": 3}, ["</s>"]),
        ({"<|end|>": 4}, ["<|end|>"]),  # whatever kind a converter gave it
        ({"<|end|>": 3, "<|return|>": 3, "<|call|>": 3}, ["<|return|>", "<|call|>"]),  # gpt-oss: the end of a message
        ({"<turn|>": 3, "<|tool_response>": 4, "</s>": 1}, ["<turn|>", "<|tool_response>"]),
        ({"<|endoftext|>": 5}, []),
    ],
)
def test_an_answer_ends_with_the_tokens_that_are_named_so(kinds: dict[str, int], expected: list[str]) -> None:
    made = GgufTokenizer(with_tokens(**kinds), "x.gguf")
    ends = [made.tokens[id] for id in made.eos_token_ids]
    assert ends == ["<|im_end|>", *expected]
    files = HFTokenizer.from_buffer(made.files()["tokenizer.json"])
    assert files.decode(made.eos_token_ids) == ""  # control tokens all


def test_all_the_ends_that_a_file_names_count() -> None:
    facts = with_tokens(end_x=1, end_y=1, end_z=1)
    ids = {f"tokenizer.ggml.{key}_token_id": len(facts["tokenizer.ggml.tokens"]) - n for key, n in zip(
        ("eos", "eot", "eom"), (3, 2, 1), strict=True)}  # fmt: skip
    made = GgufTokenizer(facts | ids, "x.gguf")
    assert [made.tokens[id] for id in made.eos_token_ids] == ["<|im_end|>", "end_x", "end_y", "end_z"]


def test_tokens_without_a_text_are_left_out() -> None:
    facts = metadata(gpt2(), "gpt2", "gpt-2")
    facts["tokenizer.ggml.tokens"] += ["", ""]
    facts["tokenizer.ggml.token_type"] += [1, 3]
    assert made_of(facts).encode("a cat").tokens


MAKERS: dict[str, Callable[[], dict[str, Any]]] = {
    "byte_level": lambda: metadata(byte_level(QWEN2, NFC), "gpt2", "qwen2"),
    "sentencepiece": sentencepiece,
    "without a prefix": lambda: sentencepiece(add_space_prefix=False),
    "gemma4": lambda: metadata(characters(), "gemma4", unknown_token_id=0),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_the_pieces_of_any_tokens_are_together_their_text_and_none_shows_half_a_character(
    tmp_path: Path, kind: str
) -> None:
    for name, content in GgufTokenizer(MAKERS[kind](), "x.gguf").files().items():
        (tmp_path / name).write_bytes(content)
    tokenizer = Tokenizer(tmp_path, 2000)
    size = max(tokenizer.added_tokens) + 5  # and some that it doesn't know
    single = [id for id in range(size) if len(tokenizer.token_bytes(id)) == 1]
    character = st.text(max_size=3).map(
        lambda t: [i for b in t.encode() for i in single if tokenizer.token_bytes(i) == bytes([b])][:12]
    )

    @given(
        parts=st.lists(
            st.integers(0, size - 1).map(lambda i: [i]) | st.sampled_from(single).map(lambda i: [i]) | character,
            max_size=30,
        )
    )
    def whole(parts: list[list[int]]) -> None:
        ids = [id for part in parts for id in part]
        stream = tokenizer.stream()
        pieces = [*(stream.push(id) for id in ids), stream.finish()]
        text = tokenizer.decode(ids)
        assert "".join(pieces) == text
        assert sum(piece.count("\ufffd") for piece in pieces) == text.count("\ufffd")

    whole()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"pre": "bloom"}, r"tokenizer\.ggml\.pre: expected 'qwen2' or .*, found 'bloom'; convert from"),
        ({"pre": None}, r"tokenizer\.ggml\.pre: expected .*, found nothing"),
        ({"pre": ["qwen2"]}, r"tokenizer\.ggml\.pre: expected .*, found \['qwen2'\]"),
        ({"model": "bert"}, r"tokenizer\.ggml\.model: expected 'gpt2' or 'llama' or 'gemma4', found 'bert'"),
        ({"bos_token_id": None, "add_bos_token": True}, r"bos_token_id: expected the id of a token .*found nothing"),
        ({"add_bos_token": 1}, r"add_bos_token: expected true or false, found 1"),
        ({"merges": ["", " ", "a"]}, r"merges: expected two tokens that make a third, found ''"),
        ({"merges": None}, r"merges: expected a list of texts, found nothing"),
        ({"eos_token_id": 0}, r"tokens: expected a token for '!', as for every byte .* found nothing"),
    ],
)  # fmt: skip
def test_broken_byte_level_vocabularies_are_one_clear_error(change: dict[str, Any], match: str) -> None:
    facts = metadata(gpt2(), "gpt2", "gpt-2")
    changed = facts | {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    with pytest.raises(CheckpointError, match=match) as caught:
        GgufTokenizer(changed, "x.gguf")
    assert str(caught.value).startswith("x.gguf: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"scores": None}, r"scores: expected a list of numbers, found nothing"),
        ({"scores": [1.0]}, r"scores: expected \d+ entries, one a token, found 1"),
        ({"scores": ["a"]}, r"scores: expected a list of numbers, found \['a'\]"),
        ({"add_space_prefix": "yes"}, r"add_space_prefix: expected true or false, found 'yes'"),
        ({"remove_extra_whitespaces": True}, r"remove_extra_whitespaces: expected false, found [Tt]rue"),
        ({"unknown_token_id": 10**6}, r"unknown_token_id: expected the id of one of \d+ tokens"),
        ({"bos_token_id": None}, r"bos_token_id: expected the id of a token .*add_bos_token says"),
    ],
)  # fmt: skip
def test_broken_vocabularies_with_scores_are_one_clear_error(change: dict[str, Any], match: str) -> None:
    facts = sentencepiece() | {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    with pytest.raises(CheckpointError, match=match):
        GgufTokenizer(facts, "x.gguf")


def with_words(*words: str) -> dict[str, Any]:
    facts = sentencepiece()
    return facts | {
        "tokenizer.ggml.tokens": facts["tokenizer.ggml.tokens"] + list(words),
        "tokenizer.ggml.token_type": facts["tokenizer.ggml.token_type"] + [1] * len(words),
        "tokenizer.ggml.scores": facts["tokenizer.ggml.scores"] + [0.0] * len(words),
    }


def test_a_vocabulary_made_to_take_hours_or_all_memory_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"tokens: expected tokens of at most 256 characters, found 'qqq"):
        GgufTokenizer(with_words("q" * 5000), "x.gguf")
    with pytest.raises(CheckpointError, match=r"tokens: expected at most \d+ ways to make tokens of others"):
        GgufTokenizer(with_words(*("q" * n for n in range(2, 257))), "x.gguf")


def test_a_score_that_is_no_number_and_a_byte_without_a_token_are_refused() -> None:
    facts = sentencepiece()
    facts["tokenizer.ggml.scores"][300] = float("nan")
    with pytest.raises(CheckpointError, match=r"scores: expected finite numbers, found nan"):
        GgufTokenizer(facts, "x.gguf")
    facts = sentencepiece()
    facts["tokenizer.ggml.token_type"][facts["tokenizer.ggml.tokens"].index("<0x0A>")] = 1
    with pytest.raises(
        CheckpointError, match=r"tokens: expected a token <0x0A> of kind 6, as for every byte, found nothing"
    ):
        GgufTokenizer(facts, "x.gguf")
