"""Summarise every text in a folder, whatever its length: parts that fit the context first, then their summaries.

python examples/summarise_folder.py ./letters --model ./4b-store --memory 2GiB > summaries.md
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from smallthinker import LLM

INSTRUCTION = "Summarise this text in two sentences.\n\n"
FRAME_TOKENS = 64  # the chat template around a message, and room for where a part was cut between two tokens


def parts(llm: LLM, text: str, most_tokens: int) -> Iterator[str]:
    """The text in pieces of at most so many tokens, paragraphs kept whole where they fit."""
    piece: list[str] = []
    tokens = 0
    for paragraph in text.split("\n\n"):
        ids = llm.tokenize(paragraph + "\n\n")
        for start in range(0, len(ids), most_tokens):  # nearly always one round
            cut = ids[start : start + most_tokens]
            if piece and tokens + len(cut) > most_tokens:
                yield "".join(piece)
                piece, tokens = [], 0
            piece.append(llm.detokenize(cut))
            tokens += len(cut)
    if piece:
        yield "".join(piece)


def summarise(llm: LLM, text: str, room: int, max_tokens: int) -> str:
    """room: tokens of text that one question may hold; at least twice those of an answer, so that this ends."""
    summaries = [
        llm.chat([{"role": "user", "content": INSTRUCTION + part}], temperature=0, max_tokens=max_tokens).text.strip()
        for part in parts(llm, text, room)
    ]
    return "".join(summaries) if len(summaries) < 2 else summarise(llm, "\n\n".join(summaries), room, max_tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", help="a store (default: the demo model, which knows no facts)")
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--max-tokens", type=int, default=100, help="of each summary")
    args = parser.parse_args()
    files = sorted(path for path in args.folder.rglob("*") if path.suffix in (".txt", ".md"))
    with LLM(args.model, memory=args.memory) as llm:
        room = llm.plan.context - args.max_tokens - FRAME_TOKENS - len(llm.tokenize(INSTRUCTION))
        if room < 2 * args.max_tokens:
            parser.error(f"--max-tokens: too many for a context of {llm.plan.context} tokens")
        for number, path in enumerate(files, 1):
            print(f"{number}/{len(files)} {path}", file=sys.stderr)
            summary = summarise(llm, path.read_text("utf-8"), room, args.max_tokens)
            print(f"## {path.relative_to(args.folder)}\n\n{summary}\n")


if __name__ == "__main__":
    main()
