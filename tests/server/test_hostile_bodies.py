"""Whatever a client sends: a 4xx in the protocol's shape, never a 500, never a trace; and the server goes on."""

from __future__ import annotations

import contextlib
import json
import select
import socket
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import NAME, PATIENCE_SEC, Running, eventually, is_idle, serving

from smallthinker import LLM
from smallthinker.server.body import parse
from smallthinker.server.errors import ApiError
from smallthinker.server.schemas import ChatRequest, CompletionRequest, ResponsesRequest, TokenizeRequest
from smallthinker.server.settings import Limits, Settings

PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/tokenize"]
NUMBER = b"9" * 5000


def post(server: Running, path: str, body: bytes) -> httpx.Response:
    return server.http.post(path, content=body)


def assert_refused(response: httpx.Response) -> dict[str, Any]:
    assert 400 <= response.status_code < 500, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and error["type"] and len(error["message"]) < 1000
    assert "Traceback" not in response.text and ".py" not in response.text
    return error


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "x", "temperature": NaN}',
        b'{"prompt": "x", "temperature": Infinity}',
        b'{"prompt": "x", "temperature": 1e999}',
        b'{"prompt": "x", "temperature": "1"}',
        b'{"prompt": "x", "max_tokens": 1.5}',
        b'{"prompt": "x", "max_tokens": true}',
        b'{"prompt": "x", "max_tokens": ' + NUMBER + b"}",
        b'{"prompt": "x", "seed": ' + NUMBER[:4000] + b"}",
        b'{"prompt": "x", "stream": "yes"}',
        b'{"prompt": {"a": 1}}',
        b'{"prompt": [[1, "a"]]}',
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"messages": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
        b'{"messages": [{"role": "user", "content": 1}]}',
        b'{"input": 5}',
        b'{"\\u0000": 1}',
        b'{"\\ud800": 1}',
        b'{"prompt": "x", "metadata": {"\\udfff": "x"}, "unknown": 1}',
        b'{"prompt": "x", "prompt": "y"}',
        b'{"messages": [{"role": "user", "content": "x", "content": "y"}]}',
        b'{"input": "x", "metadata": {"a": "b", "a": "b"}}',
        b'{"prompt": "x", "max_tokens": 1e5}',
        b'{"prompt": [1e0]}',
        b'{"prompt": [-1]}',
        b'{"prompt": [-1], "echo": true}',
        b'{"prompt": [[1], [' + b"9" * 12 + b'], [73574173695716474880]], "echo": true}',
        b'{"prompt": [' + b"9" * 400 + b"]}",
        b'{"prompt": "x", "top_k": ' + b"9" * 400 + b"}",
        b'{"prompt": "x", "temperature": ' + b"9" * 400 + b"}",
        b'{"prompt": "x", "timeout": ' + b"9" * 400 + b"}",
        b'{"prompt": "x", "logit_bias": {"1": ' + b"9" * 400 + b"}}",
        b'{"prompt": "x", "temperature": -1' + b"0" * 5000 + b".5}",
        b"\xef\xbb\xbf{}",
        '{"prompt": "x"}'.encode("utf-16"),
    ],
)
def test_a_broken_body_is_refused(server: Running, path: str, body: bytes) -> None:
    assert_refused(post(server, path, body))


def test_a_schema_with_numbers_that_are_none_is_refused(server: Running) -> None:
    for number in (b"NaN", b"1e999", b"-9223372036854775808"):
        body = b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 4, "response_format": '
        body += b'{"type": "json_schema", "json_schema": {"name": "x", "schema": {"minimum": ' + number + b"}}}}"
        assert_refused(post(server, "/v1/chat/completions", body))


# stands for one of more digits than Python reads or writes
LONG_NUMBER = 123456789123456789
NASTY = st.sampled_from(
    [1e-320, 1e-300, 1e-38, 1e300, 0.5, 10**18, 2**63, 2**64, -(2**64), 10**100, 10**399, -(10**399), LONG_NUMBER,
     1e308, -0.0, "", "\x00", "\ud800", "a\udfff", "\ud83d\ude00", "9" * 5000, [], {}, [[]], {"\ud800": 1}, {"": ""}]
)  # fmt: skip
JSON = st.recursive(
    NASTY | st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
SCHEMAS = (ChatRequest, CompletionRequest, ResponsesRequest, TokenizeRequest)
FIELDS = st.sampled_from(sorted({name for schema in SCHEMAS for name in schema.model_fields}))
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2},
    "/v1/completions": {"prompt": "x", "max_tokens": 2},
    "/v1/responses": {"input": "x", "max_output_tokens": 2},
    "/v1/tokenize": {"prompt": "x"},
}


def written(value: Any) -> bytes:
    """As JSON, with a number of more digits than Python writes in place of one it does."""
    return json.dumps(value).replace(str(LONG_NUMBER), "1" * 5000).encode()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(PATHS), changes=st.dictionaries(FIELDS, JSON, min_size=1, max_size=3))
def test_any_values_in_any_fields_give_an_answer_or_a_refusal(
    server: Running, path: str, changes: dict[str, Any]
) -> None:
    body = written(GOOD[path] | changes)
    response = post(server, path, body)
    if response.status_code == 504:
        assert isinstance(changes.get("timeout"), float)  # so it was asked for
    elif response.status_code != 200:
        assert_refused(response)


@pytest.mark.parametrize(
    "options",
    [
        {"repeat_penalty": 1e-300},
        {"repeat_penalty": 1e-38},
        {"temperature": 1e-320},
        {"temperature": 100, "repeat_penalty": 1e300, "top_k": 0, "top_p": 1e-300},
    ],
)
def test_extremes_of_sampling_are_answered(server: Running, options: dict[str, Any]) -> None:
    body = {"prompt": "x" * 20, "max_tokens": 3, "seed": 1} | options
    assert httpx.post(f"{server.url}/v1/completions", json=body).status_code == 200


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    message=st.dictionaries(
        st.sampled_from(["role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "annotations"]),
        JSON,
        max_size=3,
    )
)
def test_any_values_in_a_message_give_an_answer_or_a_refusal(server: Running, message: dict[str, Any]) -> None:
    said = {"role": "user", "content": "x"} | message
    chat = written({"messages": [said], "max_tokens": 1})
    responses = written({"input": [said], "max_output_tokens": 1})
    for path, body in (("chat/completions", chat), ("responses", responses)):
        response = post(server, f"/v1/{path}", body)
        if response.status_code != 200:
            assert_refused(response)


@pytest.mark.parametrize("depth", [10, 100, 254, 255, 256, 500, 900, 1000, 5000])
def test_however_deep_a_value_is_it_is_taken_or_refused(server: Running, depth: int) -> None:
    for inner in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
        for field in (
            '"metadata": {"a": %s}',
            '"chat_template_kwargs": {"a": %s}',
            '"messages": [{"role": "user", "content": "x", "annotations": [%s]}]',
            '"messages": [{"role": "user", "content": %s}]',
            '"tools": [{"type": "function", "function": {"name": "f", "parameters": {"default": %s}}}]',
            '"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"default": %s}}}',
        ):
            body = '{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, ' + field % inner + "}"
            if field.startswith('"messages'):
                body = '{"max_tokens": 1, ' + field % inner + "}"
            response = post(server, "/v1/chat/completions", body.encode())
            if response.status_code != 200:
                assert_refused(response)
        item = '{"input": [{"type": "reasoning", "content": [' + inner + ']}, {"role": "user"}]}'
        response = post(server, "/v1/responses", item.encode())
        if response.status_code != 200:
            assert_refused(response)


def test_a_key_that_is_there_twice_among_very_many_is_found_at_once() -> None:
    keys = [f'"{number}":1' for number in range(80_000)]
    with pytest.raises(ApiError, match="twice"):
        parse(("{" + ",".join([*keys, keys[-1]]) + "}").encode(), TokenizeRequest)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(PATHS), body=st.binary(max_size=200))
def test_any_bytes_are_refused(server: Running, path: str, body: bytes) -> None:
    assert_refused(post(server, path, body))


def test_what_is_no_path_and_no_method_is_told_in_the_same_shape(server: Running) -> None:
    for method, path in (("GET", "/v1/nothing"), ("GET", "/v1/completions"), ("DELETE", "/v1/models"), ("PUT", "/")):
        assert_refused(httpx.request(method, server.url + path))
    assert httpx.get(server.url + "/../../etc/passwd").status_code == 404


@given(text=st.text(min_size=1), copies=st.sampled_from([1, 20_000]))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_a_refusal_repeats_is_short_and_printable(server: Running, text: str, copies: int) -> None:
    sent = text * copies
    for path, body in (
        ("/v1/completions", {"prompt": "x", "model": sent}),
        ("/v1/chat/completions", {"n": 1, sent: 1}),
    ):
        assert assert_refused(server.post(path, **body))["message"].isprintable()
    path = quote(text, safe="")
    if path.strip("."):
        assert assert_refused(server.http.get(f"/nowhere/{path}"))["message"].isprintable()


def test_a_body_that_is_too_large_is_refused_before_it_is_read(demo: LLM) -> None:
    limits = Limits(body_bytes=1000, bodies_bytes=1500)
    with serving(demo, Settings(limits=limits)) as running:
        url = f"{running.url}/v1/completions"
        assert httpx.post(url, content=b" " * 1001).status_code == 413

        def chunks() -> Any:
            for _ in range(200):
                yield b" " * 100

        assert httpx.post(url, content=chunks()).status_code == 413  # no length given
        fine = {"model": NAME, "prompt": "x" * 500, "max_tokens": 1}
        assert httpx.post(url, json=fine).status_code == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9000000\r\n\r\n", 413),
        (b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n2000\r\n", 413),
        (b"POST /v1/nothing HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9000000\r\n\r\n", 404),
        (b"PUT /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9000000\r\n\r\n", 405),
        (b"POST /v1/completions HTTP/1.1\r\nhost: elsewhere\r\ncontent-length: 9000000\r\n\r\n", 403),
        (b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n", 400),
    ],
)
def test_a_client_that_is_refused_while_it_sends_can_read_why(demo: LLM, head: bytes, status: int) -> None:
    with serving(demo, Settings(limits=Limits(body_bytes=1000))) as running:
        at = urlsplit(running.url)
        with socket.create_connection((at.hostname, at.port)) as connection:
            connection.sendall(head + b" " * 2000)
            assert select.select([connection], [], [], PATIENCE_SEC)[0]
            for _ in range(60):  # it is refused by now, and hasn't noticed
                connection.sendall(b" " * 100_000)
            connection.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        _, _, body = answer.partition(b"\r\n\r\n")
        assert body
        eventually(lambda: is_idle(running))


def test_all_bodies_together_are_bounded(demo: LLM) -> None:
    with serving(demo, Settings(limits=Limits(body_bytes=1000, bodies_bytes=1500))) as running:
        at = urlsplit(running.url)
        head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n" + b" " * 900
        first = socket.create_connection((at.hostname, at.port))
        first.sendall(head)
        statuses = set()
        while 429 not in statuses:  # until the first one's bytes have come
            statuses.add(httpx.post(f"{running.url}/v1/completions", content=b" " * 700).status_code)
            assert statuses <= {400, 429}
        first.close()
        while httpx.post(f"{running.url}/v1/completions", content=b" " * 700).status_code == 429:
            pass  # until the server has seen that the first one left


def test_a_body_that_never_comes_is_not_waited_for_for_ever(demo: LLM) -> None:
    with serving(demo, Settings(limits=Limits(body_sec=0.05))) as running:
        at = urlsplit(running.url)
        with socket.create_connection((at.hostname, at.port)) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n{")
            assert connection.recv(100).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    "garbage",
    [b"\x00" * 100, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
     b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 50_000, b"\x16\x03\x01" + b"x" * 500],
)  # fmt: skip
def test_what_is_not_http_ends_its_own_connection_only(server: Running, garbage: bytes) -> None:
    at = urlsplit(server.url)
    with socket.create_connection((at.hostname, at.port)) as connection, contextlib.suppress(OSError):
        connection.sendall(garbage)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_more_messages_than_are_taken_are_refused(demo: LLM) -> None:
    with serving(demo, Settings(limits=Limits(messages=3))) as running:
        messages = [{"role": "user", "content": "x"}] * 4
        assert_refused(running.post("/v1/chat/completions", messages=messages))
        assert running.post("/v1/chat/completions", messages=messages[:3], max_tokens=1).status_code == 200
