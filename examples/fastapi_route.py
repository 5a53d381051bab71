"""A model inside your own FastAPI application: one route that streams, one that answers whole.

pip install fastapi uvicorn
uvicorn --app-dir examples fastapi_route:app
curl -N http://127.0.0.1:8000/stream -H 'Content-Type: application/json' -d '{"text": "Who is there?"}'
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field

from smallthinker import AsyncLLM, QueueFullError, SmallThinkerError


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the model when the application starts, free everything when it ends."""
    store = os.environ.get("MODEL")  # a folder made by `smallthinker convert`; the demo model without one
    async with await AsyncLLM.load(store, memory=os.environ.get("MEMORY", "1GiB"), sequences=2) as app.state.llm:
        yield


app = FastAPI(lifespan=lifespan)


class Question(BaseModel):
    text: str = Field(max_length=4000)
    max_tokens: int = Field(default=200, ge=1, le=1000)
    temperature: float = Field(default=0.8, ge=0)


def options(question: Question) -> dict[str, float]:
    return question.model_dump(include={"max_tokens", "temperature"})


@app.exception_handler(SmallThinkerError)
async def explain(request: Request, error: SmallThinkerError) -> JSONResponse:
    """Too long a question, too many at once: one clear line each."""
    return JSONResponse({"detail": str(error)}, 503 if isinstance(error, QueueFullError) else 400)


@app.post("/ask")
async def ask(question: Question, request: Request) -> dict[str, object]:
    messages = [{"role": "user", "content": question.text}]
    completion = await request.app.state.llm.chat(messages, **options(question))
    return {"text": completion.text, "tokens": len(completion.token_ids), "finish_reason": completion.finish_reason}


@app.post("/stream")
async def stream(question: Question, request: Request) -> StreamingResponse:
    messages = [{"role": "user", "content": question.text}]
    answer = request.app.state.llm.stream(messages, **options(question))  # refuses bad requests here, before the 200

    async def pieces() -> AsyncIterator[str]:
        async with answer:  # left when the client goes away, too: the rest is then not computed
            async for piece in answer:
                yield piece

    return StreamingResponse(pieces(), media_type="text/plain; charset=utf-8")
