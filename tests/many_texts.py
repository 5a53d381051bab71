"""Texts of all sorts, the same at each run: languages, code, emoji, runs of signs, bytes that are no text."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

_SCRIPTS = (
    range(0x20, 0x7F), range(0xA0, 0x250), range(0x370, 0x400), range(0x400, 0x500), range(0x590, 0x600),
    range(0x600, 0x700), range(0x900, 0x980), range(0xE00, 0xE60), range(0x1780, 0x1800), range(0x2000, 0x2070),
    range(0x2190, 0x2400), range(0x3040, 0x3100), range(0x4E00, 0x9FA5), range(0xAC00, 0xD7A4), range(0x300, 0x370),
    range(0xFF00, 0xFFEF), range(0x1F300, 0x1F700), range(0x10400, 0x10450), range(0x1D400, 0x1D800),
)  # fmt: skip
_RUNS = (
    " ",
    "  ",
    "\n",
    "\t",
    "\r\n",
    " \n",
    "=",
    "-",
    "ab",
    "()",
    "0",
    "12",
    "a",
    "é",
    "e\u0301",
    "あ",
    "🙂",
    "\u200d",
    ". ",
)
_SENTENCES = (
    "It's 12 o'clock, and WE'LL see what he'd said: 3,456.789!", "Où est-ce que l'été s'en va?", "Straße, größer, Übel",
    "Съешь же ещё этих мягких французских булок", "Ελληνικά με τόνους", "אבגדה שלום", "السلام عليكم ١٢٣", "नमस्ते दुनिया",
    "กำลังโหลดข้อมูล", "កាន់តែពិសេស", "我想在apple工作1314151天", "日本語のテキストです。", "한국어 문장입니다", "Cửa Việt",
    "İstanbul ıŞĞ",
    "🚀 (normal) 😶\u200d🌫️ ✅ 👩\u200d👩\u200d👧 🇩🇪", "iPhoneXS HTTPServer getURLFor _private __init__ camelCase",
)  # fmt: skip


def many_texts(count: int, words: Sequence[str] = ()) -> Iterator[str]:
    """words: of a vocabulary, put together as they come."""
    rng = random.Random(7)
    code = "".join(path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py")))

    def characters() -> str:
        scripts = [rng.choice(_SCRIPTS) for _ in range(rng.randint(1, 3))]
        return "".join(chr(rng.choice(rng.choice(scripts))) for _ in range(rng.randint(1, 40)))

    def runs() -> str:
        return "".join(rng.choice(_RUNS) * rng.choice((1, 1, 2, 3, 7, 17, 40)) for _ in range(rng.randint(1, 6)))

    def some_code() -> str:
        at = rng.randrange(len(code))
        return code[at : at + rng.randint(1, 250)]

    def sentences() -> str:
        return rng.choice(("", " ", "\n")).join(rng.choice(_SENTENCES) for _ in range(rng.randint(1, 4)))

    def garbage() -> str:
        raw = bytearray(rng.choice(_SENTENCES).encode())
        for _ in range(rng.randint(1, 6)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        return raw.decode("utf-8", "replace")

    def some_words() -> str:
        return rng.choice(("", " ")).join(rng.choice(words) for _ in range(rng.randint(1, 20))) if words else runs()

    makers = (characters, runs, some_code, sentences, garbage, some_words, lambda: runs() + characters() + sentences())
    for i in range(count):
        yield makers[i % len(makers)]()
