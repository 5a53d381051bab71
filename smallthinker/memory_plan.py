"""The memory plan: one budget in bytes split into parts before anything is loaded.

Owns the arithmetic of who gets what, and the floor. Allocates nothing. What the process holds already (interpreter,
libraries, tokenizer) is measured by the caller and handed in: it differs between machines and tokenizers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from smallthinker import _kernels
from smallthinker.arguments import refuse, whole
from smallthinker.cache.kv_ring import KvKind
from smallthinker.cache.sequence_state import SequenceShape
from smallthinker.errors import ContextLengthError, MemoryBudgetError
from smallthinker.models.description import Model

MIB = 1 << 20
DEFAULT_CONTEXT = 4096
# Prefill chunk sizes, in tokens: every chunk reads the experts that are not resident once, and a larger one needs more
# scratch, which is the experts' again once the prompt has been read.
CHUNKS = (512, 256, 128, 32)
# Larger ones are as fast in memory, and read 3.3 times less for a prompt of 2,000 tokens of the 4B shape in 1 GiB. Not
# where several answers are written at once, which wait for each chunk.
LONG_CHUNKS = (4096, 2048, 1024)
# Keys of sliding windows are kept for a chunk beside the window, even if there is never one so long: of the budget.
_MOST_WINDOW_SHARE = 0.02
# What the process takes beside its plan: libraries are imported and mapped as they are first used, Python's objects
# grow, and a hard limit counts pages of its files that nobody maps any more. Seen: 14 to 24 MiB; see docs/design.md.
STARTING_BYTES = 32 * MIB
# What a process holds before its plan differs from start to start: a floor that is named in one must work in the next.
STARTS_DIFFER_BYTES = 4 * MIB
# The kernel needs 8 bytes for each page of 4096 that is in memory, and a cgroup's limit counts them.
PAGE_TABLE_SHARE = 512
# The feed-forward kernels go through a chunk's neurons in waves of so many bytes at most.
_NEURONS_BYTES = 8 * MIB
# What else a step takes: the objects of its layers, lists of experts and tokens. Seen: 0.3 to 1.3 MiB.
_STEP_BYTES = 2 * MIB
# Left free when no budget is given: other programs go on living.
DEFAULT_MARGIN = 0.15
# Layers whose experts must fit beside the scratch of a chunk: one computes while the next is read.
_STREAMED_LAYERS = 2

MAX_BYTES = 2**63 - 1
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(?:i?b)?|b)?", re.IGNORECASE)


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of each part; together at most `budget_bytes`.

    `slots` experts fit in `slots_bytes` beside a full KV cache and a whole chunk of a prompt. Until the KV cache has
    grown to that, and while one token is computed at a time, what is left of those parts is lent to experts:
    `most_slots` fit beside an empty context, `slots_at` says how many at any moment.
    """

    budget_bytes: int
    interpreter_bytes: int
    tokenizer_bytes: int
    dense_bytes: int
    kv_bytes: int
    scratch_bytes: int
    io_bytes: int
    slots_bytes: int
    slots: int
    most_slots: int
    num_experts: int
    context: int
    chunk: int
    sequences: int = 1
    records: str = "experts"  # or slices, where no layer has a router

    def table(self) -> str:
        """The plan for people, one part a line."""
        parts = {key: value for key, value in asdict(self).items() if key.endswith("_bytes") and key != "budget_bytes"}
        names = {
            "kv_bytes": f"KV cache ({'' if self.sequences == 1 else f'{self.sequences} x '}{self.context} tokens)",
            "io_bytes": "reads in flight",
            "scratch_bytes": f"scratch (chunks of {self.chunk})",
            "slots_bytes": f"{self.records} ({self.slots} of {self.num_experts})",
        }
        lines = [f"memory plan for {self.budget_bytes / MIB:.0f} MiB:"]
        for key, value in parts.items():
            name = names.get(key, key.removesuffix("_bytes"))
            lines.append(f"  {name:<28}{value / MIB:>9.1f} MiB")
        spare = self.budget_bytes - sum(parts.values())
        lines.append(f"  {'unused':<28}{spare / MIB:>9.1f} MiB")
        if self.most_slots > self.slots:
            lines.append(
                f"an empty context leaves room for {self.most_slots} {self.records}: what the KV cache will take is "
                "lent"
            )
        return "\n".join(lines)


def parse_size(size: str | float, name: str = "memory") -> int:
    """'1GiB', '800M', '1.5g' or a number of bytes -> bytes. K, M, G and T are powers of 1024, however spelled.

    Raises RequestError, which says that it is `name`'s.
    """
    expected = "a size such as 1GiB, 800M or a number of bytes"
    if isinstance(size, float) and size.is_integer():
        size = int(size)
    if not isinstance(size, str):
        return whole(name, size, 0, MAX_BYTES, expected)
    match = _SIZE.fullmatch(size.strip())
    exponent = " kmgt".index(match[2].lower()) if match and match[2] else 0
    found = float(match[1]) * 1024**exponent if match else math.inf
    if not found <= MAX_BYTES:
        refuse(name, expected, size)
    return int(found)


def choose_context(config: Model, context: int | None) -> int:
    """The context to plan for. Raises ContextLengthError when the model was not made for it."""
    if context is None:
        return min(config.context, DEFAULT_CONTEXT)
    if not 1 <= context <= config.context:
        raise ContextLengthError(f"context: this model takes 1 to {config.context} tokens, found {context}")
    return context


def page_table_bytes(budget_bytes: int, weights_bytes: int) -> int:
    """What the kernel's tables take for the pages of a budget that holds a model's weights, or a part of them."""
    return min(budget_bytes, weights_bytes) // PAGE_TABLE_SHARE


def default_budget(held_bytes: int, available_bytes: int, limit_bytes: int | None) -> int:
    """What a process that holds `held_bytes` takes when nobody names a budget: what is free, less a margin."""
    budget = held_bytes + int(available_bytes * (1 - DEFAULT_MARGIN))
    return min(budget, limit_bytes or budget)


def plan_process(
    config: Model,
    *,
    budget_bytes: int,
    context: int,
    kv: KvKind,
    dense_bytes: int,
    extra_bytes: int = 0,
    record_bytes: int,
    io_bytes: int,
    resident_bytes: int,
    tokenizer_bytes: int,
    chunks: Sequence[int] = CHUNKS,
    max_slots: int | None = None,
    sequences: int = 1,
    starting_bytes: int = 0,
) -> MemoryPlan:
    """`plan_memory` of a process that held `resident_bytes` before its tokenizer: what Engine plans, and what
    `smallthinker plan` says that it will. extra_bytes: dense weights that aren't in dense.safetensors. starting_bytes:
    what the process held for a moment while it loaded its tokenizer, which no budget may be below. Raises
    MemoryBudgetError with the floor: a budget in whole MiB that is enough, in the next process, too."""
    weights_bytes = dense_bytes + config.num_records * record_bytes

    def plan(budget: int) -> MemoryPlan:
        if budget < starting_bytes:
            raise _below(-(-starting_bytes // MIB) * MIB, budget_bytes, context, sequences)
        return plan_memory(
            config,
            budget_bytes=budget,
            context=context,
            kv=kv,
            dense_bytes=dense_bytes + extra_bytes,
            record_bytes=record_bytes,
            io_bytes=io_bytes,
            interpreter_bytes=resident_bytes + STARTING_BYTES + page_table_bytes(budget, weights_bytes),
            tokenizer_bytes=tokenizer_bytes,
            chunks=chunks,
            max_slots=max_slots,
            sequences=sequences,
        )

    try:
        return plan(budget_bytes)
    except MemoryBudgetError as e:
        floor = e.floor_bytes
    while True:  # a larger budget has larger page tables: the floor that is named must be enough
        try:
            plan(floor)
        except MemoryBudgetError as e:
            floor = e.floor_bytes
        else:
            raise _below(floor + STARTS_DIFFER_BYTES, budget_bytes, context, sequences)


def plan_again(
    plan: MemoryPlan, config: Model, *, more_bytes: int, kv: KvKind, record_bytes: int, max_slots: int | None
) -> MemoryPlan:
    """The plan of a process that comes to hold so much more than it was made for: experts give way. Raises
    MemoryBudgetError with a floor that is enough for both."""
    try:
        return plan_memory(
            config,
            budget_bytes=plan.budget_bytes,
            context=plan.context,
            kv=kv,
            dense_bytes=plan.dense_bytes,
            record_bytes=record_bytes,
            io_bytes=plan.io_bytes,
            interpreter_bytes=plan.interpreter_bytes + more_bytes,
            tokenizer_bytes=plan.tokenizer_bytes,
            chunks=(plan.chunk,),
            max_slots=max_slots,
            sequences=plan.sequences,
        )
    except MemoryBudgetError as e:
        floor = e.floor_bytes + STARTS_DIFFER_BYTES
        raise _below(floor, plan.budget_bytes, plan.context, plan.sequences) from None


def _below(floor_bytes: int, budget_bytes: int, context: int, sequences: int) -> MemoryBudgetError:
    """floor_bytes: in whole MiB, as it is named."""
    floor = floor_bytes // MIB
    return MemoryBudgetError(
        f"memory: {budget_bytes / MIB:.0f} MiB is below the floor of {floor} MiB for a context of {context} "
        f"tokens{'' if sequences == 1 else f', {sequences} times'}; give `memory={floor}MiB` or more, or a "
        "smaller `context`",
        floor_bytes,
    )


def plan_memory(
    config: Model,
    *,
    budget_bytes: int,
    context: int,
    dense_bytes: int,
    record_bytes: int,
    io_bytes: int,
    interpreter_bytes: int,
    tokenizer_bytes: int,
    kv: KvKind = "f16",
    chunks: Sequence[int] = CHUNKS,
    max_slots: int | None = None,
    sequences: int = 1,
) -> MemoryPlan:
    """Split the budget: fixed parts first, experts get the rest, up to all of them or `max_slots`.

    sequences: KV caches, each for a whole context; as many answers may be computed in one step. The largest of the
    prefill `chunks` is taken that leaves room for two layers' experts, so that a prompt streams through; else the
    smallest. Raises MemoryBudgetError, naming the floor, when not even one token's experts fit beside the fixed parts.
    """

    def plan(chunk: int, slots: int) -> MemoryPlan:
        return MemoryPlan(
            budget_bytes=budget_bytes,
            interpreter_bytes=interpreter_bytes,
            tokenizer_bytes=tokenizer_bytes,
            dense_bytes=dense_bytes,
            kv_bytes=sequences * SequenceShape.of(config, context, chunk, kv).nbytes,
            scratch_bytes=scratch_bytes(config, max(chunk, sequences), context, sequences),
            io_bytes=io_bytes,
            slots_bytes=slots * record_bytes,
            slots=slots,
            most_slots=slots,
            num_experts=config.num_records,
            context=context,
            chunk=chunk,
            sequences=sequences,
            records="experts" if config.routed_layers else "slices",
        )

    def total(p: MemoryPlan) -> int:
        return (
            p.interpreter_bytes
            + p.tokenizer_bytes
            + p.dense_bytes
            + p.kv_bytes
            + p.scratch_bytes
            + p.io_bytes
            + p.slots_bytes
        )

    fewest = config.experts_per_token
    most = config.num_records if max_slots is None else max(fewest, min(max_slots, config.num_records))
    for chunk in _longer(config, budget_bytes, chunks, context, kv, sequences, total(plan(chunks[0], most))):
        slots = (budget_bytes - total(plan(chunk, 0))) // record_bytes
        streamed = min(_STREAMED_LAYERS * config.experts_per_layer, config.num_records)
        if slots >= (fewest if chunk == chunks[-1] else streamed):
            whole = plan(chunk, min(slots, most))
            empty = SequenceShape.of(config, context, chunk, kv).touched_bytes(0)
            return replace(whole, most_slots=min(slots_at(whole, config, record_bytes, empty, 1), most))
    floor = -(-total(plan(chunks[-1], fewest)) // MIB) * MIB
    raise _below(floor, budget_bytes, context, sequences)


def most_at_once(plan: MemoryPlan, config: Model, limit: int) -> int:
    """Tokens of one sequence, at most `limit`, with the logits of each, that a chunk's scratch has room for."""
    at_once = min(limit, plan.chunk)
    while scratch_bytes(config, at_once, plan.context, max(plan.sequences, at_once)) > plan.scratch_bytes:
        at_once -= 1
    return at_once


def _longer(
    config: Model, budget_bytes: int, chunks: Sequence[int], context: int, kv: KvKind, sequences: int, full_bytes: int
) -> Sequence[int]:
    """Where not everything fits, the longer chunks that a prompt may have, too."""
    if chunks != CHUNKS or sequences > 1 or budget_bytes >= full_bytes:
        return chunks

    def keys(chunk: int) -> int:
        return SequenceShape.of(config, context, chunk, kv).nbytes

    bound = keys(chunks[0]) + _MOST_WINDOW_SHARE * budget_bytes
    return [*(chunk for chunk in LONG_CHUNKS if chunk < 2 * context and keys(chunk) <= bound), *chunks]


def slots_at(plan: MemoryPlan, config: Model, record_bytes: int, kv_bytes: int, tokens: int, rows: int = 1) -> int:
    """Experts that fit while KV caches take `kv_bytes` and `tokens` are computed at once, `rows` of them with logits;
    all may be fewer.

    record_bytes: as the plan was made with.
    """
    unused_kv = max(plan.kv_bytes - kv_bytes, 0)
    most = max(plan.chunk, plan.sequences)
    needed = scratch_bytes(config, min(max(tokens, plan.sequences), most), plan.context, max(plan.sequences, rows))
    return plan.slots + (unused_kv + plan.scratch_bytes - needed) // record_bytes


def scratch_bytes(config: Model, chunk: int, context: int, sequences: int = 1) -> int:
    """Activations of one chunk, attention's partial sums, the logits, and what sampling makes of them."""
    d, k, ffn = config.hidden_size, config.experts_per_token, config.ffn_width
    mixers = [layer.attention for layer in config.layers]
    networks = [layer.ffn for layer in config.layers if layer.ffn]
    shared = [ffn.shared for ffn in networks if ffn.shared] + [ffn.beside.ffn for ffn in networks if ffn.beside]
    weighs_input = any(ffn.router and ffn.router.applied_to == "input" for ffn in networks)
    given = 0 if config.layer_inputs is None else config.layer_inputs.size
    projected = max(2 * (mixer.heads + mixer.kv_heads) * mixer.head_dim for mixer in mixers)
    floats_per_token = (
        5 * d  # residual, normed copy, projections' output and their int8 copies
        + projected  # q, k, v and the attention's output
        + k * d  # one output row for each (token, expert), so that they can be summed in a fixed order
        + config.experts_per_layer
        + max((2 * ffn.width + d for ffn in shared), default=0)  # gate, up and output
        + (k * d if weighs_input else 0)  # what each expert of a token reads
        + given * config.num_layers  # what layers are given of a token
        + (2 * given + d if given else 0)  # and what they make of it
    )
    neurons = min(chunk * 3 * k * ffn * 4, _NEURONS_BYTES)  # gate, up, and what down reads
    splits = context // _kernels.KV_SPLIT + 1  # of one token's attention, each with sums for every head
    attention = splits * max(mixer.heads * (mixer.head_dim + 32) for mixer in mixers) * 4
    # one row for each of `sequences`, or of their tokens that are wanted; beside it what penalties copy, and the
    # sampler's weights, ids and their order
    logits = config.vocab_size * (32 + 4 * (sequences - 1))
    return chunk * floats_per_token * 4 + neurons + attention + logits + _STEP_BYTES
