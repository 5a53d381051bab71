"""Short names of models that are published, and where: those of the shapes that `plan` and `synth` know, as far as one
repository holds the model as its makers published it. Knows nothing else; nothing here is fetched unasked."""

from __future__ import annotations

import difflib

from smallthinker.errors import DownloadError, shown

KNOWN = {
    "4b": "PowerInfer/SmallThinker-4BA0.6B-Instruct",
    "21b": "PowerInfer/SmallThinker-21BA3B-Instruct",
    "qwen3-30b-a3b": "Qwen/Qwen3-30B-A3B",
    "olmoe": "allenai/OLMoE-1B-7B-0924-Instruct",
    "gpt-oss-20b": "openai/gpt-oss-20b",
    "qwen3-0.6b": "Qwen/Qwen3-0.6B",
    "qwen3-1.7b": "Qwen/Qwen3-1.7B",
    "qwen3-4b": "Qwen/Qwen3-4B",
    "qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B-Instruct",
    "qwen2.5-1.5b": "Qwen/Qwen2.5-1.5B-Instruct",
    "llama-3.2-1b": "meta-llama/Llama-3.2-1B-Instruct",
    "llama-3.2-3b": "meta-llama/Llama-3.2-3B-Instruct",
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B-Instruct",
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "smollm2-1.7b": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "smollm3-3b": "HuggingFaceTB/SmolLM3-3B",
    "gemma-3-270m": "google/gemma-3-270m-it",
    "gemma-3-1b": "google/gemma-3-1b-it",
    "gemma-3-4b": "google/gemma-3-4b-it",
    "phi-4-mini": "microsoft/Phi-4-mini-instruct",
    "mixtral-8x7b": "mistralai/Mixtral-8x7B-Instruct-v0.1",
}


def repository_of(word: str) -> str:
    """OWNER/NAME of a short name; what has a slash is one. Raises DownloadError, which names the short ones."""
    if "/" in word:
        return word
    if word.lower() in KNOWN:
        return KNOWN[word.lower()]
    close = difflib.get_close_matches(word.lower(), KNOWN, n=1)
    hint = f"; did you mean {close[0]}?" if close else ";"
    raise DownloadError(
        f"{shown(word)}: expected OWNER/NAME of a hub, or a short name{hint} there are {', '.join(KNOWN)}"
    )
