"""A few layers of a model's true shapes with random weights, in memory: what `kernel_bench` runs.

Owns how large the piece is and its weights. The layers are those that the engine runs (`ForwardPass`), the reads
behind its expert cache are only waited for: every slot holds a random record from the start.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from smallthinker import _kernels, host
from smallthinker.expert_store.format import (
    TILE_ROWS,
    Formats,
    Layout,
    Quant,
    TensorSpec,
    dense_table,
    lookup_table,
    record_bytes,
    record_layouts,
)
from smallthinker.expert_store.read_queue import FinishedRead, ReadCounters
from smallthinker.host import pages
from smallthinker.models.description import Head, Model, SpecialTokens
from smallthinker.models.tensors import EMBEDDING, head_role

# Weights that are gone through before any is used again: more than most last-level caches hold, as in a whole model.
_SLOTS_BYTES = 320 << 20
_HEAD_BYTES = 224 << 20
_MEMORY_SHARE = 0.5  # of what is free, at most
_MOST_LAYERS = 8
_AS_LONG = 0x33  # again and again, kernels take as long over it as over weights: as f16 it is 0.2


class RandomModel:
    """`config` has fewer layers and, where the head is large, fewer words than the model: `head_share` of them.
    experts_of_all, used_of_all: of each layer of the whole model.

    slots: uint8 [all experts of these layers, record_bytes], filled. It has what `Arithmetic` asks of a store.
    """

    def __init__(self, config: Model, formats: Formats, available_bytes: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        head = formats.of(head_role(config), None)
        self.formats = formats = replace(formats, others={**formats.others, EMBEDDING: head})
        nbytes = record_bytes(config, formats)
        share = available_bytes * _MEMORY_SHARE
        row_bytes = _kernels.packed_bytes(head, "tiles", TILE_ROWS, config.hidden_size) // TILE_ROWS
        words = int(min(config.vocab_size, max(min(_HEAD_BYTES, share / 3) // row_bytes, 64)))
        layer_bytes = config.experts_per_layer * nbytes
        layers = int(min(_MOST_LAYERS, config.num_layers, max(min(_SLOTS_BYTES, share / 3) // layer_bytes, 1)))
        self.head_share = words / config.vocab_size
        self.experts_of_all, self.used_of_all = config.experts_of_layers, config.used_of_layers
        self.config = replace(
            config,
            layers=config.layers[:layers],
            vocab_size=words,
            head=Head(tied=True),  # a second matrix of which one row is read would only take memory
            tokens=SpecialTokens(None, ()),
        )
        self._dense = _dense(list(dense_table(self.config, formats)), rng)
        of_one_tile = replace(self.config, vocab_size=TILE_ROWS)
        self._table_rows = _dense(list(lookup_table(of_one_tile, formats)), rng)
        most = max(config.experts_per_token, int(share / 2 // nbytes))
        count = min(self.config.num_records, most)
        self.slots = _filled(count * nbytes, random_record(config, formats, rng)).reshape(count, nbytes)
        own, whole = (_token_bytes(model, formats, nbytes) for model in (self.config, config))
        cache = host.last_level_cache_bytes()
        beside = int(min(whole - own, cache, share / 3)) if own < cache < whole else 0
        self._beside = _filled(beside, np.zeros(1 << 20, np.uint8)) if beside else None

    def spoil_cache(self, pool: _kernels.ThreadPool) -> None:
        """Where the processor keeps the weights of this piece from token to token, and not those of the whole model:
        read as much as the rest of it has, between two tokens."""
        if self._beside is not None:
            _kernels.read_memory(pool, self._beside)

    def dense_names(self) -> list[str]:
        return list(self._dense)

    def dense(self, name: str) -> npt.NDArray[Any]:
        return self._dense[name]

    def table_rows(self, name: str, group: int) -> npt.NDArray[np.uint8]:
        """The same of every group."""
        return self._table_rows[name]


def _token_bytes(model: Model, formats: Formats, record_bytes: int) -> int:
    """Weights that a token goes through."""
    return sum(model.used_of_layers) * record_bytes + sum(spec.nbytes for spec in dense_table(model, formats))


def random_record(config: Model, formats: Formats, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """One expert with normally distributed weights, uint8 [record_bytes]: half of its neurons are live. Where layers
    lay theirs out differently, one that each can read."""
    layouts = {layout for layout in record_layouts(config, formats) if layout is not None}
    if len(layouts) > 1:
        return np.full(record_bytes(config, formats), _AS_LONG, np.uint8)
    (layout,) = layouts
    record = np.zeros(layout.record_bytes, np.uint8)
    for part in layout.sections:
        weights = rng.standard_normal((part.rows, part.cols), dtype=np.float32) * np.float32(config.hidden_size**-0.5)
        record[part.offset : part.offset + part.nbytes] = _packed(part.quant, part.layout, weights)
    return record


def _dense(specs: list[TensorSpec], rng: np.random.Generator) -> dict[str, npt.NDArray[Any]]:
    """By name, in memory of one piece, as a store's are: in pages as large."""
    memory = np.frombuffer(pages.touched_buffer(max(sum(spec.nbytes for spec in specs), 1)), np.uint8)
    found: dict[str, npt.NDArray[Any]] = {}
    at = 0
    for spec in specs:
        view, at = memory[at : at + spec.content_bytes], at + spec.nbytes
        if spec.quant is None:
            found[spec.name] = view.view(np.float32)
            found[spec.name][:] = 1
            continue
        rows, cols = spec.shape
        weights = rng.standard_normal((min(rows, 1024), cols), dtype=np.float32) * np.float32(cols**-0.5)
        _fill(view, _packed(spec.quant, "tiles", weights))
        found[spec.name] = view
    return found


def _packed(quant: Quant, layout: Layout, weights: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    if _kernels.can_pack(quant):
        return _kernels.pack(quant, layout, weights)
    return np.full(_kernels.packed_bytes(quant, layout, *weights.shape), _AS_LONG, np.uint8)


def _filled(nbytes: int, pattern: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Memory of its own with the pattern again and again."""
    memory = np.frombuffer(pages.touched_buffer(nbytes), np.uint8)[:nbytes]
    _fill(memory, pattern)
    return memory


def _fill(memory: npt.NDArray[np.uint8], pattern: npt.NDArray[np.uint8]) -> None:
    for at in range(0, len(memory), len(pattern)):
        memory[at : at + len(pattern)] = pattern[: len(memory) - at]


class WaitingQueue:
    """A ReadQueue that reads nothing: a record has landed so many seconds after it was asked for."""

    name = "waiting"

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._due: dict[int, float] = {}

    def submit(self, record: int, slot: int, speculative: bool = False) -> None:
        after = max([time.perf_counter(), *self._due.values()])  # one after the other, as from a disk
        self._due[record] = after + self._seconds

    def promote(self, record: int) -> None:
        pass

    def cancel(self, record: int) -> bool:
        return self._due.pop(record, None) is not None

    def poll(self) -> list[FinishedRead]:
        now = time.perf_counter()
        landed = [record for record, due in self._due.items() if due <= now]
        for record in landed:
            del self._due[record]
        return [FinishedRead(record, None) for record in landed]

    def wait(self) -> list[FinishedRead]:
        while not (landed := self.poll()):
            time.sleep(max(min(self._due.values()) - time.perf_counter(), 0.0))
        return landed

    def drain(self) -> None:
        self._due.clear()

    def counters(self) -> ReadCounters:
        return ReadCounters()

    def close(self) -> None:
        self.drain()
