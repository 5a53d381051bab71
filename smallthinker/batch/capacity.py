"""How many rows at once, and how long a context each of them needs: what the job's rows and the memory allow.

Every row of a step shares what is read of weights, so more are always worth more, as long as the room for experts that
their KV caches leave still streams a layer while another is computed.
"""

from __future__ import annotations

from pathlib import Path

from smallthinker import host
from smallthinker.errors import MemoryBudgetError
from smallthinker.expert_store.queues import queue_bytes
from smallthinker.expert_store.store import Store
from smallthinker.memory_plan import default_budget, parse_size
from smallthinker.options import MAX_SEQUENCES, EngineOptions
from smallthinker.prediction.needs import Process, find_model, memory_plan

_CONTEXT_STEP = 32  # tokens
_STREAMED_LAYERS = 2


def context_for(tokens: int, most: int) -> int:
    """tokens: of the longest row's prompt and answer. most: what the model takes."""
    return min(-(-max(tokens, 1) // _CONTEXT_STEP) * _CONTEXT_STEP, most)


def rows_at_once(path: Path, options: EngineOptions, rows: int, resident_bytes: int) -> int:
    """options: with the context and what is reserved. resident_bytes: what the process holds before it knows of the
    model. 1 where the memory isn't enough for any: loading the model then says what is. Raises what opening a store
    does."""
    from smallthinker.expert_store.device.probe import profile_of

    model = find_model(str(path))
    with Store.open(path) as store:
        io_bytes = queue_bytes(store, profile_of(store))
    limit = host.memory_limit_bytes()
    budget = default_budget(host.held_bytes(), host.available_memory_bytes(), limit)
    if options.memory is not None:
        budget = min(parse_size(options.memory), limit or parse_size(options.memory))
    config, context = model.config, options.context or model.config.context
    streamed = min(_STREAMED_LAYERS * config.experts_per_layer, config.num_records)
    most = min(rows, MAX_SEQUENCES)
    for sequences in sorted({most, *(n for n in _ROUND if n < most)}, reverse=True):
        process = Process(context, options.kv, io_bytes, resident_bytes + options.reserved, sequences)
        try:
            if memory_plan(model, process, budget).slots >= streamed:
                return sequences
        except MemoryBudgetError:
            continue
    return 1


_ROUND = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
