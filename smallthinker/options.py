"""How a model is loaded and run: every option of `Engine` and `LLM`, of the commands and of the benchmarks' jobs.

Owns their names, defaults and checks. Knows nothing about files: what a path leads to is found out by whoever opens it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

from smallthinker.arguments import callback, choice, flag, number, path, refuse, whole
from smallthinker.cache.kv_ring import QUANTS as KV_QUANTS
from smallthinker.cache.kv_ring import KvKind
from smallthinker.errors import RequestError
from smallthinker.expert_store.device.storage_profile import StorageProfile
from smallthinker.expert_store.native_queue import Verify
from smallthinker.expert_store.progress import Progress, silent
from smallthinker.expert_store.queues import QueueKind
from smallthinker.lossy_head import DEFAULT_THRESHOLD
from smallthinker.lossy_routing import LossyRouting
from smallthinker.memory_plan import MAX_BYTES, parse_size

MAX_THREADS = 256  # of a pool of the kernels
# Caches, and answers in one step: more than a processor that decodes a few tokens at once gains from.
MAX_SEQUENCES = 64
MAX_WAITING = 64
KV_DIR_BYTES = 4 << 30
Speculation = Literal["auto", "always", "off"]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Sizes are bytes or texts such as '1GiB'. Only kv and what is called lossy change outputs.

    memory: a ceiling for the whole process; None takes what is free, less a margin.
    context: tokens of prompt and answer together; None takes the model's, at most 4096.
    kv: numbers of the KV cache; 'q8' halves its bytes and changes outputs slightly.
    threads: for arithmetic; None takes the physical cores.
    reader: how experts are read; 'auto' as a probe of the disk found best.
    storage: a slower disk to emulate: a bundled profile's name ('emmc'), a file that `smallthinker probe` wrote, or a
    StorageProfile. Reads take as long as from that one, from the page cache as well.
    verify: compare what is read with the model's checksums, where it has some: 'first', each byte as it is read for the
    first time; 'always', at every read; 'never'.
    prefetch, look_ahead: ask for a layer's experts before its attention, and read what the next layer will likely want
    in the disk's idle time; off to measure what they are worth. predictor: guess with the store's, if it has one.
    chunk, max_slots: tokens of a prompt's step and experts in memory, instead of what the plan would choose.
    sequences: answers that are written side by side, and conversations whose KV cache is kept for a next turn; each is
    planned for a whole context. max_waiting: an LLM's requests that may wait for others before QueueFullError.
    kv_dir, kv_dir_bytes: a folder where conversations that make room are saved, readable by you alone, to be continued
    without computing them again, also after the next start; and how much it may hold.
    speculation: propose tokens that may follow and verify several in one step: 'auto' while a running trial says that
    it pays, 'always' to measure it, or 'off'; for an answer that is written alone, without anything lossy.
    draft: a smaller model with the same vocabulary that guesses, too; held in memory whole, inside the same budget.
    hot_set: start with the experts that earlier runs used most, and leave word of this run's; off for a cold start.
    lossy_head, lossy_threshold: LOSSY: a published LM-head predictor (model_lm_head.pt); only logits that it scores
    above the threshold are computed.
    lossy_experts, lossy_prefer, lossy_skip: LOSSY: fewer experts of a token, those in memory rather than others, none
    instead of a missing one of low weight: see `lossy_routing.LossyRouting`.
    reserved: bytes of the budget that are left to the application.
    progress: told (bytes done, bytes in all, what) while the dense weights are read.
    """

    memory: str | float | None = None
    context: int | None = None
    kv: KvKind = "f16"
    threads: int | None = None
    reader: QueueKind = "auto"
    verify: Verify = "first"
    storage: StorageProfile | str | Path | None = None
    prefetch: bool = True
    look_ahead: bool = True
    predictor: bool = True
    chunk: int | None = None
    max_slots: int | None = None
    sequences: int = 1
    max_waiting: int = MAX_WAITING
    kv_dir: str | Path | None = None
    kv_dir_bytes: str | float = KV_DIR_BYTES
    speculation: Speculation = "auto"
    draft: str | Path | None = None
    hot_set: bool = True
    lossy_head: str | Path | None = None
    lossy_threshold: float = DEFAULT_THRESHOLD
    lossy_experts: int | None = None
    lossy_prefer: float = 0.0
    lossy_skip: float = 0.0
    reserved: int = 0
    progress: Progress = silent

    def __post_init__(self) -> None:
        """Raises RequestError, naming the option."""
        checked: dict[str, object] = {
            "sequences": whole("sequences", self.sequences, 1, MAX_SEQUENCES),
            "max_waiting": whole("max_waiting", self.max_waiting, 1),
            "reserved": whole("reserved", self.reserved, 0, MAX_BYTES),
            "kv_dir_bytes": parse_size(self.kv_dir_bytes, "kv_dir_bytes"),
            "lossy_threshold": number("lossy_threshold", self.lossy_threshold, lambda _: True, "a finite number"),
            "lossy_prefer": number("lossy_prefer", self.lossy_prefer, lambda x: x >= 0, "a number of at least 0"),
            "lossy_skip": number("lossy_skip", self.lossy_skip, lambda x: 0 <= x <= 1, "a number from 0 to 1"),
        }
        if self.memory is not None:
            checked["memory"] = parse_size(self.memory)
        for name, most in (
            ("context", None),
            ("chunk", None),
            ("max_slots", None),
            ("lossy_experts", None),
            ("threads", MAX_THREADS),
        ):
            value = getattr(self, name)
            if value is not None:
                checked[name] = whole(name, value, 1) if most is None else whole(name, value, 1, most)
        choice("kv", self.kv, KV_QUANTS)
        choice("speculation", self.speculation, get_args(Speculation))
        choice("reader", self.reader, get_args(QueueKind))
        choice("verify", self.verify, get_args(Verify))
        for name in ("prefetch", "look_ahead", "predictor", "hot_set"):
            checked[name] = flag(name, getattr(self, name))
        for name in ("lossy_head", "kv_dir", "storage", "draft"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, StorageProfile):
                path(name, value)
        callback("progress", self.progress)
        if self.lossy_head is None and self.lossy_threshold != DEFAULT_THRESHOLD:
            raise RequestError("lossy_threshold: has no meaning without lossy_head, the predictor's file")
        if self.draft is not None and (self.speculation == "off" or self.is_lossy):
            raise RequestError("draft: has no meaning with speculation off or anything lossy: nothing is guessed then")
        for name, found in checked.items():  # numpy's numbers become Python's, sizes bytes
            object.__setattr__(self, name, found)

    @property
    def lossy_routing(self) -> LossyRouting:
        return LossyRouting(self.lossy_experts, self.lossy_prefer, self.lossy_skip)

    @property
    def is_lossy(self) -> bool:
        return self.lossy_head is not None or bool(self.lossy_routing)

    def exact(self) -> EngineOptions:
        """The same without anything that changes outputs."""
        return replace(
            self,
            kv="f16",
            lossy_head=None,
            lossy_threshold=DEFAULT_THRESHOLD,
            lossy_experts=None,
            lossy_prefer=0.0,
            lossy_skip=0.0,
        )

    @classmethod
    def of(cls, options: EngineOptions | None, changes: Mapping[str, Any]) -> EngineOptions:
        """These options, None for the defaults, with some of them changed. Raises RequestError, TypeError for a name
        that is no option."""
        if options is not None and not isinstance(options, EngineOptions):
            refuse("options", "EngineOptions", options)
        return replace(options, **changes) if options is not None else cls(**changes)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; without `progress`, which stays in this process."""
        found = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "progress"}
        for name, value in found.items():
            if isinstance(value, StorageProfile):
                found[name] = value.to_dict()
            elif isinstance(value, os.PathLike):
                found[name] = os.fspath(value)
        return found

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> EngineOptions:
        """What `to_dict` made. Raises RequestError, TypeError for a name that is no option."""
        storage = found.get("storage")
        return cls(**{**found, "storage": StorageProfile.from_dict(storage) if isinstance(storage, dict) else storage})


class EngineChanges(TypedDict, total=False):
    """The fields of EngineOptions, as keyword arguments; what is left out keeps its value there."""

    memory: str | float | None
    context: int | None
    kv: KvKind
    threads: int | None
    reader: QueueKind
    verify: Verify
    storage: StorageProfile | str | Path | None
    prefetch: bool
    look_ahead: bool
    predictor: bool
    chunk: int | None
    max_slots: int | None
    sequences: int
    max_waiting: int
    kv_dir: str | Path | None
    kv_dir_bytes: str | float
    speculation: Speculation
    draft: str | Path | None
    hot_set: bool
    lossy_head: str | Path | None
    lossy_threshold: float
    lossy_experts: int | None
    lossy_prefer: float
    lossy_skip: float
    reserved: int
    progress: Progress
