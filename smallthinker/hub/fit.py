"""Whether a model of a repository runs here: what it is, read from no more than headers, and the memory that it needs.

Knows nothing about choosing among several, downloading weights or writing stores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from smallthinker import host
from smallthinker.errors import CheckpointError, ConfigError
from smallthinker.expert_store.device.disk_profile import DiskProfile
from smallthinker.expert_store.format import CONFIG_FILE, Quant
from smallthinker.expert_store.sources.gguf_checkpoint import GgufModel
from smallthinker.expert_store.sources.gguf_header import read_gguf_header
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


def needs(model: Model, quant: Quant) -> Needs:
    """Of a store of this model. The tokenizer isn't here yet: its memory is assumed by the size of the vocabulary."""
    dense, record = weight_bytes(model, quant)
    tokenizer = model.vocab_size * TOKENIZER_BYTES_PER_WORD
    planned = PlannedModel(model.family, model, quant, dense, record, record, tokenizer, False)
    usual = DiskProfile()
    io_bytes = usual.depth * usual.chunk_bytes
    process = Process(choose_context(model, None), "f16", io_bytes, host.resident_bytes())
    return Needs(floor_bytes(planned, process), full_bytes(planned, process))


def read_offer(hub: Hub, offer: Offer) -> tuple[Model, tuple[str, ...]]:
    """What an offer's model is, and what had to be taken for granted, since a GGUF file doesn't say it.

    Raises ConfigError (not a model that this engine runs, by what isn't supported), CheckpointError, DownloadError.
    """
    if offer.kind == "gguf":
        described = gguf_on_hub(hub, offer.files)
        model, notes, where = described.config, described.notes, f"{hub.repo}: {offer.name}"
    else:
        model, notes, where = _config(hub), (), f"{hub.repo}: {CONFIG_FILE}"
    try:
        check_supported(model)
    except ConfigError as e:
        raise ConfigError(f"{where}: {e}") from None
    return model, notes


def gguf_on_hub(hub: Hub, parts: Sequence[HubFile]) -> GgufModel:
    """The model that the headers describe, the tensors checked against it; fetches no more than headers.

    Raises CheckpointError, ConfigError, DownloadError.
    """
    headers = []
    for file in parts:
        with hub.opened(file) as stream:
            headers.append(read_gguf_header(stream, f"{hub.repo}: {file.name}", file.size))
    return GgufModel(headers)


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
