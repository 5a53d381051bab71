"""What the server's own schemas say, tried by schemathesis: statuses, types and shapes of whatever it answers.

    python tests/nightly/api.py SCHEMATHESIS [--examples 200]

SCHEMATHESIS: the program, of an environment of its own (`pip install schemathesis`): it brings a framework that nothing
here needs. The server is the demo's, in this process; the document is made of the classes that check requests.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pydantic.json_schema import models_json_schema

from smallthinker import LLM
from smallthinker.server import schemas
from smallthinker.server.ollama import schemas as ollama

POSTS = {
    "/v1/chat/completions": schemas.ChatRequest,
    "/v1/completions": schemas.CompletionRequest,
    "/v1/responses": schemas.ResponsesRequest,
    "/v1/embeddings": schemas.EmbeddingRequest,
    "/v1/tokenize": schemas.TokenizeRequest,
    "/api/chat": ollama.ChatRequest,
    "/api/generate": ollama.GenerateRequest,
    "/api/embed": ollama.EmbedRequest,
    "/api/embeddings": ollama.EmbeddingsRequest,
    "/api/show": ollama.ShowRequest,
}
GETS = ("/v1/models", "/v1/models/demo", "/api/tags", "/api/ps", "/api/version", "/health", "/metrics", "/api/stats")
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
STREAMS = {"/v1": "text/event-stream", "/api": "application/x-ndjson"}
ERROR = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {
                "message": {"type": "string", "minLength": 1, "maxLength": 1000},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
OLLAMA_ERROR = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {"error": {"type": "string", "minLength": 1, "maxLength": 1000}},
}


def document() -> dict[str, Any]:
    """OpenAPI, of the requests in full and of answers what all have in common."""
    names, found = models_json_schema(
        [(model, "validation") for model in POSTS.values()], ref_template="#/components/schemas/{model}"
    )
    definitions = found["$defs"]
    for definition in definitions.values():  # an answer that comes too late is a 504, which isn't what is looked for
        definition.get("properties", {}).pop("timeout", None)
    paths: dict[str, Any] = {}
    for path, model in POSTS.items():
        body = {"required": True, "content": {"application/json": {"schema": names[model, "validation"]}}}
        paths[path] = {"post": {"requestBody": body, "responses": responses(path, 400, 404, 413)}}
    for path in GETS:
        paths[path] = {"get": {"responses": responses(path)}}
    info = {"title": "smallthinker", "version": "1"}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": definitions}}


def responses(path: str, *refusals: int) -> dict[str, Any]:
    root = path[: path.index("/", 1)] if path.count("/") > 1 else path
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if path == "/metrics":
        content = {"text/plain": {}}
    elif refusals and root in STREAMS:
        content[STREAMS[root]] = {}
    error = OLLAMA_ERROR if root == "/api" else ERROR
    found: dict[str, Any] = {"200": {"description": "an answer", "content": content}}
    for status in refusals:
        found[str(status)] = {"description": "refused", "content": {"application/json": {"schema": error}}}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Tries the server against the schemas of its requests.")
    parser.add_argument("schemathesis", help="the program")
    parser.add_argument("--examples", type=int, default=200, metavar="N", help="of each operation and phase")
    parser.add_argument("--phases", default="examples,coverage,fuzzing")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    sys.path[:0] = [str(Path(__file__).parents[1] / "server")]
    from running import serving

    with tempfile.TemporaryDirectory() as name, LLM(context=64, threads=1, sequences=2) as llm, serving(llm) as server:
        path = Path(name) / "openapi.json"
        path.write_text(json.dumps(document()))
        command = [args.schemathesis, "run", str(path), "--url", server.url, "--checks", CHECKS]
        command += [
            "--phases",
            args.phases,
            "--max-examples",
            str(args.examples),
            "--seed",
            str(args.seed),
            "--continue-on-failure",
        ]
        ended = subprocess.run([*command, "--request-timeout", "60"], cwd=name, check=False)
        status = server.http.get("/health").json()
    print(json.dumps({"exit": ended.returncode, "health": status}))
    sys.exit(ended.returncode)


if __name__ == "__main__":
    main()
