"""The models that this server has by name, of which one is loaded: a request for another waits until the answers that
are under way have ended, then the one makes room for the other inside the same budget.

Owns which one that is. Requests take turns in the order in which they came, so that none waits for ever behind those
for the model that is loaded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
from starlette.requests import Request

from smallthinker.errors import MemoryBudgetError, SmallThinkerError
from smallthinker.library import Library, LibraryModel
from smallthinker.library.folder import model_at
from smallthinker.llm import LLM
from smallthinker.log import NAME
from smallthinker.server.answers import unless_gone
from smallthinker.server.body import Bodies
from smallthinker.server.errors import DONT_REPEAT, ApiError, timed_out
from smallthinker.server.service import Service
from smallthinker.server.settings import Settings

_MOST_NAMED = 8  # in a message
_TAG = ":latest"  # as Ollama's clients name models
_log = logging.getLogger(NAME)


class Models:
    """Closing the first model is the caller's; of the others, `close` does it."""

    def __init__(
        self, llm: LLM, name: str, settings: Settings, load: Callable[[Path], LLM] | None, library: Library | None
    ) -> None:
        """load: another model, in the first one's place; None, or no library, for a server of one."""
        self.settings, self.bodies = settings, Bodies(settings.limits)
        store = llm.store
        found = model_at(store.path) or LibraryModel(name, store.path, "store", store.weight_files)
        self._first = replace(found, name=name)
        self._load, self._library = load, library if load is not None else None
        self._loaded: Service | None = Service(llm, name, settings, self.bodies)
        self._turns = asyncio.Lock()
        self._exchanging = ThreadPoolExecutor(1, "smallthinker-load")

    @property
    def current(self) -> Service:
        """Raises ApiError while there is none."""
        if self._loaded is None:
            raise ApiError(
                503, "another model is being loaded", type="server_error", code="loading", headers={"retry-after": "1"}
            )
        return self._loaded

    def loaded(self, model: LibraryModel) -> Service | None:
        """Where this is the one."""
        return self._loaded if self._loaded is not None and self._loaded.name == model.name else None

    @property
    def failed(self) -> bool:
        """The model that is loaded computes no more."""
        return self._loaded is not None and self._loaded.llm.scheduler.closed

    def all(self) -> list[LibraryModel]:
        """The one that the server was started with, then those of the library. Reads folders."""
        found = [self._first]
        for model in [] if self._library is None else self._library.models():
            if model.path.resolve() == self._first.path.resolve():
                found[0] = replace(self._first, aliases=(model.name, *model.aliases))
            elif model.runs and model.name != self._first.name:
                found.append(model)
        return found

    def find(self, name: str | None) -> LibraryModel:
        """Raises ApiError 404 for a model that isn't here. Reads folders, but for the one that is loaded."""
        loaded = self._loaded
        wanted = (self._first.name if loaded is None else loaded.name) if name is None else name
        names = (wanted, wanted.removesuffix(_TAG))
        if self._first.name in names:
            return self._first
        models = self.all()
        for model in models:
            if {model.name, *model.aliases} & {*names}:
                return model
        shown = wanted if len(wanted) <= 64 else wanted[:64] + "..."
        have = ", ".join(repr(model.name) for model in models[:_MOST_NAMED]) + ", ..." * (len(models) > _MOST_NAMED)
        raise ApiError(404, f"model: this server has {have}, not {shown!r}", param="model", code="model_not_found")

    @asynccontextmanager
    async def using(self, request: Request, name: str | None) -> AsyncIterator[Service]:
        """The model of this name, loaded, until the block is left; answers that have begun hold it themselves. Raises
        ApiError, ClientGoneError."""
        held: list[Service] = []

        async def take() -> None:
            held.append(await self._take(name))

        try:
            try:
                with anyio.fail_after(self.settings.timeout_sec):
                    await unless_gone(request, take())
            except TimeoutError:
                raise timed_out(self.settings.timeout_sec) from None
            yield held[0]
        finally:
            for service in held:
                service.release()

    async def _take(self, name: str | None) -> Service:
        """Held."""
        async with self._turns:
            loaded = self._loaded
            if loaded is None or name not in (None, loaded.name, f"{loaded.name}{_TAG}"):
                model = await asyncio.to_thread(self.find, name)
                if loaded is None or model.name != loaded.name:
                    loaded = await self._exchange(model)
            loaded.hold()
            return loaded

    async def _exchange(self, model: LibraryModel) -> Service:
        old = self._loaded
        if old is not None:
            await old.idle()
        self._loaded = None
        # whoever asked may leave: the thread goes on, and who comes next is behind it
        work = asyncio.get_running_loop().run_in_executor(self._exchanging, self._replace, old, model)
        return await asyncio.shield(work)

    def _replace(self, old: Service | None, model: LibraryModel) -> Service:
        for unused in (old, self._loaded):  # the latter by one whose client has left
            if unused is not None and unused.name == model.name:
                return unused
            if unused is not None:
                unused.llm.close()
        self._loaded = None
        try:
            assert self._load is not None
            llm = self._load(model.path)
        except SmallThinkerError as error:
            _log.error("%s: not loaded: %s", model.name, error)
            why = str(error) if isinstance(error, MemoryBudgetError) else "the server's log says why"
            message = f"model: {model.name} can't be loaded: {why}"
            raise ApiError(500, message, type="server_error", headers=DONT_REPEAT) from None
        if self._library is not None:
            self._library.mark_used(model.path)
        self._loaded = Service(llm, model.name, self.settings, self.bodies)
        return self._loaded

    def cancel(self) -> None:
        """Every answer that is being written or waits."""
        if self._loaded is not None:
            self._loaded.llm.cancel()

    def close(self) -> None:
        self._exchanging.shutdown()
        if self._loaded is not None:
            self._loaded.llm.close()
