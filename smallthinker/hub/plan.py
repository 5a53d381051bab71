"""What a pull would do, and what a repository offers, as figures and for people.

Knows nothing about how either is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from smallthinker.figures import size
from smallthinker.hub.fit import Needs
from smallthinker.hub.offers import Offer
from smallthinker.hub.repository import HubFile

_BESIDE_WEIGHTS_BYTES = 64 << 20  # a store's headers and tokenizer, and what a file system keeps for itself


@dataclass(frozen=True)
class PullPlan:
    """What would be fetched and written. store: what runs in the end: the folder of a store, or the first or only GGUF
    file, which runs where it lies; called: its name, if that is in the models folder; store_bytes: what is written
    beside the download. quant: of most of its matrices. present_bytes: of the download, those that are on this machine
    already. gguf_models: what the repository has, where the first of `files` is one of them. memory_bytes: what a
    process here may have. notes: what is taken for granted, since a GGUF file doesn't say it, and where it doesn't fit
    here."""

    repo: str
    commit: str
    store: Path
    called: str | None
    quant: str
    files: tuple[HubFile, ...]
    download_bytes: int
    present_bytes: int
    store_bytes: int
    free_bytes: int
    needs: Needs
    memory_bytes: int
    gguf_models: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def needed_bytes(self) -> int:
        """Of the disk: what is still to come, and a store."""
        return self.download_bytes - self.present_bytes + self.store_bytes + _BESIDE_WEIGHTS_BYTES

    def to_dict(self) -> dict[str, Any]:
        return {
            "repo": self.repo,
            "commit": self.commit,
            "files": [{"name": file.name, "bytes": file.size} for file in self.files],
            "download_bytes": self.download_bytes,
            "present_bytes": self.present_bytes,
            "store": str(self.store),
            "name": self.called,
            "quant": self.quant,
            "store_bytes": self.store_bytes,
            "needed_bytes": self.needed_bytes,
            "free_bytes": self.free_bytes,
            "floor_bytes": self.needs.floor_bytes,
            "full_bytes": self.needs.full_bytes,
            "memory_bytes": self.memory_bytes,
            "run": self.run_command(),
            "gguf_models": list(self.gguf_models),
            "notes": list(self.notes),
        }

    def run_command(self) -> str:
        """For a shell: with all that the model can use of the memory here, or where that isn't enough, the least."""
        budget = max(min(self.needs.full_bytes, self.memory_bytes), self.needs.floor_bytes)
        model = quote(self.called or str(self.store))
        return f'smallthinker run {model} --memory {budget >> 20}MiB "Why is the sea salt?"'

    def text(self) -> str:
        present = f", {size(self.present_bytes)} of it here already" if self.present_bytes else ""
        others = ", ".join(name for name in self.gguf_models if name != self.files[0].name)
        weights = f"weights   {self.files[0].name}; --gguf chooses another: {others or 'there is none'}\n"
        notes = "".join(f"\nnote: {note}" for note in self.notes)
        stored = f"store     {self.store}, {self.quant}, {size(self.store_bytes)}"
        if self.gguf_models:
            stored = f"runs      {self.store}, where it lies, most of it {self.quant}"
        return (
            f"model     {self.repo}, commit {self.commit[:12]}\n"
            f"{weights if self.gguf_models else ''}"
            f"download  {size(self.download_bytes)} in {len(self.files)} files{present}\n"
            f"{stored}\n"
            f"memory    {memory(self.needs)}; {size(self.memory_bytes)} to be had\n"
            f"disk      {size(self.needed_bytes)} needed, {size(self.free_bytes)} free{notes}"
        )


@dataclass(frozen=True)
class Listing:
    """All that a repository offers. needs: of each offer, in order, None for a type that doesn't run; refusal: why none
    of them runs, or None."""

    repo: str
    commit: str
    family: str | None
    offers: tuple[Offer, ...]
    needs: tuple[Needs | None, ...]
    refusal: str | None

    def to_dict(self) -> dict[str, Any]:
        needs: Sequence[Needs | None] = self.needs or [None] * len(self.offers)
        return {
            "repo": self.repo,
            "commit": self.commit,
            "family": self.family,
            "refusal": self.refusal,
            "offers": [
                {
                    "name": offer.name,
                    "kind": offer.kind,
                    "quant": offer.quant or None,
                    "files": len(offer.files),
                    "bytes": offer.nbytes,
                    "floor_bytes": need and need.floor_bytes,
                    "full_bytes": need and need.full_bytes,
                }
                for offer, need in zip(self.offers, needs, strict=True)
            ],
        }

    def text(self) -> str:
        lines = [f"{self.repo}, commit {self.commit[:12]}{f', family {self.family}' if self.family else ''}"]
        width = max(len(offer.name) for offer in self.offers) if self.offers else 0
        for number, offer in enumerate(self.offers):
            files = "1 file" if len(offer.files) == 1 else f"{len(offer.files)} files"
            needs = self.needs[number] if self.needs else None
            need = f"  {memory(needs)}" if needs else f"  {'no kernel for this type' if self.needs else ''}"
            lines.append(f"  {offer.name:{width}}  {offer.quant or '-':8}  {size(offer.nbytes):>11} in {files:8}{need}")
        if self.refusal is not None:
            lines.append(f"none of it runs here: {self.refusal}")
        return "\n".join(line.rstrip() for line in lines)


def memory(needs: Needs) -> str:
    return f"{size(needs.floor_bytes)} at least, {size(needs.full_bytes)} with everything in memory"
