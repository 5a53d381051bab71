"""What speculation gains where a text repeats its prompt, and what trying costs where it doesn't.

python bench/speculation.py MODEL [--forced GGUF] [--tokens 128] [--pairs 3] [--draft MODEL] [--only code]

Each prompt is answered without and with speculation in turns, by one engine, from an empty conversation, greedily; the
answers must be the same. With --forced they are written beforehand: what a perfect model would answer to the prompts,
in the tokens of that file. For random weights of a true shape, whose own text says nothing; the time of every step is
the model's. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from smallthinker.engine import Engine
from smallthinker.expert_store.store import Store
from smallthinker.generation.answer import Completion, GenerationParams
from smallthinker.generation.scheduler import Scheduler
from smallthinker.generation.speculation.draft_model import DraftModel
from smallthinker.generation.speculation.proposer import proposer_of
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


def forcing(ids: Sequence[int], logits: np.ndarray, answer: Sequence[int]) -> None:
    logits[:] = -np.inf
    logits[answer[len(ids) % len(answer)]] = 0


def ask(scheduler: Scheduler, engine: Engine, prompt: list[int], tokens: int, answer: list[int]) -> Completion:
    engine.forget()
    params = GenerationParams(temperature=0, max_tokens=min(tokens, len(answer) or tokens), ignore_eos=bool(answer))
    processor = (lambda ids, logits: forcing(ids, logits, answer)) if answer else None
    return scheduler.submit(prompt, params, logits_processor=processor).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--forced", type=Path, metavar="GGUF")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--memory")
    parser.add_argument("--draft", type=Path)
    parser.add_argument("--only", help="tasks whose names begin so")
    args = parser.parse_args()
    options = EngineOptions(memory=args.memory, context=2048, draft=args.draft)
    with ExitStack() as opened:
        drafts = [opened.enter_context(closing(DraftModel.load(options)))] if args.draft else []
        engine = opened.enter_context(Engine(args.model, options))
        tokenizer = engine.tokenizer
        if args.forced:
            with Store.open(args.forced) as store:
                tokenizer = Tokenizer(store.small_files, store.config.vocab_size)
        plain = Scheduler(engine, proposer=None)
        plain._proposer = None
        guessing = Scheduler(engine, proposer=proposer_of(options, drafts))
        print(f"{engine.isa}, {engine.threads} threads, {engine.plan.slots} of {engine.plan.num_experts} in memory")
        ask(plain, engine, tokenizer.encode("Once upon a time"), 16, [])
        found: dict[str, Any] = {}
        for name, (question, text) in tasks().items():
            if args.only and not name.startswith(args.only):
                continue
            prompt = chat_prompt(tokenizer, [{"role": "user", "content": question}]).ids
            answer = tokenizer.encode(text) if args.forced else []
            ratios, speeds, last = [], [], None
            for pair in range(args.pairs):
                order = (plain, guessing) if pair % 2 == 0 else (guessing, plain)
                answers = {id(s): ask(s, engine, prompt, args.tokens, answer) for s in order}
                without, last = answers[id(plain)], answers[id(guessing)]
                if last.token_ids != without.token_ids:
                    sys.exit(f"{name}: the answers differ")
                speeds.append((without.stats.decode_tok_per_sec, last.stats.decode_tok_per_sec))
                ratios.append(speeds[-1][1] / speeds[-1][0])
            assert last is not None
            slow, fast = (statistics.median(s) for s in zip(*speeds, strict=True))
            s = last.stats.speculation
            by_account = 1 + s.saved_sec / last.stats.decode_sec if last.stats.decode_sec else 1.0
            print(f"{name:12} {slow:7.2f} -> {fast:7.2f} tokens/s, {statistics.median(ratios):.2f}x "
                  f"({min(ratios):.2f} to {max(ratios):.2f}), by its own account {by_account:.2f}x; "
                  f"{last.stats.new_tokens} tokens, {s.accepted} of {s.proposed} right in {s.batches} batches",
                  flush=True)  # fmt: skip
            found[name] = {"ratio": statistics.median(ratios), "ratios": ratios, "plain_tok_per_sec": slow,
                           "tok_per_sec": fast, "tokens": last.stats.new_tokens, "accepted": s.accepted,
                           "proposed": s.proposed, "by_account": by_account, "batches": s.batches}  # fmt: skip
        plain.close()
        guessing.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
