"""What would help most: other settings, each predicted again in full, the best first.

Owns the candidates. Pure but for `costs_of`, which measures what another format of weights costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from smallthinker.cache.sequence_state import SequenceShape
from smallthinker.errors import MemoryBudgetError
from smallthinker.expert_store.device.storage_profile import BUNDLED, load_profile
from smallthinker.expert_store.format import Quant
from smallthinker.memory_plan import MIB
from smallthinker.prediction.compute_costs import ComputeCosts
from smallthinker.prediction.disk_model import DiskModel
from smallthinker.prediction.needs import floor_bytes, full_bytes
from smallthinker.prediction.predict import Prediction, Setting, predict

# Of the speed with everything in memory: what the recommended budget must reach.
RECOMMENDED_SHARE = 0.8
# Answers of this many tokens tell as much of a budget, in half of the time.
_SEARCHED_TOKENS = 64
# Below this a change isn't worth naming.
LEAST_GAIN = 0.03
_MOST = 3
_Q8_KEYS = 17 / 32  # of the bytes of f16, and reading them is what attention does
_MUCH_FASTER = 1.5
_CURVE = 7  # points of a curve, but for its first
_BLOCKS: tuple[Quant, ...] = ("q8_0", "q4_0")
_SMALLER: dict[Quant, tuple[Quant, ...]] = {"f32": _BLOCKS, "f16": _BLOCKS, "bf16": _BLOCKS, "q8_0": ("q4_0",)}


@dataclass(frozen=True)
class Change:
    """Another setting and the decode speed that it is predicted to give later answers; gain: 1 is twice as fast."""

    what: str
    tok_per_sec: float
    gain: float


def best_changes(
    setting: Setting, now: Prediction, cores: int, costs_of: Callable[[str, int], ComputeCosts]
) -> list[Change]:
    """At most three, by gain; none where nothing is predicted to help. costs_of: of weights in another format, with so
    many threads."""
    before = now.later_decode.tok_per_sec
    changes = []
    for what, candidate in _candidates(setting, now, cores, costs_of):
        try:
            speed = predict(candidate).later_decode.tok_per_sec
        except MemoryBudgetError:
            continue
        changes.append(Change(what, speed, speed / before - 1))
    worth = [change for change in changes if change.gain >= LEAST_GAIN]
    return sorted(worth, key=lambda change: -change.gain)[:_MOST]


def recommended_bytes(setting: Setting) -> int:
    """The least budget, to a thirty-second of what lies between floor and full, that reaches most of the full speed."""
    low, high = floor_bytes(setting.model, setting.process), full_bytes(setting.model, setting.process)
    enough = RECOMMENDED_SHARE * _decode(setting, high)
    if _decode(setting, low) >= enough:
        return low
    for _ in range(5):
        middle = (low + high) // 2 // MIB * MIB
        low, high = (low, middle) if _decode(setting, middle) >= enough else (middle, high)
    return high


def curve_budgets(floor: int, full: int) -> list[int]:
    """From the floor to all that is of use, each so much more than the one before."""
    between = [floor * (full / floor) ** (n / _CURVE) for n in range(1, _CURVE)]
    step = 16 * MIB
    return sorted({floor, *(min(-(-int(size) // step) * step, full) for size in between), full})


def _decode(setting: Setting, budget_bytes: int) -> float:
    tokens = min(setting.answer_tokens, _SEARCHED_TOKENS)
    return predict(replace(setting, budget_bytes=budget_bytes, answer_tokens=tokens)).later_decode.tok_per_sec


def _candidates(
    setting: Setting, now: Prediction, cores: int, costs_of: Callable[[str, int], ComputeCosts]
) -> Iterator[tuple[str, Setting]]:
    model, process, costs = setting.model, setting.process, setting.costs
    full = full_bytes(model, process)
    if setting.budget_bytes < full:
        more = min(2 * setting.budget_bytes, full)
        yield f"--memory {-(-more // MIB)}MiB", replace(setting, budget_bytes=more)
    for quant in _SMALLER.get(model.quant, ()):
        smaller = replace(setting, model=model.with_quant(quant), costs=costs_of(quant, costs.threads))
        yield f"--quant {quant}, which loses precision", smaller
    if costs.threads < cores:
        yield f"--threads {cores}", replace(setting, costs=costs_of(model.quant, cores))
    if process.kv == "f16" and SequenceShape.of(model.config, 1, 1).can_be("q8"):
        small = replace(costs, key_sec=costs.key_sec * _Q8_KEYS)
        yield "--kv q8", replace(setting, process=replace(process, kv="q8"), costs=small)
    needed = -(-(setting.prompt_tokens + setting.answer_tokens) // 256) * 256
    if needed < process.context:
        yield f"--context {needed}", replace(setting, process=replace(process, context=needed))
    if now.plan.slots < model.config.num_records:
        yield from _disks(setting)
        yield from _compression(setting)


def _disks(setting: Setting) -> Iterator[tuple[str, Setting]]:
    """The slowest class of disks that is much faster than this one."""
    enough = _MUCH_FASTER * setting.disk.random_bytes_per_sec
    disks = [DiskModel.of_device(load_profile(name), setting.model.record_bytes) for name in BUNDLED]
    faster = [disk for disk in disks if disk.random_bytes_per_sec >= enough]
    if faster:
        disk = min(faster, key=lambda disk: disk.random_bytes_per_sec)
        process = replace(setting.process, io_bytes=disk.io_bytes)
        yield f"a faster disk: {disk.storage.summary}", replace(setting, disk=disk, process=process)


def _compression(setting: Setting) -> Iterator[tuple[str, Setting]]:
    """Where records are whole and get smaller. It takes the processors that arithmetic wants, so it seldom wins."""
    model, share = setting.model, setting.costs.stored_share
    if share < 1 and model.stored_bytes == model.record_bytes:
        stored = int(model.record_bytes * share)
        yield "--compress, when converting", replace(setting, model=replace(model, stored_bytes=stored))
