"""Figures for Prometheus. Totals are the scheduler's own, read when somebody asks; times are seen as answers end."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from smallthinker.generation.scheduler import Scheduler
from smallthinker.generation.stats import GenerationStats

_TTFT_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_TPOT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)


class Metrics:
    """One registry for each server; the library's own one belongs to the process."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Totals(scheduler))
        self._ttft = Histogram(
            "smallthinker_time_to_first_token_seconds",
            "From the request to its first token, waiting included.",
            buckets=_TTFT_BUCKETS,
            registry=self._registry,
        )
        self._tpot = Histogram(
            "smallthinker_time_per_output_token_seconds",
            "Mean time of an answer's tokens after the first.",
            buckets=_TPOT_BUCKETS,
            registry=self._registry,
        )

    def answered(self, stats: GenerationStats) -> None:
        if stats.new_tokens:
            self._ttft.observe(stats.ttft_sec)
        if stats.new_tokens > 1:
            self._tpot.observe(stats.decode_sec / (stats.new_tokens - 1))

    def text(self) -> bytes:
        """Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)


class _Totals(Collector):
    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def collect(self) -> Iterator[Metric]:
        stats = self._scheduler.stats()
        counters = {
            "prompt_tokens": ("Tokens of prompts.", stats.prompt_tokens),
            "reused_prompt_tokens": ("Tokens of prompts that an earlier turn had computed.", stats.reused_tokens),
            "generated_tokens": ("Tokens of answers.", stats.new_tokens),
            "speculated_tokens": ("Tokens that were proposed.", stats.speculation.proposed),
            "accepted_tokens": ("Of those, tokens that were right, each a step less.", stats.speculation.accepted),
            "expert_bytes_read": ("Bytes of experts read from the disk.", stats.bytes_read),
        }
        for name, (help, value) in counters.items():
            yield CounterMetricFamily(f"smallthinker_{name}", help, value=value)
        finished = CounterMetricFamily("smallthinker_requests", "Answers that have ended.", labels=["finish_reason"])
        for reason, count in stats.finished.items():
            finished.add_metric([reason], count)
        yield finished
        gauges = {
            "requests_running": ("Answers that are being computed.", stats.running),
            "requests_waiting": ("Requests in the queue.", stats.waiting),
            "queue_size": ("Requests that may wait.", stats.most_waiting),
            "expert_hit_rate": ("Share of the experts asked for that were in memory.", stats.hit_rate),
            "expert_slots": ("Experts that fit in memory now.", stats.slots),
            "experts": ("Experts of the model.", stats.num_experts),
            "memory_bytes": ("Resident memory of the process.", stats.memory_bytes),
            "memory_budget_bytes": ("Ceiling of the memory plan.", stats.memory_budget_bytes),
            "kv_bytes": ("KV cache of running and kept conversations.", stats.kv_bytes),
            "kv_planned_bytes": ("KV cache that is planned for.", stats.kv_planned_bytes),
            "uptime_seconds": ("Since the model was loaded.", stats.uptime_sec),
        }
        for name, (help, number) in gauges.items():
            yield GaugeMetricFamily(f"smallthinker_{name}", help, value=number)
