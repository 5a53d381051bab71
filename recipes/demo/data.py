"""Books to token ids: trains the demo model's byte-level BPE and encodes the corpus with it.

Owns the split (the last ten books of the file are held out, before the tokenizer sees anything) and the files of the
data folder. Knows nothing about models.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zstandard
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

HELD_OUT_BOOKS = 10
VOCAB_SIZE = 4096
END_OF_TEXT = "<|endoftext|>"
# A base model knows no roles. Rendered as dialogue in a book, a message gets an answer in kind.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}\n\n"
    "{% elif message['role'] == 'user' %}\"{{ message['content'] }}\"\n\n"
    "{% else %}{{ message['content'] }}\n\n{% endif %}{% endfor %}"
)


def read_books(corpus: Path) -> Iterator[str]:
    """The text of every book in the .jsonl.zst file, in order."""
    with corpus.open("rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
        for line in lines:
            yield json.loads(line)["text"]


def train_tokenizer(books: list[str]) -> Tokenizer:
    """A byte-level BPE without merges across words, from every sixth book: more changes no merge that matters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(END_OF_TEXT, special=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(books[::6], trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, books: list[str]) -> np.ndarray:
    """All books as one uint16 array, each after an end-of-text token."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    parts = []
    for book in books:
        parts.append(np.array([end, *tokenizer.encode(book).ids], np.uint16))
    return np.concatenate(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, help="books.jsonl.zst: one JSON object a line with the key text")
    parser.add_argument("out", type=Path, help="data folder to write")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    books = list(read_books(args.corpus))
    train, held_out = books[:-HELD_OUT_BOOKS], books[-HELD_OUT_BOOKS:]
    tokenizer = train_tokenizer(train)
    tokenizer.save(str(args.out / "tokenizer.json"))
    (args.out / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": END_OF_TEXT, "chat_template": CHAT_TEMPLATE}, indent=1), encoding="utf-8"
    )
    sizes = {}
    for name, part in (("train", train), ("held_out", held_out)):
        ids = encode(tokenizer, part)
        np.save(args.out / f"{name}.npy", ids)
        sizes[name] = {"books": len(part), "bytes": sum(len(b.encode()) for b in part), "tokens": len(ids)}
    (args.out / "sizes.json").write_text(json.dumps(sizes, indent=1), encoding="utf-8")
    # the same tokens again when it is encoded, for `smallthinker eval`
    text = "".join(END_OF_TEXT + book for book in held_out)
    (args.out / "held_out.txt").write_text(text, encoding="utf-8", newline="")
    print(json.dumps(sizes))


if __name__ == "__main__":
    main()
