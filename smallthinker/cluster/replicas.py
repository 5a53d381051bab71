"""A model's replicas, by Ray Serve: an engine each, which answers requests as the server's own application does.

How many there are, where they run, whether they live, and which of them is asked is Ray's affair. What Ray calls a
multiplexed model is a conversation here: a replica tells Ray which ones it holds, and Ray asks it for those first.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from smallthinker.cluster.nodes import NodeModel
from smallthinker.errors import RequestError, SmallThinkerError, one_line
from smallthinker.server.app import create_app
from smallthinker.server.settings import Settings

_TRIES = 3  # to load the model, of each replica
_QUIET = {"log_level": "ERROR", "enable_access_log": False}
_FAULT = re.compile(r"smallthinker\.errors\.\w+: (.*)")


def counts_of(text: str) -> tuple[int, int]:
    """'2' or '1-4' -> the fewest and the most. Raises RequestError."""
    found = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", text.strip())
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= least <= most:
        raise RequestError(f"replicas: expected a number such as 2, or the fewest and the most as 1-4, found {text!r}")
    return least, most


class Replica:
    """What Ray Serve runs."""

    def __init__(self, model: NodeModel, name: str, settings: Settings) -> None:
        from ray import serve

        self._llm = model.load()
        self._app = create_app(self._llm, name, settings)
        self._hold = serve.multiplexed(_held, max_num_models_per_replica=model.options.sequences)
        self._conversation = serve.get_multiplexed_model_id

    def context(self) -> int:
        return self._llm.plan.context

    def check_health(self) -> None:
        """For Ray, which replaces a replica that raises."""
        if self._llm.scheduler.closed:
            raise SmallThinkerError("the model is closed")

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[dict[str, Any]]:
        """One request of ASGI -> the messages of its answer."""
        if conversation := self._conversation():
            await self._hold(conversation)
        messages: asyncio.Queue[Any] = asyncio.Queue()
        unread = [body]

        async def receive() -> dict[str, Any]:
            if not unread:
                await asyncio.Event().wait()  # a client that leaves has this cancelled
            return {"type": "http.request", "body": unread.pop(), "more_body": False}

        task = asyncio.create_task(self._app(scope, receive, messages.put))
        task.add_done_callback(lambda _: messages.put_nowait(None))
        try:
            while (message := await messages.get()) is not None:
                yield message
            await task
        finally:
            task.cancel()


async def _held(conversation: str) -> str:
    """What is held of it is the engine's affair: as many conversations as it has sequences, the least used goes."""
    return conversation


@dataclass(frozen=True)
class Replicas:
    """Those of one deployment. handle: Ray Serve's, which chooses one for each call."""

    handle: Any
    app: str

    def context(self) -> int:
        """Tokens of prompt and answer together, as a replica has planned it."""
        return int(self.handle.context.remote().result())

    def running(self) -> int:
        """How many answer. Asks Ray."""
        from ray import serve

        found = serve.status().applications.get(self.app)
        states = [one.replica_states for one in found.deployments.values()] if found is not None else []
        return sum(count for each in states for state, count in each.items() if state == "RUNNING")


@contextmanager
def deployed(model: NodeModel, name: str, settings: Settings, counts: tuple[int, int]) -> Iterator[Replicas]:
    """Waits until they answer; they end with the block. counts: the fewest and the most. Raises SmallThinkerError with
    what a node said."""
    from ray import serve

    options, (least, most) = model.options, counts
    many: dict[str, Any] = {"num_replicas": most}
    if least < most:
        scaling = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": options.sequences}
        many = {"autoscaling_config": scaling}
    deployment: Any = serve.deployment(
        name="replica",
        ray_actor_options={"num_cpus": 1, **({} if options.memory is None else {"memory": options.memory})},
        max_ongoing_requests=2 * options.sequences,  # so that one is there when another ends
        max_queued_requests=options.max_waiting,
        max_constructor_retry_count=_TRIES,
        logging_config=_QUIET,
        **many,
    )(Replica)
    serve.start(proxy_location="Disabled", logging_config=_QUIET)
    app = f"smallthinker-{model.identity[:12]}"
    try:
        try:
            handle = serve.run(deployment.bind(model, name, settings), name=app, route_prefix=None)
        except Exception as e:
            raise SmallThinkerError(f"cluster: {_why(app) or one_line(e, 300)}") from None
        yield Replicas(handle, app)
    finally:
        serve.delete(app)


def _why(app: str) -> str | None:
    """What the nodes say of why there are no replicas."""
    from ray import serve

    found = serve.status().applications.get(app)
    said = [str(one.message) for one in found.deployments.values()] if found is not None else []
    faults = [fault for message in said for fault in _FAULT.findall(message)]
    return one_line(faults[-1], 400) if faults else None
