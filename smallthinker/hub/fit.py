"""Whether a model of a repository runs here: what it is, read from no more than headers, and the memory that it needs.

Knows nothing about choosing among several, downloading weights or writing stores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smallthinker import host
from smallthinker.errors import CheckpointError, ConfigError
from smallthinker.expert_store.device.disk_profile import DiskProfile
from smallthinker.expert_store.format import CONFIG_FILE, Formats, dense_table
from smallthinker.expert_store.native_queue import STAGE_THREADS
from smallthinker.expert_store.own_formats import DEFAULT_QUANT, formats_in, formats_of
from smallthinker.expert_store.queues import reading_bytes
from smallthinker.expert_store.sources.gguf_checkpoint import IN_PLACE_REMEDY, GgufModel
from smallthinker.expert_store.sources.gguf_header import read_gguf_header
from smallthinker.expert_store.sources.gguf_records import GgufRecords, in_one_piece
from smallthinker.files import parse_json
from smallthinker.hub.offers import Offer
from smallthinker.hub.repository import Hub, HubFile
from smallthinker.memory_plan import choose_context, default_budget
from smallthinker.models.description import Model
from smallthinker.models.registry import parse_model
from smallthinker.models.supported import check_supported
from smallthinker.prediction.needs import (
    TOKENIZER_BYTES_PER_WORD,
    PlannedModel,
    Process,
    floor_bytes,
    full_bytes,
    weight_bytes,
)

ELSEWHERE = "choose the repository with the original weights or a GGUF file of them"
_MAX_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True)
class Needs:
    """Memory of a whole process with the default context: the least that runs, and what keeps everything in memory."""

    floor_bytes: int
    full_bytes: int


def free_memory_bytes() -> int:
    """The budget that a process here would take of itself."""
    return default_budget(host.held_bytes(), host.available_memory_bytes(), host.memory_limit_bytes())


@dataclass(frozen=True)
class Described:
    """What an offer is, from its headers. formats: of a GGUF file's matrices as they lie, None of safetensors, which
    become a store. notes: what had to be taken for granted, since a GGUF file doesn't say it."""

    model: Model
    formats: Formats | None
    needs: Needs
    notes: tuple[str, ...]


def read_offer(hub: Hub, offer: Offer, stored: str) -> Described:
    """stored: the format that safetensors would be converted to; a GGUF file runs where it lies.

    Raises ConfigError (not a model that this engine runs, by what isn't supported), CheckpointError (of this file:
    broken, or of a type that doesn't run where it lies), DownloadError.
    """
    if offer.kind == "gguf":
        described, where = gguf_on_hub(hub, offer.files), f"{hub.repo}: {offer.name}"
        model, notes = described.config, described.notes
    else:
        model, notes, where = _config(hub), (), f"{hub.repo}: {CONFIG_FILE}"
    try:
        check_supported(model)
    except ConfigError as e:
        raise ConfigError(f"{where}: {e}") from None
    if offer.kind != "gguf":
        return Described(model, None, store_needs(model, stored), notes)
    try:
        formats = formats_in(described)
        records = GgufRecords(described, formats, [(Path(file.name), file.size) for file in offer.files])
    except ConfigError as e:
        raise CheckpointError(str(e).replace(IN_PLACE_REMEDY, "choose another file of the model")) from None
    dense = sum(spec.nbytes for spec in dense_table(model, formats))
    usual = DiskProfile()
    io_bytes = reading_bytes(records(usual.chunk_bytes), usual)
    return Described(model, formats, _needs(model, formats, dense, records.record_bytes, io_bytes), notes)


def store_needs(model: Model, quant: str) -> Needs:
    """Of a store of this model."""
    dense, record = weight_bytes(model, quant)
    usual = DiskProfile()
    return _needs(model, formats_of(model, quant), dense, record, usual.depth * usual.chunk_bytes)


def gguf_needs(model: Model, nbytes: int) -> Needs:
    """About what a GGUF file of so many bytes takes whose header wasn't read: as if all of its matrices had as many
    bits."""
    dense, record = weight_bytes(model, DEFAULT_QUANT)
    ratio = nbytes / (dense + model.num_records * record)
    usual = DiskProfile()
    io_bytes = (usual.depth + STAGE_THREADS) * usual.chunk_bytes
    return _needs(model, formats_of(model, DEFAULT_QUANT), int(dense * ratio), int(record * ratio), io_bytes)


def _needs(model: Model, formats: Formats, dense_bytes: int, record_bytes: int, io_bytes: int) -> Needs:
    """The tokenizer isn't here yet: its memory is assumed by the size of the vocabulary."""
    tokenizer = model.vocab_size * TOKENIZER_BYTES_PER_WORD
    planned = PlannedModel(model.family, model, formats, dense_bytes, record_bytes, record_bytes, tokenizer, False)
    process = Process(choose_context(model, None), "f16", io_bytes, host.resident_bytes())
    return Needs(floor_bytes(planned, process), full_bytes(planned, process))


def gguf_on_hub(hub: Hub, parts: Sequence[HubFile]) -> GgufModel:
    """The model that the headers describe, the tensors checked against it; fetches no more than headers.

    Raises CheckpointError, ConfigError, DownloadError.
    """
    headers = []
    for file in parts:
        with hub.opened(file) as stream:
            headers.append(read_gguf_header(stream, f"{hub.repo}: {file.name}", file.size))
    return GgufModel(headers, reshaped=in_one_piece)


def _config(hub: Hub) -> Model:
    if CONFIG_FILE not in hub.files:
        raise CheckpointError(f"{hub.repo}: has no {CONFIG_FILE}: not a model; {ELSEWHERE}")
    try:
        raw = parse_json(hub.read(hub.files[CONFIG_FILE], _MAX_CONFIG_BYTES))
    except ValueError as e:
        raise ConfigError(f"{hub.repo}: {CONFIG_FILE}: not valid JSON: {e}") from None
    try:
        return parse_model(raw)
    except ConfigError as e:
        raise ConfigError(f"{hub.repo}: not a model that this engine runs: {CONFIG_FILE}: {e}") from None
