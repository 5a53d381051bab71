"""Windows over a text: each token is scored once, from enough of what precedes it, and its bytes are counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_config

from smallthinker.errors import RequestError
from smallthinker.evaluation.windows import Windows, text_windows
from smallthinker.expert_store.synthetic.byte_tokenizer import byte_tokenizer_files
from smallthinker.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A token for each byte, so that tokens count bytes."""
    folder, config = tmp_path_factory.mktemp("tokenizer"), tiny_config()
    for name, content in byte_tokenizer_files(config).items():
        (folder / name).write_bytes(content)
    return Tokenizer(folder, config.vocab_size)


def scored(windows: Windows) -> list[tuple[list[int], int]]:
    """Each scored token with all that precedes it in its window."""
    found, at = [], 0
    for sequence in windows.sequences:
        for length in range(1, len(sequence) + 1):
            target = int(windows.targets[at])
            at += 1
            if target >= 0:
                found.append((sequence[:length], target))
    assert at == len(windows.targets)
    return found


@given(text=st.text(min_size=2, max_size=60), context=st.integers(1, 40), data=st.data())
def test_each_token_is_scored_once_from_what_precedes_it(
    bytewise: Tokenizer, text: str, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context))
    tokens = data.draw(st.none() | st.integers(2, 80))
    ids = bytewise.encode(text)
    try:
        windows = text_windows(bytewise, text, context, stride, tokens)
    except RequestError:  # a single character has no whole one to predict
        assert len(text.encode()[: tokens or None].decode(errors="ignore")) < 2
        return
    found = scored(windows)
    first = len(text[0].encode())  # the rest of a character, of which the first token is a part, isn't scored
    for i, (before, target) in enumerate(found, start=first):
        assert target == ids[i]
        assert before == ids[i - len(before) : i]
        assert len(before) >= min(i, context - stride + 1)
        assert len(before) <= context
    assert windows.text_bytes == len(found)  # a byte is a token
    assert first + len(found) == len(text.encode()[: tokens or None].decode(errors="ignore").encode())


def test_known_windows(bytewise: Tokenizer) -> None:
    windows = text_windows(bytewise, "abcdefghij", 4, 2, None)
    a = bytewise.encode("abcdefghij")
    assert windows.sequences == [a[0:4], a[2:6], a[4:8], a[5:9]]
    assert windows.targets.tolist() == [*a[1:5], -1, -1, *a[5:7], -1, -1, *a[7:9], -1, -1, -1, a[9]]
    assert (windows.context, windows.stride, windows.text_bytes) == (4, 2, 9)


def test_a_cut_inside_a_character_scores_only_whole_ones(bytewise: Tokenizer) -> None:
    text = "ä€x"  # 2, 3 and 1 bytes
    assert text_windows(bytewise, text, 64, None, None).text_bytes == 4  # "€x": the first token is half of ä
    assert text_windows(bytewise, text, 64, None, 5).scored.tolist() == bytewise.encode("€")
    with pytest.raises(RequestError, match="at least 2 tokens"):
        text_windows(bytewise, text, 64, None, 4)


def test_a_special_tokens_name_in_the_text_is_text(bytewise: Tokenizer) -> None:
    windows = text_windows(bytewise, "a<|endoftext|>b", 8, None, None)
    assert windows.scored.tolist() == bytewise.encode("<|endoftext|>b")
    assert windows.text_bytes == len(windows.scored)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "stride: expected 1 to 8"),
        ({"stride": 9}, "stride: expected 1 to 8"),
        ({"tokens": 1}, "tokens: expected at least 2"),
    ],
)
def test_what_does_not_fit_is_named(bytewise: Tokenizer, options: dict[str, int], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        text_windows(bytewise, "some text", **{"context": 8, "stride": None, "tokens": None} | options)


@pytest.mark.parametrize("text", ["", "a", "€"])
def test_a_text_without_anything_to_predict_is_an_error(bytewise: Tokenizer, text: str) -> None:
    with pytest.raises(RequestError, match="longer one"):
        text_windows(bytewise, text, 8, None, None)
