"""A byte-level tokenizer.json for models that have no trained one: 256 byte tokens and the special tokens, no merges.

Knows nothing about weights or stores. Ids of the vocabulary that it leaves out decode to nothing: 151,000 filler
tokens would take 100 MB of memory to load.
"""

from __future__ import annotations

import json

from smallthinker.errors import ConfigError
from smallthinker.models.description import Model

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"


def byte_tokenizer_files(config: Model) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json (with a ChatML template) for a model, by file name.

    The first end-of-sequence id is `<|endoftext|>`, the second, if any, `<|im_end|>`. Bytes take the lowest ids that
    are free. Raises ConfigError when the vocabulary has no room for 256 bytes and the special tokens.
    """
    special = _special_tokens(config)
    free = (i for i in range(config.vocab_size) if i not in special.values())
    vocab = {byte_character(byte): token for byte, token in zip(range(256), free, strict=False)}
    if len(vocab) < 256:
        raise ConfigError(
            f"vocab_size: expected at least {256 + len(special)} (256 bytes and {len(special)} special tokens), "
            f"found {config.vocab_size}"
        )
    added = [
        {"id": token, "content": text, "special": True, "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": False}
        for text, token in sorted(special.items(), key=lambda item: item[1])
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab | special, "merges": []},
    }
    turn_end = TURN_END if TURN_END in special else END_OF_TEXT
    template = (
        "{% for message in messages %}"
        f"{TURN_START}{{{{ message['role'] }}}}\n{{{{ message['content'] }}}}{turn_end}\n"
        "{% endfor %}"
        f"{{% if add_generation_prompt %}}{TURN_START}assistant\n{{% endif %}}"
    )
    tokenizer_config = {"bos_token": None, "eos_token": turn_end, "chat_template": template}
    return {
        "tokenizer.json": json.dumps(tokenizer).encode("ascii"),
        "tokenizer_config.json": json.dumps(tokenizer_config, indent=1).encode("ascii"),
    }


def _special_tokens(config: Model) -> dict[str, int]:
    ends = list(dict.fromkeys(config.tokens.eos)) or [config.vocab_size - 1]
    special = dict(zip((END_OF_TEXT, TURN_END), ends, strict=False))
    # as in the published vocabulary, the start of a turn lies just below its end
    candidates = [*range(max(ends), 0, -1), *range(max(ends), config.vocab_size)]
    start = next((i for i in candidates if i not in ends), None)
    return special if start is None else special | {TURN_START: start}


def byte_character(byte: int) -> str:
    """The printable character that stands for a byte in byte-level vocabularies (as in GPT-2's): printable Latin-1
    stands for itself, the others take the characters from U+0100 on."""
    if _printable(byte):
        return chr(byte)
    return chr(256 + sum(not _printable(b) for b in range(byte)))


def _printable(byte: int) -> bool:
    return ord("!") <= byte <= ord("~") or (0xA1 <= byte <= 0xFF and byte != 0xAD)
