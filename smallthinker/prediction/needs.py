"""What a model needs of memory, from its config.json alone: the engine's own plan, before there is a store.

Owns finding the model that a name or a path means, and the three budgets worth knowing. The split of a budget is
`memory_plan`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from smallthinker import host
from smallthinker.cache.kv_ring import KvKind
from smallthinker.demo import refuse_missing_demo
from smallthinker.errors import ConfigError, MemoryBudgetError, RequestError
from smallthinker.expert_store.format import (
    CONFIG_FILE,
    EXPERTS_FILE,
    TOKENIZER_FILE,
    Formats,
    Quant,
    dense_table,
    record_bytes,
)
from smallthinker.expert_store.own_formats import DEFAULT_QUANT, formats_of
from smallthinker.expert_store.store import Store, is_gguf
from smallthinker.files import is_there
from smallthinker.memory_plan import MIB, MemoryPlan, plan_process
from smallthinker.models.description import Model
from smallthinker.models.published import PUBLISHED, published_shape
from smallthinker.models.registry import parse_model, read_model
from smallthinker.text.tokenizer import Tokenizer

# Memory of a loaded tokenizer for each word where there is none to load: Qwen's, with 151,669, takes 52 MiB.
TOKENIZER_BYTES_PER_WORD = 370
_MOST_BYTES = 1 << 50


@dataclass(frozen=True)
class PlannedModel:
    """What of a model decides its memory and its reads. `folder`: of a store or a checkpoint, or the GGUF file itself;
    None where there is only a configuration. record_bytes: of one expert in memory, stored_bytes: in the file, on
    average."""

    name: str
    config: Model
    formats: Formats
    dense_bytes: int
    record_bytes: int
    stored_bytes: int
    tokenizer_bytes: int
    tokenizer_is_measured: bool
    folder: Path | None = None
    is_store: bool = False

    @property
    def quant(self) -> Quant:
        """Of most matrices."""
        return self.formats.quant

    @property
    def experts_bytes(self) -> int:
        """Of all records in memory."""
        return self.config.num_records * self.record_bytes

    def with_quant(self, quant: str) -> PlannedModel:
        """The same model converted to another format of weights."""
        dense, record = weight_bytes(self.config, quant)
        return replace(
            self, formats=formats_of(self.config, quant), dense_bytes=dense, record_bytes=record, stored_bytes=record
        )


@dataclass(frozen=True)
class Process:
    """What the engine's process is given. io_bytes: of reads in flight; resident_bytes: what it holds before it knows
    of a model."""

    context: int
    kv: KvKind
    io_bytes: int
    resident_bytes: int
    sequences: int = 1


def weight_bytes(config: Model, quant: str) -> tuple[int, int]:
    """What a store's dense weights take in memory, and one expert. Raises ConfigError where they can't have `quant`."""
    formats = formats_of(config, quant)
    formats.check(config)
    return sum(spec.nbytes for spec in dense_table(config, formats)), record_bytes(config, formats)


def find_model(name: str, quant: str | None = None) -> PlannedModel:
    """A published shape, a config.json, a checkpoint's folder, a store or a GGUF file. Raises ConfigError,
    StoreFormatError, CheckpointError, StoreReadError, TokenizerError, RequestError."""
    path = Path(name)
    shape = published_shape(name)
    if shape is not None and path.exists():
        raise ConfigError(
            f"{name}: this is a shape, and something of that name lies here, too; write ./{name} for what lies here, "
            f"{name.swapcase()} for the shape"
        )
    if shape is not None:
        return _model(name.lower(), parse_model(shape), quant or DEFAULT_QUANT, None)
    if is_gguf(path):  # one that isn't there, too: the error is about a file
        return _gguf_model(path, quant)
    if not is_there(path):
        refuse_missing_demo(path)
        shapes = "" if path.name != name else f"{', '.join(PUBLISHED)}, "  # a path can't be meant for one
        raise ConfigError(
            f"{name}: expected {shapes}a config.json, a .gguf file, or the folder of a checkpoint or a store, found "
            "nothing of that name"
        )
    if not path.is_dir():
        return _model(str(path), read_model(path), quant or DEFAULT_QUANT, None)
    if not (path / EXPERTS_FILE).exists():
        return _model(str(path), read_model(path / CONFIG_FILE), quant or DEFAULT_QUANT, path)
    with Store.open(path) as store:
        if quant not in (None, store.quant) and store.formats != formats_of(store.config, quant):
            raise RequestError(f"quant: this store is {store.quant}, found {quant}; plan its checkpoint instead")
        model = replace(_model(str(path), store.config, store.quant, path), formats=store.formats)
        stored = store.on_disk_bytes // store.num_experts
        dense, record = store.dense_bytes, store.record_bytes  # where formats differ, no one quantisation tells
        return replace(model, dense_bytes=dense, record_bytes=record, stored_bytes=stored, is_store=True)


def _gguf_model(path: Path, quant: str | None) -> PlannedModel:
    """Of a file that is run where it lies."""
    host.trim_heap()
    before = host.resident_bytes()  # as Engine: the file's words stay in memory from here on
    with Store.open(path) as store:
        if quant not in (None, store.quant):
            raise RequestError(f"quant: most of this file is {store.quant}, found {quant}; it runs as it lies")
        kept = Tokenizer(store.small_files, store.config.vocab_size, store)
        tokenizer, dense, record = host.resident_bytes() - before, store.dense_bytes, store.record_bytes
        del kept
        return PlannedModel(
            str(path), store.config, store.formats, dense, record, record, tokenizer, True, folder=path, is_store=True
        )


def _model(name: str, config: Model, quant: str, folder: Path | None) -> PlannedModel:
    dense, record = weight_bytes(config, quant)
    has_tokenizer = folder is not None and (folder / TOKENIZER_FILE).is_file()
    tokenizer = config.vocab_size * TOKENIZER_BYTES_PER_WORD
    if folder is not None and has_tokenizer:
        before = host.resident_bytes()
        kept = Tokenizer(folder, config.vocab_size)
        tokenizer = host.resident_bytes() - before
        del kept
    return PlannedModel(
        name, config, formats_of(config, quant), dense, record, record, tokenizer, has_tokenizer, folder
    )


def memory_plan(model: PlannedModel, process: Process, budget_bytes: int) -> MemoryPlan:
    """What Engine would plan. Raises MemoryBudgetError."""
    return plan_process(
        model.config,
        budget_bytes=budget_bytes,
        context=process.context,
        kv=process.kv,
        dense_bytes=model.dense_bytes,
        record_bytes=model.record_bytes,
        io_bytes=process.io_bytes,
        resident_bytes=process.resident_bytes,
        tokenizer_bytes=model.tokenizer_bytes,
        sequences=process.sequences,
    )


def floor_bytes(model: PlannedModel, process: Process) -> int:
    """The least budget, in whole MiB, with which the model runs at all, as every refusal names it."""
    try:
        memory_plan(model, process, 0)
    except MemoryBudgetError as e:
        return e.floor_bytes
    raise AssertionError("a budget of nothing is below every floor")


def full_bytes(model: PlannedModel, process: Process) -> int:
    """The least budget, in whole MiB, with which all experts stay in memory beside a full context."""
    least = _least(lambda budget: memory_plan(model, process, budget).slots == model.config.num_records)
    return max(least, floor_bytes(model, process))


def _least(is_enough: Callable[[int], bool]) -> int:
    """By bisection; a budget below the floor is not enough."""

    def enough(mib: int) -> bool:
        try:
            return is_enough(mib * MIB)
        except MemoryBudgetError:
            return False

    low, high = 0, 1
    while not enough(high):
        low, high = high, 2 * high
        if high * MIB > _MOST_BYTES:
            raise MemoryBudgetError(f"memory: this model needs more than {_MOST_BYTES >> 40} TiB")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high * MIB
