"""What speculation gains where a text repeats its prompt, and what trying costs where it doesn't.

python bench/speculation.py MODEL [--forced GGUF] [--tokens 128] [--draft MODEL] [--only code]

Each prompt is answered twice at once, without and with speculation, a step of each in turn: so a machine that others
use is as fast for both. Greedily, past an answer's end where that comes before --tokens; the texts must be the same.
With --forced they are written beforehand: what a perfect model would answer, in the tokens of that file. For random
weights of a true shape, whose own text says nothing; the time of every step is the model's. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from smallthinker.engine import Engine
from smallthinker.expert_store.store import Store
from smallthinker.generation.speculation.draft_model import DraftModel
from smallthinker.generation.speculation.proposer import Proposer, proposer_of
from smallthinker.generation.stats import SpeculationCounters
from smallthinker.options import EngineOptions
from smallthinker.text.chat_prompt import chat_prompt
from smallthinker.text.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]
CODE = (ROOT / "smallthinker/generation/turns.py").read_text()
PROSE = (ROOT / "docs/design.md").read_text()
QUESTIONS = (
    "Tell me a short story about a lighthouse keeper.",
    "Why is the sea salt?",
    "Write a poem about autumn in a big city.",
    "How do I bake a loaf of bread without yeast?",
    "What is the difference between a process and a thread?",
    "Give me five ideas for a birthday present for my father.",
    "Explain how a bicycle stays upright.",
    "Describe the water cycle to a child.",
    "Which countries border Switzerland, and what are they known for?",
    "Invent a dialogue between a cat and a mouse.",
)


def tasks() -> dict[str, tuple[str, str]]:
    """Name -> prompt, and what --forced answers."""
    edit = f"Repeat this code with `place` renamed to `seat`, and nothing else changed:\n\n{CODE[:2400]}"
    summary = f"Copy the three most important sentences of this text word for word:\n\n{PROSE[:2400]}"
    sentences = PROSE[300:1100]
    found = {"code": (edit, CODE[:2400].replace("place", "seat")), "summary": (summary, sentences)}
    paragraphs = [p for p in PROSE[3000:].split("\n\n") if len(p) > 500 and "  " not in p]
    return found | {f"question {i}": (q, paragraphs[i]) for i, q in enumerate(QUESTIONS)}


class Writer:
    """One conversation that is written greedily, or as `answer` says, step by step."""

    def __init__(self, engine: Engine, prompt: list[int], answer: list[int], proposer: Proposer | None) -> None:
        self._engine, self._prompt, self._answer, self._proposer = engine, prompt, answer, proposer
        self.conversation, reused = engine.open(prompt)
        for at in range(reused, len(prompt), engine.plan.chunk):
            logits = engine.step([(self.conversation, prompt[at : at + engine.plan.chunk])])
        self.sec, self.ids, self.counters = 0.0, [self._next(logits[0], 0)], SpeculationCounters()

    def _next(self, logits: np.ndarray, at: int) -> int:
        return self._answer[at % len(self._answer)] if self._answer else int(np.argmax(logits))

    def step(self, limit: int) -> None:
        began, engine, most = time.perf_counter(), self._engine, self._engine.most_verified - 1
        proposed: list[int] = []
        if self._proposer is not None:
            most = min(limit - len(self.ids) - 1, most)
            proposed = self._proposer.propose(self, self._prompt, self.ids, most)
        if proposed:
            tokens, right = [self.ids[-1], *proposed], 0
            for row in engine.verify(self.conversation, tokens):
                right += 1
                self.ids.append(self._next(row, len(self.ids)))
                if right == len(tokens) or self.ids[-1] != tokens[right]:
                    break
            engine.accept(self.conversation, tokens[:right])
        else:
            right = 1
            self.ids.append(self._next(engine.step([(self.conversation, self.ids[-1:])])[0], len(self.ids)))
        sec = time.perf_counter() - began
        self.sec += sec
        if self._proposer is not None:
            self.counters.add(self._proposer.computed(sec, right - 1))

    @property
    def tok_per_sec(self) -> float:
        return (len(self.ids) - 1) / self.sec


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--forced", type=Path, metavar="GGUF")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--memory")
    parser.add_argument("--draft", type=Path)
    parser.add_argument("--only", help="tasks whose names begin so")
    args = parser.parse_args()
    options = EngineOptions(memory=args.memory, context=2048, sequences=2, draft=args.draft)
    with ExitStack() as opened:
        drafts = [opened.enter_context(closing(DraftModel.load(options)))] if args.draft else []
        engine = opened.enter_context(Engine(args.model, options))
        tokenizer = engine.tokenizer
        if args.forced:
            with Store.open(args.forced) as store:
                tokenizer = Tokenizer(store.small_files, store.config.vocab_size)
        proposer = proposer_of(options, drafts)
        print(f"{engine.isa}, {engine.threads} threads, {engine.plan.slots} of {engine.plan.num_experts} in memory")
        found: dict[str, Any] = {}
        for name, (question, text) in tasks().items():
            if args.only and not name.startswith(args.only):
                continue
            prompt = chat_prompt(tokenizer, [{"role": "user", "content": question}]).ids
            answer = tokenizer.encode(text) if args.forced else []
            engine.forget()
            plain, guessing = (Writer(engine, prompt, answer, p) for p in (None, proposer))
            while len(guessing.ids) <= args.tokens:
                plain.step(args.tokens)
                guessing.step(args.tokens)
            both = min(len(plain.ids), len(guessing.ids))
            if plain.ids[:both] != guessing.ids[:both]:
                sys.exit(f"{name}: the answers differ")
            slow, fast, s = plain.tok_per_sec, guessing.tok_per_sec, guessing.counters
            print(f"{name:12} {slow:7.2f} -> {fast:7.2f} tokens/s, {fast / slow:.3f}x; "
                  f"{s.accepted} of {s.proposed} right in {s.batches} batches", flush=True)  # fmt: skip
            found[name] = {"ratio": fast / slow, "plain_tok_per_sec": slow, "tok_per_sec": fast, **asdict(s)}
            for writer in (plain, guessing):
                engine.keep(writer.conversation)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
