"""POST /v1/completions: text, or token ids, continued as they are, without a chat template."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from smallthinker.arguments import token_ids
from smallthinker.generation.answer import Completion, Finished, Token, TokenLogprobs
from smallthinker.server.access.clients import client_of
from smallthinker.server.answers import Answers, PromptRead, WantedAnswer, respond, unless_gone, with_seeds
from smallthinker.server.errors import bad_request, end_of_stream
from smallthinker.server.models import Models
from smallthinker.server.openai.logprobs import finite, token_text
from smallthinker.server.openai.usage import Usage, timings
from smallthinker.server.prompts import encode
from smallthinker.server.sampling.options import choices, generation_params, processor_maker
from smallthinker.server.schemas import CompletionRequest
from smallthinker.server.service import Service
from smallthinker.server.sse import DONE, PING, event
from smallthinker.text.tokenizer import Tokenizer

# The protocol's own, as other servers have it, too.
DEFAULT_MAX_TOKENS = 16


async def completions(request: Request) -> Response:
    models: Models = request.app.state.models
    client = client_of(request.scope)
    async with models.bodies.read(request, CompletionRequest) as asked, models.using(request, asked.model) as service:
        texts = await unless_gone(request, service.prepare(client, _prepare, service, asked))
        answers = Answers(
            service, texts.asked, service.timeout(asked.timeout), client, tells_progress=asked.return_progress
        )
    return await respond(request, answers, texts, stream=asked.stream)


def _prepare(service: Service, asked: CompletionRequest) -> _Texts:
    """On a worker thread. Raises ApiError and SmallThinkerErrors."""
    llm, limits = service.llm, service.settings.limits
    n = choices(asked, limits)
    if asked.echo and asked.logprobs is not None:
        raise bad_request("echo: not together with logprobs: a prompt's are not computed", "echo")
    prompts = _prompts(asked)
    if not 1 <= len(prompts) <= limits.prompts or len(prompts) * n > limits.choices:
        raise bad_request(f"prompt: at most {limits.prompts} are taken, and {limits.choices} answers", "prompt")
    make_processor = processor_maker(asked, llm, limits, None)
    wanted: list[WantedAnswer] = []
    echoes: list[str] = []
    for prompt in prompts:
        if isinstance(prompt, str):
            ids = encode(llm, prompt, special_tokens=asked.special_tokens, is_prompt=True)
        else:
            ids = token_ids("prompt", prompt)
        params = generation_params(
            asked.model_dump(),
            limits,
            prompt_tokens=len(ids),
            context=llm.plan.context,
            max_tokens=asked.max_tokens or DEFAULT_MAX_TOKENS,
        )
        wanted += with_seeds(WantedAnswer(ids, params, asked.logprobs, make_processor), n)
        echo = "" if not asked.echo else prompt if isinstance(prompt, str) else llm.tokenizer.decode(ids)
        echoes += [echo] * n
    usage_wanted = asked.stream_options is not None and asked.stream_options.include_usage
    return _Texts(service, wanted, n, echoes, usage_wanted)


def _prompts(asked: CompletionRequest) -> list[str | list[int]]:
    """Those of a request: one text, several, or the same as token ids."""
    prompt = asked.prompt
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):
        return [[id for id in prompt if isinstance(id, int)]]
    return [one for one in prompt if not isinstance(one, int)]


@dataclass
class _Texts:
    """One request, ready to be answered: `n` answers to each prompt, one prompt after the other."""

    service: Service
    asked: Sequence[WantedAnswer]
    n: int
    echoes: Sequence[str]
    usage_wanted: bool

    def __post_init__(self) -> None:
        self._id, self._created = f"cmpl-{secrets.token_hex(12)}", int(time.time())

    async def whole(self, answers: Answers) -> dict[str, Any]:
        found: dict[int, Completion] = {}
        async for item in answers:
            if isinstance(item, tuple) and isinstance(item[1], Finished):
                found[item[0]] = item[1].completion
        choices = [
            self._choice(number, self.echoes[number] + done.text, _reason(done), done.logprobs, 0)
            for number, done in sorted(found.items())
        ]
        usage = self._usage(found).to_dict()
        return self._head() | {"choices": choices, "usage": usage, "timings": timings(found[0].stats)}

    async def stream(self, answers: Answers) -> AsyncIterator[bytes]:
        found: dict[int, Completion] = {}
        lengths = [len(echo) for echo in self.echoes]
        waiting: list[list[TokenLogprobs]] = [[] for _ in self.asked]  # of tokens whose text hasn't come yet
        try:
            for number, echo in enumerate(self.echoes):
                if echo:
                    yield self._chunk(number, echo)
            async for item in answers:
                if not isinstance(item, tuple):
                    yield PING if item is None else self._progress(item)
                    continue
                number, event_ = item
                if isinstance(event_, Token) and event_.logprobs is not None:
                    waiting[number].append(event_.logprobs)
                reason = None
                if isinstance(event_, Finished):
                    found[number] = event_.completion
                    reason = _reason(event_.completion)
                if event_.text or reason is not None:
                    logprobs, waiting[number] = waiting[number], []
                    yield self._chunk(number, event_.text, reason, logprobs or None, lengths[number])
                    lengths[number] += len(event_.text)
            if self.usage_wanted:
                last = {"choices": [], "usage": self._usage(found).to_dict(), "timings": timings(found[0].stats)}
                yield event(self._head() | last)
            yield DONE
        except Exception as error:
            yield event(end_of_stream(error))

    def _usage(self, found: dict[int, Completion]) -> Usage:
        """Each prompt counts once."""
        usage = Usage(0, 0, 0, 0)
        for first in range(0, len(self.asked), self.n):
            usage += Usage.of([found[number] for number in range(first, first + self.n)])
        return usage

    def _progress(self, read: PromptRead) -> bytes:
        said = {"choices": [], "prompt_progress": read.to_dict()}
        return event(self._head() | said | ({"usage": None} if self.usage_wanted else {}))

    def _chunk(
        self,
        number: int,
        text: str,
        reason: str | None = None,
        logprobs: Sequence[TokenLogprobs] | None = None,
        offset: int = 0,
    ) -> bytes:
        chunk = self._head() | {"choices": [self._choice(number, text, reason, logprobs, offset)]}
        return event(chunk | {"usage": None} if self.usage_wanted else chunk)

    def _choice(
        self, number: int, text: str, reason: str | None, logprobs: Sequence[TokenLogprobs] | None, offset: int
    ) -> dict[str, Any]:
        shown = None if logprobs is None else _legacy_logprobs(self.service.llm.tokenizer, logprobs, offset)
        return {"index": number, "text": text, "finish_reason": reason, "logprobs": shown}

    def _head(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self.service.name,
        }


def _legacy_logprobs(tokenizer: Tokenizer, logprobs: Sequence[TokenLogprobs], offset: int) -> dict[str, Any]:
    """This endpoint's form: four lists side by side. Of several tokens with the same text, the likeliest is shown."""
    texts = [token_text(tokenizer, token.id) for token in logprobs]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    tops = [{token_text(tokenizer, id): finite(p) for id, p in reversed(token.top)} for token in logprobs]
    return {
        "tokens": texts,
        "token_logprobs": [finite(token.logprob) for token in logprobs],
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def _reason(completion: Completion) -> str:
    return "length" if completion.finish_reason == "length" else "stop"
