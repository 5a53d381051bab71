"""Tiny tokenizers of each kind that GGUF files have, trained here, and the metadata that say the same."""

from __future__ import annotations

import heapq
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPACE = "▁"
TEXTS = [
    "It's the cat's 12 mats, and WE'LL sit on 3,456,789 of them! HTTPServer getURL iPhone 'tis",
    "naïve café cafe\u0301 größer Ελληνικά ὕβρις нещо на Български हिन्दी กำลัง 日本語のテキスト 你好世界。한국어",
    "def f(x):\n    return x ** 2  # squared\n\n\tif a != b && c <= d: {'k': [1, 2]}\r\n",
    "🚀 (normal) 😶‍🌫️ ✅ 🦙🦙 $5 + ~3 = `8` || <tag/> /path/to ... ???? ----==== ²³¹¼ ١٢٣ Ⅷ",
    "        deep\n\n\n   three  two one\t\t tabs  \n \n  end   ",
]
CONTROL = ["<|start|>", "<|im_end|>"]
USER_DEFINED = ["<tool>", "    "]


def byte_level(pre_tokenizer: Any, normalizer: Any = None, *, ignore_merges: bool = False) -> Tokenizer:
    """A vocabulary of GPT-2's kind. pre_tokenizer: what cuts a text into words, with its bytes as characters."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=700, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return _with_added(tokenizer)


def gemma4() -> Tokenizer:
    """Characters, merged without a split into words, and bytes for those that are no tokens."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", SPACE)
    trained.train_from_iterator(
        TEXTS[:3] * 3, trainers.BpeTrainer(vocab_size=500, max_token_length=12, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(model["vocab"], key=model["vocab"].get)]
    vocab, merges = {word: id for id, word in enumerate(words)}, [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return _with_added(tokenizer)


def metadata(tokenizer: Tokenizer, model: str, pre: str | None = None, **more: Any) -> dict[str, Any]:
    """As llama.cpp's converter writes them, with a bos and an eos token; more: further keys of `tokenizer.ggml`."""
    vocab = tokenizer.get_vocab()
    tokens = sorted(vocab, key=lambda token: vocab[token])

    def kind(token: str) -> int:
        if token.startswith("<0x"):
            return 6
        return 2 if token == "<unk>" else 3 if token in CONTROL else 4 if token in USER_DEFINED else 1

    keys = {
        "model": model,
        "pre": pre,
        "tokens": tokens,
        "token_type": [kind(token) for token in tokens],
        "merges": [" ".join(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]],
        "bos_token_id": vocab["<|start|>"],
        "eos_token_id": vocab["<|im_end|>"],
    } | more
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items() if value is not None}


def scores(tokens: Sequence[str], merges: Sequence[str]) -> list[float]:
    """What SentencePiece gives: the earlier a token was made, the better."""
    made = {merge.replace(" ", "", 1): rank for rank, merge in reversed(list(enumerate(merges)))}
    return [-float(made.get(token, len(merges))) for token in tokens]


def sentencepiece_ids(facts: Mapping[str, Any], text: str) -> list[int]:
    """Ids of a text without added tokens, by the definition: of all two neighbours that make a token the ones with the
    best score are merged, the leftmost of equal ones, until none do; what is no token then is its bytes."""
    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    vocab = {token: i for i, token in enumerate(tokens) if kinds[i] in (1, 4)}
    byte = {token: i for i, token in enumerate(tokens) if kinds[i] == 6}
    symbols = list(text.replace(" ", SPACE))
    ends = list(range(1, len(symbols) + 1))  # of the symbol that begins here, 0 where none does
    begins = list(range(len(symbols)))  # by the place before its end
    queue: list[tuple[float, int, int, int]] = []

    def push(left: int) -> None:
        middle = ends[left]
        if middle < len(symbols) and (id := vocab.get("".join(symbols[left : ends[middle]]))) is not None:
            heapq.heappush(queue, (-facts["tokenizer.ggml.scores"][id], left, middle, ends[middle]))

    for left in range(len(symbols)):
        push(left)
    while queue:
        _, left, middle, end = heapq.heappop(queue)
        if ends[left] != middle or ends[middle] != end:
            continue
        ends[left], ends[middle], begins[end - 1] = end, 0, left
        push(left)
        if left:
            push(begins[left - 1])
    ids: list[int] = []
    at = 0
    while at < len(symbols):
        word = "".join(symbols[at : ends[at]])
        ids += [vocab[word]] if word in vocab else [byte[f"<0x{b:02X}>"] for b in word.encode()]
        at = ends[at]
    return ids


def _with_added(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens(CONTROL)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in USER_DEFINED])
    return tokenizer
