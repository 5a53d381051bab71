"""The same job over several machines, as a Ray Data pipeline: one engine a node, rows as they have room for them.

Scheduling, shipping, retries and recovery are Ray's. What has been answered is in the driver's journal as soon as Ray
hands it over.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smallthinker.batch.job import Answerer, Errors, SortKey, in_order
from smallthinker.batch.journal import Answered, Journal
from smallthinker.batch.rows import Row
from smallthinker.cluster.nodes import NodeModel, cause, find_ray, joined
from smallthinker.errors import SmallThinkerError
from smallthinker.expert_store.progress import Progress

if TYPE_CHECKING:
    from smallthinker.llm import LLM


@dataclass(frozen=True)
class NodeJob:
    """What each node's engine is told. answerer: of a loaded model."""

    model: NodeModel
    answerer: Callable[[LLM], Answerer]


class NodeEngine:
    """A callable class for `map_batches`: a model that stays loaded, called from several threads at once. Ray spreads
    these over nodes."""

    def __init__(self, job: NodeJob) -> None:
        self._llm = job.model.load()
        self._answerer = job.answerer(self._llm)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="smallthinker-batch").start()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Columns `index` and `row`, which is JSON -> `index`, `answer`, JSON too, and `error`, '' for none."""
        rows = zip(batch["index"], batch["row"], strict=True)
        answered = asyncio.run_coroutine_threadsafe(self._answers(rows), self._loop).result()
        return {
            "index": [one.index for one in answered],
            "answer": [json.dumps(one.answer) for one in answered],
            "error": [one.error or "" for one in answered],
        }

    async def _answers(self, rows: Iterator[tuple[Any, Any]]) -> list[Answered]:
        return await asyncio.gather(*(self._answerer.answer(int(index), json.loads(row)) for index, row in rows))


def check_ray() -> None:
    """Raises RequestError where it isn't installed."""
    find_ray("data")


def run(
    rows: Iterator[Row],
    journal: Journal,
    sort_key: SortKey,
    job: NodeJob,
    *,
    address: str,
    left: int,
    max_errors: int,
    progress: Progress,
) -> int:
    """As `job.run`, on the nodes of a cluster -> how many. address: as `joined` takes it. Raises as both do."""
    ray = find_ray("data")
    with joined(ray, address) as nodes:
        todo = in_order(rows, journal, sort_key)
        items = [{"index": index, "row": json.dumps(row, default=str)} for index, row in todo]
        _pipeline(ray, items, nodes, job, journal, left, Errors(max_errors), progress)
    return nodes


def _pipeline(
    ray: Any,
    items: list[dict[str, Any]],
    nodes: int,
    job: NodeJob,
    journal: Journal,
    left: int,
    errors: Errors,
    progress: Progress,
) -> None:
    options = job.model.options
    at_once = 2 * options.sequences  # so that one is there when another ends
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    answers = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        NodeEngine,
        batch_size=None,
        fn_constructor_args=(job,),
        compute=ray.data.ActorPoolStrategy(
            size=min(nodes, len(items)),
            max_tasks_in_flight_per_actor=at_once,
            max_concurrent_calls_per_actor=at_once,
            enable_true_multi_threading=True,
        ),
        num_cpus=1,
        memory=options.memory,
    )
    done = 0
    try:
        for batch in answers.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
            columns = (batch[name].tolist() for name in ("index", "answer", "error"))
            answered = [Answered(i, json.loads(text), error or None) for i, text, error in zip(*columns, strict=True)]
            answered = [one for one in answered if one.index not in journal]
            journal.keep(errors.sift(answered))
            done += len(answered)
            progress(done, left, "rows")
        journal.keep(errors.held)
    except ray.exceptions.RayError as e:
        raise SmallThinkerError(f"cluster: {cause(e)}; what is done stays: the same command goes on") from None
