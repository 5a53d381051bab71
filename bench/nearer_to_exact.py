"""Who is nearer to what a GGUF file's weights say, this engine or llama.cpp?

smallthinker convert FILE.gguf EXACT --quant f16
python bench/nearer_to_exact.py FILE.gguf EXACT --llama FOLDER --text wiki.txt [--chunks 2]

Both round activations to int8, each in its own blocks; the store EXACT computes with the same weights as numbers and
rounds none. Over llama-perplexity's chunks of 512 tokens, of which the second half counts: the mean Kullback-Leibler
divergence from EXACT's next token, and how often the likeliest one is the same. Last line: JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from beside_llama import CHUNK, said

from smallthinker.benchmark.environment import machine
from smallthinker.engine import Engine
from smallthinker.errors import SmallThinkerError
from smallthinker.text.tokenizer import Tokenizer

F32 = npt.NDArray[np.float32]
FIRST = CHUNK // 2
MAGIC = b"_logits_"


def of_llama(args: argparse.Namespace) -> tuple[npt.NDArray[np.int32], F32]:
    """Tokens [chunks, CHUNK], log-probabilities [chunks * (CHUNK - 1 - FIRST), words], as llama-perplexity writes them:
    16 bits each, of a scale and a least value per row."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "logits"
        command = [str(args.llama / "llama-perplexity"), "-m", str(args.gguf), "-f", str(args.text), "-c", str(CHUNK)]
        said([*command, "--chunks", str(args.chunks), "-t", "2", "--kl-divergence-base", str(file)])
        content = np.fromfile(file, np.uint8)
    context, words, chunks = content[8:20].view(np.int32).tolist()
    if content[:8].tobytes() != MAGIC or context != CHUNK:
        sys.exit(f"{command[0]}: expected logits of {CHUNK} tokens as llama.cpp 11434 writes them, found another file")
    tokens = content[20 : 20 + 4 * CHUNK * chunks].view(np.int32).reshape(chunks, CHUNK)
    rows = content[20 + tokens.nbytes :].view(np.uint16).reshape(chunks * (CHUNK - 1 - FIRST), -1)
    scale, least = np.ascontiguousarray(rows[:, :4]).view(np.float32).T[..., None]
    return tokens, scale * rows[:, 4 : 4 + words] + least


def of_engine(path: Path, tokens: npt.NDArray[np.int32]) -> F32:
    rows = []
    with Engine(path, context=CHUNK) as engine:
        beginning = Tokenizer(engine.store.small_files, engine.config.vocab_size).beginning
        for chunk in tokens.tolist():
            chunk[: len(beginning)] = beginning  # as llama-perplexity does for each of its chunks
            engine.forget()
            engine.prefill(chunk[:FIRST])
            rows += [engine.decode(token).copy() for token in chunk[FIRST:-1]]
    logits = np.array(rows)
    logits -= logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def distance(exact: F32, other: F32) -> dict[str, float]:
    chances = np.exp(exact)
    divergence = np.where(chances > 1e-7, chances * (exact - other), 0).sum(1)  # beyond, llama-perplexity cuts off
    return {"divergence": float(divergence.mean()), "same_first": float((exact.argmax(1) == other.argmax(1)).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("exact", type=Path)
    parser.add_argument("--llama", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=2)
    args = parser.parse_args()
    tokens, theirs = of_llama(args)
    try:
        exact, ours = of_engine(args.exact, tokens), of_engine(args.gguf, tokens)
    except SmallThinkerError as e:
        sys.exit(str(e))
    found = {"smallthinker": distance(exact, ours), "llama.cpp": distance(exact, theirs)}
    for name, far in found.items():
        print(f"{name}: divergence {far['divergence']:.5f}, the same first word {100 * far['same_first']:.1f} %")
    print(json.dumps({"machine": machine(), "model": args.gguf.name, "positions": len(exact)} | found))


if __name__ == "__main__":
    main()
