"""Small tokenizers of several families, with the special tokens that real ones have. Each in a folder of its own."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKUP = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
CONTROL = SPECIAL + MARKUP
SPACES = "    "  # an added token as Gemma's and Phi's: no control token but a word
_TEXT = [
    "<|im_start|>user\nWhat does the function <tool_call> do?<|im_end|>\n<|endoftext|> the cat sat on the mat",
    'and "then" it | was <|gone|>, <|im, > and < think, thinking aloud: naïve € 日本 ' * 2,
    '{"name": "search", "arguments": {"query": "the sea"}}\n\n> quoted text\n\n    indented code',
]
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.name %}[{{ message.name }}] {% endif %}"
    "{% if message.role == 'tool' %}<tool_response>\n{{ message.content | trim }}\n</tool_response>"
    "{% elif message.role == 'assistant' and '</think>' in message.content %}"
    "{{ message.content.split('</think>')[-1].lstrip('\n') }}"
    "{% else %}{{ message.content }}{% endif %}"
    "{% for call in message.tool_calls or [] %}<tool_call>\n{{ call.function | tojson }}\n</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)


def byte_level() -> Tokenizer:
    """As Qwen's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(_TEXT, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return _with_added_tokens(tokenizer)


def sentencepiece() -> Tokenizer:
    """As Llama's: byte tokens, and a space before all."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trained.train_from_iterator(_TEXT, trainers.BpeTrainer(vocab_size=200))
    model = json.loads(trained.to_str())["model"]
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(model["vocab"], key=model["vocab"].get)]
    merges = [tuple(merge) for merge in model["merges"]]
    vocab = {word: id for id, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _with_added_tokens(tokenizer)


def unigram() -> Tokenizer:
    """As T5's: spaces as Metaspace has them, and special tokens that are words of the model, too."""
    letters = [(c, -5.0) for c in sorted({c for text in _TEXT for c in text})]
    words = [("▁the", -3.0), ("think", -3.0), ("▁", -2.0), ("▁<|", -3.0), ("|>", -3.0)]
    vocab = [("<unk>", 0.0), *((text, -1.0) for text in SPECIAL), *words, *letters]
    tokenizer = Tokenizer(models.Unigram(vocab, 0, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return _with_added_tokens(tokenizer)


FAMILIES = {"byte_level": byte_level, "sentencepiece": sentencepiece, "unigram": unigram}


def write(tokenizer: Tokenizer, folder: Path, template: str = TEMPLATE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


def _with_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in [*MARKUP, SPACES]])
    return tokenizer
