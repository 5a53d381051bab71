"""Does a GGUF file say the same here as in llama.cpp? Perplexity on the same chunks, and greedy answers to prompts.

python bench/beside_llama.py FILE.gguf --llama FOLDER --text wiki.txt [--chunks 40] [--prompts 20] [--tokens 64]

FOLDER holds llama.cpp's llama-perplexity and llama-completion. Chunks are llama-perplexity's: 512 tokens, of which the
second half is predicted. Greedy answers are compared token by token, by the text of so many tokens, up to the first
that differs: at a near-tie (the two likeliest logits are closer than a hundredth of the range of all) the rest of the
answer isn't counted, elsewhere it counts as different. Last line: JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from bisect import bisect_left
from pathlib import Path

import numpy as np

from smallthinker.benchmark.environment import machine
from smallthinker.calibration.tracing import run_observed
from smallthinker.engine import Engine
from smallthinker.evaluation.scoring import Floats, ScoringHead, likelihoods
from smallthinker.forward import Observers
from smallthinker.text.tokenizer import Tokenizer

CHUNK = 512
NEAR_TIE = 0.01
PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a",
    "def fibonacci(n):\n",
    "The three laws of motion are",
    "import numpy as np\n\n",
    "In 1969, the first",
    "Water boils at",
    "The quick brown fox",
    "A recipe for bread: first,",
    "SELECT name FROM",
    "The Second World War began in",
    "To be or not to be,",
    "The largest planet is",
    "class Stack:\n    def __init__(self",
    "My favourite book is",
    "for i in range(10):\n",
    "The speed of light is",
    "Dear Sir or Madam,",
    "Photosynthesis is the process",
    "The difference between a list and a tuple is",
)


def said(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as e:
        sys.exit(f"{command[0]}: {e.strerror}; expected llama.cpp's program there (--llama)")
    if done.returncode:
        sys.exit(f"{command[0]}: exit code {done.returncode}: {done.stderr[-400:]}")
    return done.stdout + done.stderr if "perplexity" in command[0] else done.stdout


def their_perplexity(args: argparse.Namespace) -> float:
    command = [str(args.llama / "llama-perplexity"), "-m", str(args.model), "-f", str(args.text), "-c", str(CHUNK)]
    found = re.search(r"Final estimate: PPL = ([\d.]+)", said([*command, "--chunks", str(args.chunks), "-t", "2"]))
    if found is None:
        sys.exit("llama-perplexity: no final estimate in what it wrote")
    return float(found[1])


def our_perplexity(engine: Engine, tokenizer: Tokenizer, text: str, chunks: int) -> float:
    ids, beginning = tokenizer.encode(text), tokenizer.beginning
    ids = beginning + ids
    chunks = min(chunks, len(ids) // CHUNK)
    sequences = [ids[at * CHUNK : (at + 1) * CHUNK] for at in range(chunks)]
    for sequence in sequences:
        sequence[: len(beginning)] = beginning
    targets = np.full((chunks, CHUNK), -1)
    targets[:, CHUNK // 2 : -1] = [sequence[CHUNK // 2 + 1 :] for sequence in sequences]
    flat, at, nats = targets.reshape(-1), 0, []
    head = ScoringHead(engine.store, engine.pool)

    def final(x: Floats) -> None:
        nonlocal at
        here = flat[at : at + len(x)]
        nats.append(likelihoods(head, x[here >= 0], here[here >= 0]))
        at += len(x)

    run_observed(engine, sequences, Observers(final=final))
    return float(np.exp(np.concatenate(nats).mean()))


def greedy(engine: Engine, tokenizer: Tokenizer, prompt: str, tokens: int) -> tuple[list[int], list[float]]:
    """An answer's ids, without an end as --ignore-eos has it, and how far ahead each was, as a share of the range of
    logits."""
    ids, gaps, ends = [], [], list(engine.config.tokens.eos)
    logits, _ = engine.prefill(tokenizer.beginning + tokenizer.encode(prompt))
    for _ in range(tokens):
        scale = logits.max() - logits.min()
        logits[ends] = -np.inf
        second, first = np.partition(logits, -2)[-2:]
        ids.append(int(logits.argmax()))
        gaps.append(float((first - second) / scale))
        logits = engine.decode(ids[-1])
    engine.forget()
    return ids, gaps


def compared(
    engine: Engine, tokenizer: Tokenizer, args: argparse.Namespace, prompt: str
) -> tuple[int, int, float | None]:
    """Positions that are equal, and that count; the gap at the first that isn't."""
    ids, gaps = greedy(engine, tokenizer, prompt, args.tokens)

    def theirs(n: int) -> str:
        command = [str(args.llama / "llama-completion"), "-m", str(args.model), "-p", prompt, "-n", str(n)]
        answer = said([*command, "--temp", "0", "-no-cnv", "--no-display-prompt", "--ignore-eos", "-t", "2"])
        return answer.removesuffix("\n\n").rstrip("\ufffd")

    def ours(n: int) -> str:
        return tokenizer.decode(ids[:n]).rstrip("\ufffd")

    whole = theirs(len(ids))
    differs = [at for at in range(len(ids)) if not whole.startswith(ours(at + 1))]
    if not differs:
        return len(ids), len(ids), None
    # Their tokens are not printed. A longer one may have begun before: " The" where " " was chosen here. So the first
    # that differs is looked for among their shorter answers.
    first = bisect_left(range(differs[0]), True, key=lambda at: theirs(at + 1) != ours(at + 1))
    return first, first if gaps[first] < NEAR_TIE else len(ids), gaps[first]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=40)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    with Engine(args.model, context=CHUNK) as engine:
        tokenizer = Tokenizer(engine.store.small_files, engine.config.vocab_size)
        found = [compared(engine, tokenizer, args, prompt) for prompt in PROMPTS[: args.prompts]]
        for prompt, (equal, counted, gap) in zip(PROMPTS, found, strict=False):
            print(f"{equal:3} of {counted:3} equal, {prompt!r}", "" if gap is None else f"gap {gap:.4f}", flush=True)
        ours = our_perplexity(engine, tokenizer, args.text.read_text(), args.chunks)
    theirs = their_perplexity(args)
    equal, counted = sum(pair[0] for pair in found), sum(pair[1] for pair in found)
    print(f"perplexity {ours:.4f} here, {theirs:.4f} in llama.cpp: {100 * (ours / theirs - 1):+.2f} %")
    print(f"greedy tokens: {equal} of {counted} equal ({100 * equal / counted:.1f} %)")
    figures = {"perplexity": ours, "llama_perplexity": theirs, "equal": equal, "counted": counted}
    print(json.dumps({"machine": machine(), "model": args.model.name, "chunks": args.chunks} | figures))


if __name__ == "__main__":
    main()
