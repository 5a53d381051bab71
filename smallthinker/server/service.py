"""What the endpoints share: the model, its grammars, the figures, and the threads for work that takes a while."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar
from weakref import WeakValueDictionary

from smallthinker.errors import TokenizerError
from smallthinker.generation.grammar import Grammars, SchemaLimits
from smallthinker.llm import LLM
from smallthinker.server.body import Bodies
from smallthinker.server.errors import bad_request
from smallthinker.server.metrics import Metrics
from smallthinker.server.settings import Settings

Result = TypeVar("Result")


class Service:
    """One loaded model, served."""

    def __init__(self, llm: LLM, name: str, settings: Settings, bodies: Bodies | None = None) -> None:
        self.llm, self.name, self.settings = llm, name, settings
        self.created = int(time.time())
        with suppress(TokenizerError):  # said to whoever chats; texts can be completed without one
            _ = llm.tokenizer.chat_template  # read and compiled before anyone waits for the event loop
        limits = settings.limits
        schema_limits = SchemaLimits(limits.schema_bytes, limits.schema_nodes, limits.schema_depth)
        self.grammars = Grammars(llm.tokenizer, llm.config, schema_limits)
        self.bodies = bodies or Bodies(limits)
        self._users, self._unused = 0, asyncio.Event()
        self._unused.set()
        self.metrics = Metrics(llm.scheduler)
        self.activity = Activity()
        # one prompt or grammar at a time: they compete with the model for the processor. Not anyio's threads with a
        # limit: a task that is cancelled gives its place back while its thread goes on
        self._preparing = ThreadPoolExecutor(1, "smallthinker-prepare")
        self._lines: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def prepare(self, client: str, work: Callable[..., Result], *args: object) -> Result:
        """Run on a worker thread, in turn with other clients' work. What is cancelled before it began never does."""
        line = self._lines.setdefault(client, asyncio.Lock())
        async with line:  # one of each client's at a time is in the line of all
            return await asyncio.get_running_loop().run_in_executor(self._preparing, partial(work, *args))

    def hold(self) -> None:
        """It stays loaded until as many `release` it."""
        self._users += 1
        self._unused.clear()

    def release(self) -> None:
        self._users -= 1
        if not self._users:
            self._unused.set()

    async def idle(self) -> None:
        """Wait until nobody holds it."""
        while self._users:
            await self._unused.wait()

    def timeout(self, asked: float | None) -> float:
        longest = self.settings.timeout_sec
        if asked is not None and asked > longest:
            raise bad_request(f"timeout: this server takes at most {longest:g} s", "timeout")
        return longest if asked is None else asked


class Activity:
    """How fast tokens come now, all answers together."""

    WINDOW_SEC = 10.0
    PAUSE_SEC = 0.5

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: deque[float] = deque(maxlen=256)

    def token(self) -> None:
        now = self._clock()
        if len(self._times) > 1:
            mean = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
            if now - self._times[-1] > self.PAUSE_SEC + 4 * mean:
                self._times.clear()  # another answer begins: the pause before it is nobody's slowness
        self._times.append(now)

    def tokens_per_sec(self) -> float:
        """Of the last tokens within ten seconds; falls while none comes, and is 0 after that."""
        now = self._clock()
        while self._times and self._times[0] < now - self.WINDOW_SEC:
            self._times.popleft()
        if len(self._times) < 2:
            return 0.0
        intervals, since_last = len(self._times) - 1, now - self._times[-1]
        mean = (self._times[-1] - self._times[0]) / intervals
        waited = max(since_last - mean, 0.0)  # a token is late, or the answer is over
        return 0.0 if since_last > 2.0 + 4 * mean else intervals / (self._times[-1] - self._times[0] + waited)
