"""The prediction: an answer from a cold start, and the ones after it, with what limits them.

Pure functions of a setting: a model, a budget, a disk, measured costs and a routing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from smallthinker.errors import ProfileError
from smallthinker.expert_store.format import packed_bytes, record_layouts
from smallthinker.figures import rounded
from smallthinker.memory_plan import MemoryPlan
from smallthinker.models.tensors import EMBEDDING, head_role
from smallthinker.prediction.compute_costs import ComputeCosts
from smallthinker.prediction.disk_model import DiskModel
from smallthinker.prediction.needs import PlannedModel, Process, memory_plan
from smallthinker.prediction.routing import Routing
from smallthinker.prediction.simulation import SimulatedEngine, SimulatedPhase

# Of a chosen expert's neurons, those that ReLU lets through: half at random, and in what the costs were measured with.
LIVE_SHARE = 0.5
_TOLERANCE = 0.98  # of rounding

Limit = Literal["disk", "memory", "compute"]


@dataclass(frozen=True)
class Setting:
    """Everything that a prediction depends on. prompt_tokens, answer_tokens: of each answer."""

    model: PlannedModel
    process: Process
    budget_bytes: int
    disk: DiskModel
    costs: ComputeCosts
    routing: Routing
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class Roofs:
    """Seconds a token that each resource can't do without: the disk for the bytes that were needed, memory for the
    weights and keys that are touched, the processor for its multiplications; the two no more than the measured kernels
    took. The largest limits."""

    disk_sec: float
    memory_sec: float
    compute_sec: float

    @property
    def limit(self) -> Limit:
        by_name: dict[Limit, float] = {"disk": self.disk_sec, "memory": self.memory_sec, "compute": self.compute_sec}
        return max(by_name, key=lambda name: by_name[name])

    @property
    def tok_per_sec(self) -> float:
        return 1 / max(self.disk_sec, self.memory_sec, self.compute_sec)


@dataclass(frozen=True)
class Speed:
    """Of a phase: tokens per second, the share of requests that found their expert kept, bytes read per token."""

    tok_per_sec: float
    hit_rate: float
    bytes_read_per_token: float
    roofs: Roofs

    def to_dict(self) -> dict[str, Any]:
        roofs = self.roofs
        return {
            "tok_per_sec": self.tok_per_sec,
            "hit_rate": self.hit_rate,
            "bytes_read_per_token": self.bytes_read_per_token,
            "roofline_tok_per_sec": roofs.tok_per_sec,
            "limit": roofs.limit,
            "disk_sec_per_token": roofs.disk_sec,
            "memory_sec_per_token": roofs.memory_sec,
            "compute_sec_per_token": roofs.compute_sec,
        }


@dataclass(frozen=True)
class Prediction:
    """load_sec: reading the dense weights; first_*: with no expert in memory yet; later ones follow in one process."""

    plan: MemoryPlan
    load_sec: float
    first_ttft_sec: float
    first_prefill: Speed
    first_decode: Speed
    later_ttft_sec: float
    later_prefill: Speed
    later_decode: Speed

    def to_dict(self) -> dict[str, Any]:
        return {
            "load_sec": self.load_sec,
            "first_ttft_sec": self.first_ttft_sec,
            "first_prefill": self.first_prefill.to_dict(),
            "first_decode": self.first_decode.to_dict(),
            "later_ttft_sec": self.later_ttft_sec,
            "later_prefill": self.later_prefill.to_dict(),
            "later_decode": self.later_decode.to_dict(),
        }


def predict(setting: Setting) -> Prediction:
    """Simulate two answers, one after the other. Raises MemoryBudgetError below the floor."""
    model = setting.model
    plan = memory_plan(model, setting.process, setting.budget_bytes)
    engine = SimulatedEngine(
        model.config,
        plan,
        kv=setting.process.kv,
        record_bytes=model.record_bytes,
        stored_bytes=model.stored_bytes,
        disk=setting.disk,
        costs=setting.costs,
        routing=setting.routing,
    )
    answers = []
    for _ in range(2):
        engine.forget()
        prefill = engine.prefill(setting.prompt_tokens)
        answers.append((prefill, engine.decode(setting.answer_tokens)))
    _check_disk([phase for answer in answers for phase in answer], setting)
    (first_prefill, first_decode), (later_prefill, later_decode) = answers
    chunk = min(plan.chunk, setting.prompt_tokens)
    return Prediction(
        plan,
        setting.disk.storage.sequential_sec(model.dense_bytes),
        first_prefill.sec,
        _speed(first_prefill, setting, chunk),
        _speed(first_decode, setting, 1),
        later_prefill.sec,
        _speed(later_prefill, setting, chunk),
        _speed(later_decode, setting, 1),
    )


def _check_disk(phases: Sequence[SimulatedPhase], setting: Setting) -> None:
    """Nothing that a disk is measured to give may be exceeded by what is predicted of it. Raises ProfileError."""
    disk, records = setting.disk, sum(phase.needed_records for phase in phases)
    least_sec = records * setting.model.stored_bytes / disk.random_bytes_per_sec
    sec = sum(phase.sec for phase in phases)
    if sec < _TOLERANCE * least_sec:
        raise ProfileError(
            f"{disk.storage.name}: the prediction reads {rounded(least_sec / sec)} times as fast as the disk's figures "
            f"of {rounded(disk.random_bytes_per_sec / 1e6)} MB/s allow, so they contradict each other; measure again "
            f"while the machine is quiet, or give another `storage`"
        )


def _speed(phase: SimulatedPhase, setting: Setting, at_once: int) -> Speed:
    """at_once: tokens that share a reading of the weights."""
    model, disk, costs = setting.model, setting.disk, setting.costs
    tokens = max(phase.tokens, 1)
    sec = phase.sec
    if model.stored_bytes < model.record_bytes:  # decompressing takes the processors that arithmetic needs
        sec = max(sec, phase.compute_sec + phase.records_read * costs.decompress_sec)
    disk_sec = phase.needed_records * model.stored_bytes / disk.random_bytes_per_sec / tokens
    touched, operations = _token_work(setting, at_once)
    # A ceiling that the very kernels were seen above was measured in a bad minute, or others had the memory then: the
    # higher of the two counts, as in a run's roofline.
    seen_sec = phase.compute_sec / tokens
    memory_sec = min(touched / costs.memory_bytes_per_sec, seen_sec)
    roofs = Roofs(disk_sec, memory_sec, min(operations / costs.int8_ops_per_sec, seen_sec))
    tok_per_sec = min(tokens / sec, roofs.tok_per_sec) if sec else 0.0  # a phase may begin with reads under way
    return Speed(tok_per_sec, phase.experts.hit_rate, phase.bytes_read / tokens, roofs)


def _token_work(setting: Setting, at_once: int) -> tuple[float, float]:
    """Bytes of memory that a token touches, and multiplications and additions that it takes."""
    config, formats = setting.model.config, setting.model.formats
    d = config.hidden_size
    records = products = 0.0  # bytes of them, and weights of a token's, of all layers
    layouts = record_layouts(config, formats)
    for k, experts, layout in zip(config.used_of_layers, config.experts_of_layers, layouts, strict=True):
        used = experts * (1 - (1 - k / experts) ** at_once) if experts else 0.0  # if all experts are alike
        live = 1 - (1 - LIVE_SHARE) ** max(at_once * k / used, 1) if used else 0.0
        for part in () if layout is None else layout.sections:
            is_skipped = part.layout == "rows"  # where its neuron is dead
            records += used * part.nbytes * (live if is_skipped else 1)
            products += k * part.rows * part.cols * (LIVE_SHARE if is_skipped else 1)
    words = {
        role: packed_bytes(formats.of(role, None), "tiles", config.vocab_size, d)
        for role in (EMBEDDING, head_role(config))  # one where they are tied
    }
    head = words[head_role(config)]
    layers_bytes = setting.model.dense_bytes - sum(words.values())
    touched = (layers_bytes + head + records) / at_once
    mixers = [layer.attention for layer in config.layers]
    attention = sum(2 * mixer.head_dim * d * (mixer.heads + mixer.kv_heads) for mixer in mixers)
    return touched, 2 * (attention + products + config.vocab_size * d / at_once)
