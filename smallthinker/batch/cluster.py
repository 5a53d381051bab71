"""The same job over several machines, as a Ray Data pipeline: one engine a node, rows as they have room for them.

Scheduling, shipping, retries and recovery are Ray's. Owns what an engine on a node is made of, and that its model is
the driver's. What has been answered is in the driver's journal as soon as Ray hands it over.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallthinker.batch.job import Answerer, Errors, SortKey, in_order
from smallthinker.batch.journal import Answered, Journal
from smallthinker.batch.node_store import fetch
from smallthinker.batch.rows import Row
from smallthinker.errors import RequestError, SmallThinkerError, one_line
from smallthinker.expert_store.progress import Progress
from smallthinker.options import EngineOptions

if TYPE_CHECKING:
    from smallthinker.llm import LLM

LOCAL = "local"
_OBJECT_STORE_BYTES = 256 << 20  # of a cluster that is started here: rows and answers, which it spills to disk


@dataclass(frozen=True)
class NodeJob:
    """What each node's engine is told. path: of the store, as every node sees it. identity: of its weights and words.
    node_dir: where a node keeps a copy of its own; None reads it where it lies. answerer: of a loaded model."""

    path: Path
    identity: str
    node_dir: str | None
    options: EngineOptions
    version: str
    answerer: Callable[[LLM], Answerer]


class NodeEngine:
    """A callable class for `map_batches`: a model that stays loaded, called from several threads at once. Ray spreads
    these over nodes."""

    def __init__(self, job: NodeJob) -> None:
        import smallthinker
        from smallthinker.llm import LLM

        if smallthinker.__version__ != job.version:
            raise RequestError(
                f"cluster: a node has smallthinker {smallthinker.__version__}, the driver {job.version}; install one"
            )
        self._llm = LLM(fetch(job.path, job.identity, job.node_dir), job.options)
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
    _ray()


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
    """As `job.run`, on the nodes of a cluster -> how many. address: of the cluster, or LOCAL for one that is started
    here and ends with the job. Raises as that does."""
    ray = _ray()
    if address == LOCAL:
        how: dict[str, Any] = {"address": LOCAL, "object_store_memory": _OBJECT_STORE_BYTES, "include_dashboard": False}
    else:
        how = {"address": address}
    try:
        ray.init(**how, log_to_driver=False, logging_level="ERROR")
    except Exception as e:  # ConnectionError, RuntimeError, ValueError
        raise RequestError(f"cluster: {address}: {one_line(e, 300)}; `ray start --head` begins one") from None
    try:
        nodes: int = sum(node["Alive"] and node["Resources"].get("CPU", 0) >= 1 for node in ray.nodes())
        if not nodes:
            raise RequestError(f"cluster: {address}: no node with a processor; `ray start --address ...` adds one")
        todo = in_order(rows, journal, sort_key)
        items = [{"index": index, "row": json.dumps(row, default=str)} for index, row in todo]
        with contextlib.redirect_stdout(sys.stderr):  # where Ray tells of its nodes
            _pipeline(ray, items, nodes, job, journal, left, Errors(max_errors), progress)
    finally:
        ray.shutdown()
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
    at_once = 2 * job.options.sequences  # so that one is there when another ends
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    for name in ("ray", "ray.data"):  # which tell of each step of theirs; what ends the job is told in its error
        logging.getLogger(name).setLevel(logging.ERROR)
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
        memory=job.options.memory,
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
        raise SmallThinkerError(f"cluster: {_cause(e)}; what is done stays: the same command goes on") from None


def _cause(error: Exception) -> str:
    """What a node's engine said, of what Ray makes of that."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SmallThinkerError):
            return one_line(cause, 400)
        cause = getattr(cause, "cause", None) or cause.__cause__
    return one_line(str(error).strip().splitlines()[-1], 400)


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.data
    except ImportError:
        raise RequestError("cluster: needs Ray: pip install 'smallthinker[ray]'") from None
    return ray
