"""A loaded model: opens a store, plans its memory, and runs prefill and decode steps.

Owns every resource of one model (files, I/O thread, thread pool, caches) and frees them on close. Knows nothing about
text or sampling; purely token ids in, logits out.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from smallthinker import _kernels, host
from smallthinker.arguments import path as path_argument
from smallthinker.arithmetic import Arithmetic
from smallthinker.cache.conversations import Conversation, Conversations
from smallthinker.cache.expert_cache import ExpertCache, allocate_slots
from smallthinker.cache.hot_set import LEAST_BYTES, load_hot_set, save_hot_set
from smallthinker.cache.policies import DEFAULT_POLICY
from smallthinker.cache.sequence_state import SequenceShape, SequenceState
from smallthinker.errors import ContextLengthError, RequestError
from smallthinker.expert_store.device.disk_profile import DiskProfile, shortfall
from smallthinker.expert_store.device.real_throttle import allowed_bytes_per_sec
from smallthinker.expert_store.device.storage_profile import load_profile
from smallthinker.expert_store.progress import silent
from smallthinker.expert_store.queues import open_queue, queue_bytes
from smallthinker.expert_store.store import Store
from smallthinker.forks import Home, StaysHere
from smallthinker.forward import ForwardPass, Observers, ignore, never
from smallthinker.host.memory_watch import MemoryWatch
from smallthinker.huge_pages import HugePages
from smallthinker.log import log
from smallthinker.lossy_head import HeadPredictor, LossyHead
from smallthinker.lossy_routing import RoutingCounters
from smallthinker.measures.profile import Clocks, Stopwatch, kernel_times
from smallthinker.memory_plan import (
    CHUNKS,
    MIB,
    choose_context,
    default_budget,
    most_at_once,
    parse_size,
    plan_again,
    plan_process,
    slots_at,
)
from smallthinker.models.supported import check_supported
from smallthinker.models.tensors import ROUTER, head_role
from smallthinker.options import EngineChanges, EngineOptions
from smallthinker.rotary import uses_long_factors
from smallthinker.router.look_ahead import LookAhead
from smallthinker.router.predictor import FINAL, find_predictor
from smallthinker.spare_memory import SpareMemory
from smallthinker.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from smallthinker.cache.saved_conversations import SavedConversations

# What a start from a cold page cache reads of Python's and the libraries' files, but never maps: up to 60 MiB seen.
LIBRARY_PAGES_BYTES = 128 * MIB
# Tokens that `verify` takes. More are more wrong ones than they save, and MANY_TOKENS are read for in another way.
MOST_VERIFIED = 13
# Steps after one that verified until experts get back what its scratch takes.
_VERIFYING_STEPS = 64
# Decoded tokens from which a run knows its hot experts well enough to leave word of them.
HOT_TOKENS = 64


class Engine(StaysHere):
    """One model, ready to compute. Not thread-safe but for `close`: one caller at a time. In a process that was forked
    from this one, `close` does nothing, and what needs threads raises ForkedError."""

    def __init__(
        self, path: str | Path, options: EngineOptions | None = None, **changes: Unpack[EngineChanges]
    ) -> None:
        """path: a store. changes: options by name, instead of those in `options` or the defaults.

        Raises StoreFormatError, ConfigError, TokenizerError, MemoryBudgetError, ContextLengthError, RequestError,
        StoreReadError or, for `storage`, ProfileError or, for `lossy_head`, CheckpointError.
        """
        began = time.perf_counter()
        # every argument before anything is opened or computed
        path_argument("path", path)
        options = EngineOptions.of(options, changes)
        self.options = replace(options, progress=silent)  # whose owner may own this engine: a cycle
        budget = None if options.memory is None else parse_size(options.memory)
        storage = options.storage
        self.storage = load_profile(storage) if isinstance(storage, (str, Path)) else storage
        before_tokenizer, peak_before = host.resident_bytes(), host.peak_memory_bytes()
        with ExitStack() as resources:
            store = resources.enter_context(Store.open(path))
            self.store, self.config = store, store.config
            if options.verify != "never":
                store.check_small_files()
            check_supported(store.config)
            SequenceShape.of(store.config, 1, 1, options.kv)  # what the model can't have is refused here
            self.tokenizer = Tokenizer(store.small_files, store.config.vocab_size, store)
            resident, peak = host.resident_bytes(), host.peak_memory_bytes()
            lossy = None if options.lossy_head is None else HeadPredictor(options.lossy_head, store.config)
            if lossy is not None:
                resources.callback(lossy.close)
            limit = host.memory_limit_bytes()
            if budget is None:
                budget = default_budget(host.held_bytes(), host.available_memory_bytes(), limit)
            budget = min(budget, limit or budget)  # more would end the process
            # no room for what Python's start left behind
            is_tight = limit is not None and limit < budget + LIBRARY_PAGES_BYTES
            if is_tight:
                host.drop_library_pages()
            # Where everything fits, each expert is read once: nothing to find out about the disk for.
            most = store.num_experts if options.max_slots is None else options.max_slots
            fits = most == store.num_experts and budget > store.dense_bytes + most * store.record_bytes
            from smallthinker.expert_store.device.probe import (  # 3 ms; `import LLM` does without
                emulated_profile,
                profile_of,
            )

            profile = real = DiskProfile() if fits else profile_of(store)
            if self.storage is not None:
                profile = emulated_profile(self.storage, store.record_bytes, real)
            self.disk_profile = profile  # `measured` is False where nobody asked the disk
            self.disk_bytes_per_sec_allowed = allowed_bytes_per_sec(path)  # by the kernel; None where it sets no limit
            self.storage_warning = None if self.storage is None else shortfall(self.storage, profile, real)
            look_ahead = options.look_ahead and options.prefetch
            ahead = find_predictor(store) if options.predictor and look_ahead and not fits else None
            extra = (lossy.packed_bytes if lossy is not None else 0) + (ahead.nbytes if ahead is not None else 0)
            self.plan = plan_process(
                store.config,
                budget_bytes=budget,
                context=choose_context(store.config, options.context),
                kv=options.kv,
                dense_bytes=store.dense_bytes,
                extra_bytes=extra,
                record_bytes=store.record_bytes,
                io_bytes=queue_bytes(store, profile),
                resident_bytes=before_tokenizer + options.reserved,
                tokenizer_bytes=resident - before_tokenizer,
                chunks=CHUNKS if options.chunk is None else (options.chunk,),
                max_slots=options.max_slots,
                sequences=options.sequences,
                starting_bytes=peak if peak > peak_before else 0,
            )
            self._spare = SpareMemory(self.plan.budget_bytes, store.record_bytes, self.plan.most_slots, most)
            slots = allocate_slots(self.plan.most_slots + self._spare.most, store.record_bytes)
            self._queue = open_queue(options.reader, store, slots, profile, self.storage, options.verify)
            resources.callback(self._queue.close)
            self.threads = options.threads or host.physical_cores()
            experts = self.config.experts_of_layers
            policy = DEFAULT_POLICY(experts, self.config.used_of_layers)
            self.experts = cache = ExpertCache(slots, self._queue, policy, experts)
            cache.resize(self.plan.most_slots)
            self._pool = pool = _kernels.ThreadPool(self.threads)
            self.isa: str = pool.isa
            self._shape = SequenceShape.of(self.config, self.plan.context, self.plan.chunk, options.kv)
            saved = None if options.kv_dir is None else self._saved_conversations(Path(options.kv_dir))
            # What is handed to others knows nothing of `self`: a cycle would keep all memory until it is collected.
            self._conversations = Conversations(partial(SequenceState, self._shape), options.sequences, saved)
            self._current: Conversation | None = None
            self._huge_pages = HugePages(self.experts)
            resources.callback(self._huge_pages.close)
            store.load_dense(
                progress=options.progress,
                storage=self.storage,
                reserved=self._huge_pages.go_ahead,
                verify=options.verify != "never",
            )
            if is_tight:
                host.drop_library_pages()  # once more: what was still being read ahead the first time
            self.lossy_head: LossyHead | None = None
            if lossy is not None:
                role = head_role(self.config)
                head: npt.NDArray[Any] = store.dense(role)
                quant = store.formats.of(role, None)
                self.lossy_head = LossyHead(lossy, pool, self.config, quant, head, options.lossy_threshold)
            predictors = {} if ahead is None or self.plan.most_slots == store.num_experts else ahead.load()
            exact = None if self.lossy_head is None else self.lossy_head.logits
            routing = options.lossy_routing
            self._arithmetic = Arithmetic(store, pool, cache.slots, predictors, exact, self.plan.context, routing)
            look: LookAhead | None = None
            if look_ahead and self.plan.most_slots < store.num_experts:
                k = self.config.experts_per_token
                look = LookAhead(
                    self.config.num_layers,
                    k,
                    next_token=(FINAL, 0) in predictors,
                    certain=self.config.certain_layers,
                    own=self.config.layers_that_mix_first,
                )
            self._forward = ForwardPass(
                self._arithmetic, cache, self.config.num_layers, look_ahead=look, prefetch=options.prefetch
            )
            self._watch = MemoryWatch(
                lambda: cache.taken,
                fewest=self.config.experts_per_token,
                most=len(slots),
                record_bytes=store.record_bytes,
                overhead_bytes=self.plan.interpreter_bytes - before_tokenizer,
            )
            resources.callback(self._watch.close)
            total_bytes = store.num_experts * store.record_bytes
            self._learns = options.hot_set and self.plan.most_slots < store.num_experts and total_bytes >= LEAST_BYTES
            hot = load_hot_set(store) if self._learns else None
            if hot is not None:
                policy.restore(hot)
                # as many as stay during a prompt of a usual chunk; the first layers first: it wants those first
                stay = slots_at(self.plan, self.config, store.record_bytes, self.plan.kv_bytes, CHUNKS[0])
                likeliest = np.argsort(-hot, kind="stable")[: min(stay, self.plan.most_slots)]
                self.experts.preload(np.sort(likeliest).tolist())
            self._resources = resources.pop_all()
        self._observers = Observers()
        self._shared: tuple[tuple[int, ...], int, int] = ((), 0, self._watch.target)
        self._planned_slots = self.plan.most_slots  # beside the contexts and the scratch of the last step
        self.least_slots = self.plan.most_slots
        self._computing, self._computed_tokens, self._decoded_tokens = Stopwatch(), 0, 0
        self.most_verified = 1 if options.is_lossy else most_at_once(self.plan, self.config, MOST_VERIFIED)
        self._since_verified = _VERIFYING_STEPS
        self.load_sec = time.perf_counter() - began
        log(
            "info", "loaded %s in %.1f s, %d of %d experts", path, self.load_sec, self.plan.slots, self.plan.num_experts
        )
        if self.storage_warning is not None:
            log("warning", "%s", self.storage_warning)
        self._home, self._closing, self._closed = Home(), threading.RLock(), False

    @property
    def pool(self) -> _kernels.ThreadPool:
        """The threads of the arithmetic, for whoever computes with the engine's states between two steps. Raises
        RequestError once they have ended."""
        if self._closed:
            raise RequestError("this model is closed")
        return self._pool

    def _saved_conversations(self, folder: Path) -> SavedConversations:
        from smallthinker.cache.saved_conversations import SavedConversations, model_key

        rotary = " long" if uses_long_factors(self.config, self.plan.context) else ""
        routing = f" {self.options.lossy_routing}" if self.options.lossy_routing else ""
        model = model_key(self.store, self.isa, self._shape, rotary + routing)
        max_bytes = parse_size(self.options.kv_dir_bytes)
        return SavedConversations(folder, model, self._shape, self.plan.context, self.config.vocab_size, max_bytes)

    @property
    def reader_name(self) -> str:
        return self._queue.name

    @property
    def kv_bytes(self) -> int:
        """Of the planned KV caches, what is taken by positions that have been computed. From any thread."""
        return sum(self._shape.touched_bytes(opened.state.touched_after(0)) for opened in self._conversations)

    def check_fits(self, prompt_tokens: int, new_tokens: int) -> None:
        """Raises ContextLengthError when prompt and answer together exceed the planned context."""
        if prompt_tokens + new_tokens > self.plan.context:
            new = f" and up to {new_tokens} new ones" if new_tokens else ""
            ways = ["a shorter prompt"] + (["a smaller `max_tokens`"] if new_tokens else [])
            if self.plan.context < self.config.context:
                ways.append(f"a larger `context` (this model takes up to {self.config.context})")
            raise ContextLengthError(
                f"context: {prompt_tokens} prompt tokens{new} don't fit the planned {self.plan.context}; "
                f"give {', '.join(ways[:-1])}{' or ' if ways[1:] else ''}{ways[-1]}"
            )

    def check_prompt(self, tokens: Sequence[int]) -> None:
        """Raises RequestError for no tokens or an id outside the vocabulary, ContextLengthError for too many."""
        if not tokens:
            raise RequestError("prompt: expected at least one token, found none")
        bad = next((t for t in tokens if not 0 <= t < self.config.vocab_size), None)
        if bad is not None:
            raise RequestError(f"prompt: token id {bad} is outside the vocabulary of {self.config.vocab_size}")
        self.check_fits(len(tokens), 0)

    def open(self, prompt: Sequence[int], *, anew: bool = False) -> tuple[Conversation, int]:
        """A conversation for a prompt that `check_prompt` has passed, to be handed to `step` and in the end to `keep`;
        and how many of the prompt's tokens it holds already: none if it is to begin anew. At most `plan.sequences` may
        be open."""
        return self._conversations.open(() if anew else prompt)

    def keep(self, conversation: Conversation) -> None:
        """It ends here. A later prompt that begins like it computes only what is new."""
        self._conversations.keep(conversation)

    def discard(self, conversation: Conversation) -> None:
        """It ends here, and nobody will go on with it: the next to make room."""
        conversation.rewind(0)
        self._conversations.keep(conversation)
        conversation.last_used = 0

    def step(
        self,
        spans: Sequence[tuple[Conversation, Sequence[int]]],
        *,
        cancelled: Callable[[], bool] = never,
        on_layer: Callable[[int], None] = ignore,
        on_states: Callable[[npt.NDArray[np.float32]], None] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Append tokens to open conversations, each another, all in one step -> logits [conversations, V] after the
        last of each, the same bits as in a step of its own.

        A conversation gets at most `plan.chunk` tokens, all together as many or one for each. on_layer: as in
        `ForwardPass.step`. on_states: shown the states [T, d] of all tokens behind the final norm.

        Raises CancelledError when `cancelled()` turns true (nothing has been appended then), StoreReadError. A number
        beyond the KV cache's range is no error here, where it would be one for the others: `SequenceState.check_range`
        tells.
        """
        self._home.check()
        tokens = sum(len(new) for _, new in spans)
        with self._computing, self._shown(on_states):
            self._share_memory(spans, tokens)
            logits = self._forward.step([(c.state, new) for c, new in spans], cancelled=cancelled, on_layer=on_layer)
        for conversation, new in spans:
            conversation.extend(new)
        self._computed_tokens += tokens
        if tokens == len(spans):
            self._decoded_tokens += tokens
            if self._spare.look(self._decoded_tokens, self.experts.taken, self._planned_slots):
                self._shared = (), 0, -1
        return logits

    def set_aside(self, nbytes: int) -> None:
        """Leave so much more of the budget to the application from now on; experts give way at once. Between two steps.
        Raises MemoryBudgetError, and nothing has changed."""
        self._home.check()
        self.plan = plan_again(
            self.plan,
            self.config,
            more_bytes=nbytes,
            kv=self.options.kv,
            record_bytes=self.store.record_bytes,
            max_slots=self.options.max_slots,
        )
        self._shared = (), 0, -1
        self._share_memory((), 0)

    def verify(
        self, conversation: Conversation, tokens: Sequence[int], *, cancelled: Callable[[], bool] = never
    ) -> npt.NDArray[np.float32]:
        """Compute tokens of which only the first is certain, at most `most_verified` -> logits [T, V] after each, the
        same bits as in `step`. Nothing has been appended until `accept`, which must follow, says which were right.

        Raises CancelledError, StoreReadError, after which nothing is to be accepted.
        """
        self._home.check()
        with self._computing:
            self._since_verified = 0
            self._share_memory([(conversation, tokens)], len(tokens))
            return self._forward.step([(conversation.state, tokens)], all_logits=True, held=True, cancelled=cancelled)

    def accept(self, conversation: Conversation, tokens: Sequence[int]) -> None:
        """Append these, the first of those that `verify` has computed; the others leave nothing behind. None, where a
        number is beyond the KV cache's range: `step` tells of which token."""
        conversation.state.take_back(len(conversation.tokens) + len(tokens))
        conversation.extend(tokens)
        self._forward.keep(len(tokens))
        self._computed_tokens += len(tokens)
        self._decoded_tokens += len(tokens)

    def prefill(
        self, tokens: Sequence[int], *, cancelled: Callable[[], bool] = never
    ) -> tuple[npt.NDArray[np.float32], int]:
        """For a caller with one conversation: make its KV cache hold exactly these tokens -> logits [V] after the last,
        and how many were held already.

        Continues from the longest beginning that is held, so a conversation's next turn computes only what is new.
        Raises RequestError for no tokens or an id outside the vocabulary, ContextLengthError, CancelledError.
        """
        self._home.check()
        self.check_prompt(tokens)
        self._leave()
        self._current, reused = self.open(tokens)
        logits = np.empty(0, np.float32)
        for at in range(reused, len(tokens), self.plan.chunk):
            logits = self.step([(self._current, tokens[at : at + self.plan.chunk])], cancelled=cancelled)[0]
            self._current.state.check_range()
        return logits, reused

    def decode(self, token: int, *, cancelled: Callable[[], bool] = never) -> npt.NDArray[np.float32]:
        """Append one token to what `prefill` began -> logits [V] of the next. Raises ContextLengthError when the
        context is full, RequestError before any prefill."""
        if self._current is None:
            raise RequestError("decode: nothing to continue; prefill a prompt first")
        self.check_fits(len(self._current.tokens), 1)
        logits: npt.NDArray[np.float32] = self.step([(self._current, [token])], cancelled=cancelled)[0]
        self._current.state.check_range()
        return logits

    def all_logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits [T, V] at every position of a fresh sequence, for evaluation."""
        self._home.check()
        self.check_fits(len(tokens), 0)
        self.forget()
        self._current, _ = self.open(tokens)
        state, size = self._current.state, self.plan.chunk
        chunks = [tokens[at : at + size] for at in range(0, len(tokens), size)]
        logits = [self._forward.step([(state, chunk)], all_logits=True) for chunk in chunks]
        state.check_range()
        self.forget()
        return np.concatenate(logits)

    def forget(self) -> None:
        """Empty every conversation that is kept: the next prefill computes every token."""
        self._leave()
        self._conversations.forget()

    def _leave(self) -> None:
        if self._current is not None:
            self.keep(self._current)
            self._current = None

    def observe(self, observers: Observers | None) -> None:
        """Show these what is computed from now on; None ends that."""
        self._observers = observers or Observers()
        self._forward.observe(self._observers)

    @contextmanager
    def _shown(self, on_states: Callable[[npt.NDArray[np.float32]], None] | None) -> Iterator[None]:
        """Within, the final states are shown as the head takes them."""
        if on_states is None:
            yield
            return
        others, normed = self._observers.final or ignore, self._arithmetic.normed

        def final(x: npt.NDArray[np.float32]) -> None:
            others(x)
            on_states(normed(x))

        self._forward.observe(self._observers._replace(final=final))
        try:
            yield
        finally:
            self._forward.observe(self._observers)

    def router_weights(self, layer: int) -> npt.NDArray[np.float32]:
        """The router's matrix [E, d] of a layer."""
        packed: npt.NDArray[Any] = self.store.dense(f"layers.{layer}.router")
        experts = self.config.layers[layer].router.experts
        quant = self.store.formats.of(ROUTER, layer)
        return _kernels.unpack(quant, "tiles", packed, experts, self.config.hidden_size)

    def router_of_states(self, layer: int) -> npt.NDArray[np.float32]:
        """The same as the state has it: times the weights of the norm that stands between state and router."""
        found = self.config.layers[layer]
        assert found.ffn is not None and found.ffn.router is not None
        norm, role = found.ffn.router.norm, "router_norm"
        if norm is None and found.ffn.router.reads == "ffn_input":
            norm, role = found.norms.before_ffn, "post_attention_layernorm"
        weights = self.router_weights(layer)
        if norm is None or not norm.has_weight:
            return weights
        weights *= self.store.dense(f"layers.{layer}.{role}") + np.float32(norm.plus_one)
        return weights

    def _share_memory(self, spans: Sequence[tuple[Conversation, Sequence[int]]], tokens: int) -> None:
        """Give the experts what the KV caches and the scratch of this step leave, or take it back from them; and to the
        system what it runs short of."""
        target = self._watch.target
        if self.plan.most_slots == self.plan.slots and target == self._shared[2]:
            return
        new = {id(conversation): len(added) for conversation, added in spans}
        groups = tuple(
            conversation.state.touched_after(new.get(id(conversation), 0)) // _kernels.KV_GROUP
            for conversation in self._conversations
        )
        # answers come and go; the scratch of a few tokens is nothing
        self._since_verified += 1
        rows = self.most_verified if self._since_verified < _VERIFYING_STEPS else 1
        tokens = max(tokens, self.plan.sequences, rows)
        if (groups, tokens, target) == self._shared:
            return
        if tokens < self._shared[1]:  # a prompt's scratch is no longer needed
            self._arithmetic.release_scratch()
            host.trim_heap()
        kv_bytes = sum(self._shape.touched_bytes((n + 1) * _kernels.KV_GROUP) for n in groups)
        planned = slots_at(self.plan, self.config, self.store.record_bytes, kv_bytes, tokens, rows)
        self._planned_slots = min(planned, self.plan.most_slots)
        limit = min(self._planned_slots + self._spare.slots, target)
        self.experts.resize(limit)
        self.least_slots = min(self.least_slots, self.experts.limit)
        # where a guess kept its slot, the next step tries again
        self._shared = groups, tokens, target if self.experts.limit == limit else -1

    def clocks(self) -> Clocks:
        """Time and tokens of all prefill and decode steps so far; subtract two readings."""
        kernels = kernel_times(_kernels.timings(), self._pool.timings())
        return Clocks(self._computed_tokens, self._computing.sec, self.experts.counters().stall_sec, kernels)

    def routing_counters(self) -> RoutingCounters | None:
        """None where the routing is exact."""
        return self._arithmetic.routing_counters() if self.options.lossy_routing else None

    def neuron_counts(self) -> tuple[int, int]:
        """Of the chosen experts' neurons so far: how many ReLU let through, and how many there were."""
        return self._arithmetic.live_neurons, self._arithmetic.neurons

    def close(self) -> None:
        """Stop the threads, close the files, free the memory. May be called again, from any threads at once."""
        if not self._home.is_here:
            return
        with self._closing:
            if self._closed:
                return
            self._closed = True
            log("info", "closing %s", self.store.path)
            try:
                if self._learns and self._decoded_tokens >= HOT_TOKENS:
                    save_hot_set(self.store, self.experts.hot_experts())
                self._conversations.save()
            finally:
                self._resources.close()
                self.lossy_head = None
                # and with them every view of the weights, and the arithmetic's threads
                del self._forward, self._arithmetic, self._pool
                self.experts.free()
                self._conversations.free()

    def __del__(self) -> None:
        # nothing is learned or saved: whoever wants that closes
        if vars(self).get("_closed", True) or not self._home.is_here:  # none where the constructor raised
            return
        self._closed = True
        try:
            what = "an Engine was dropped and not closed: use it in a with block"
            warnings.warn(what, ResourceWarning, stacklevel=2, source=self)
        finally:
            self._resources.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
