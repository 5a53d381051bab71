"""Made-up machines and small models for tests of predictions; nothing here is measured."""

from __future__ import annotations

from typing import Any

from tiny_models import tiny_config

from smallthinker.expert_store.device.storage_profile import StorageProfile
from smallthinker.expert_store.format import Formats
from smallthinker.memory_plan import MIB
from smallthinker.models.description import Model
from smallthinker.models.published import PUBLISHED
from smallthinker.models.registry import parse_model
from smallthinker.prediction.compute_costs import ComputeCosts
from smallthinker.prediction.disk_model import DiskModel
from smallthinker.prediction.needs import PlannedModel, Process, weight_bytes
from smallthinker.prediction.predict import Setting
from smallthinker.prediction.routing import synthetic_routing

FOUR_B = parse_model(PUBLISHED["4b"])
SMALL = tiny_config(
    num_hidden_layers=6, rope_layout=[1] * 6, sliding_window_layout=[0] * 6, moe_num_primary_experts=16,
    hidden_size=256, moe_ffn_hidden_size=256,
)  # fmt: skip


def costs(**changes: Any) -> ComputeCosts:
    """Of a machine on which a 4B token takes 20 ms."""
    figures: dict[str, Any] = {
        "threads": 2, "isa": "none", "experts_per_token": 4, "route_sec": 15e-6, "attend_sec": 140e-6,
        "key_sec": 50e-9, "one_expert_sec": 80e-6, "all_experts_sec": 280e-6, "hit_python_sec": 20e-6,
        "miss_python_sec": 20e-6, "landed_python_sec": 40e-6, "guess_sec": 22e-6, "head_sec": 4e-3,
        "chunk_sec": 400e-6, "chunk_token_sec": 28e-6, "chunk_key_sec": 30e-9, "chunk_expert_sec": 50e-6,
        "chunk_pair_sec": 16e-6,
        "stored_share": 0.95, "decompress_sec": 1e-3, "memory_bytes_per_sec": 30e9, "int8_ops_per_sec": 1e12,
    }  # fmt: skip
    return ComputeCosts(**(figures | changes))


def storage(bytes_per_sec: float = 1e9, latency_sec: float = 100e-6, queue_depth: int = 8) -> StorageProfile:
    return StorageProfile(
        name="made-up", summary="a made-up disk", scope="device", sequential_bytes_per_sec=bytes_per_sec,
        random_bytes_per_sec=bytes_per_sec, random_iops=1e6, latency_sec=latency_sec, queue_depth=queue_depth,
        source="a test",
    )  # fmt: skip


def setting(
    config: Model = FOUR_B, budget_bytes: int = 1 << 30, bytes_per_sec: float = 1e9, skew: float = 1.3,
    tokens: int = 32, **changes: Any,
) -> Setting:  # fmt: skip
    dense, record = weight_bytes(config, "q4_0")
    model = PlannedModel("a model", config, Formats("q4_0"), dense, record, record, 0, True)
    disk = DiskModel.of_device(storage(bytes_per_sec), record)
    figures: dict[str, Any] = {
        "model": model, "process": Process(256, "f16", disk.io_bytes, 40 * MIB), "budget_bytes": budget_bytes,
        "disk": disk, "costs": costs(experts_per_token=config.experts_per_token),
        "routing": synthetic_routing(config, tokens + 16, skew), "prompt_tokens": 16, "answer_tokens": tokens,
    }  # fmt: skip
    return Setting(**(figures | changes))
