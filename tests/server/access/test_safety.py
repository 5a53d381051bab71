"""Who may call, from where, and what is never written down."""

from __future__ import annotations

import http.client
import logging
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from openai import AuthenticationError, OpenAI
from running import NAME, Running, serving

from smallthinker import LLM
from smallthinker.errors import RequestError
from smallthinker.server.page_file import policy
from smallthinker.server.settings import Settings

KEY = "a-key-of-some-length"


def ask(running: Running, path: str = "/v1/models", method: str = "GET", **headers: str) -> http.client.HTTPResponse:
    """With exactly these headers: Host only as it is given."""
    at = urlsplit(running.url)
    connection = http.client.HTTPConnection(at.hostname or "", at.port or 0)
    connection.putrequest(method, path, skip_host="host" in headers)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    response = connection.getresponse()
    response.body = response.read()  # type: ignore[attr-defined]
    connection.close()
    return response


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8080", "127.0.0.1", "127.0.0.1:1", "[::1]:8080", "192.168.1.5"]
)
def test_addresses_and_localhost_are_this_server_s_names(server: Running, host: str) -> None:
    assert ask(server, host=host).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "localhost.evil.example", "", "[", "a@b:c", "127.0.0.1.nip.io"]
)
def test_a_name_that_was_made_to_lead_here_is_refused(server: Running, host: str) -> None:
    response = ask(server, host=host)
    assert response.status == 403
    assert b"host_not_allowed" in response.body  # type: ignore[attr-defined]


def test_a_page_of_another_site_is_refused_and_this_server_s_own_is_not(server: Running) -> None:
    own = server.url
    assert ask(server, origin=own).status == 200
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "http://localhost", ""):
        response = ask(server, origin=origin)
        assert response.status == 403, origin
        assert response.getheader("access-control-allow-origin") is None
    posted = ask(server, "/v1/completions", "POST", origin="https://evil.example", content_type="text/plain")
    assert posted.status == 403


def test_cors_is_for_the_named_origin_alone(demo: LLM) -> None:
    friend = "https://friend.example"
    with serving(demo, Settings(cors=(friend,), api_key=KEY)) as running:
        preflight = ask(running, "/v1/chat/completions", "OPTIONS", origin=friend,
                        access_control_request_method="POST",
                        access_control_request_headers="authorization, content-type")  # fmt: skip
        assert preflight.status == 200 and preflight.getheader("access-control-allow-origin") == friend
        allowed = ask(running, origin=friend, authorization=f"Bearer {KEY}")
        assert allowed.status == 200 and allowed.getheader("access-control-allow-origin") == friend
        assert ask(running, origin="https://evil.example", authorization=f"Bearer {KEY}").status == 403
        assert ask(running, origin=friend).status == 401


def test_a_key_must_be_shown_where_there_is_one(demo: LLM) -> None:
    with serving(demo, Settings(api_key=KEY)) as running:
        assert OpenAI(base_url=f"{running.url}/v1", api_key=KEY).models.list().data[0].id == NAME
        with pytest.raises(AuthenticationError) as error:
            OpenAI(base_url=f"{running.url}/v1", api_key=KEY + "x", max_retries=0).models.list()
        assert error.value.code == "invalid_api_key"
        for value in ("", "Bearer", f"Basic {KEY}", f"Bearer {KEY[:-1]}", "Bearer \xff", f"bearer{KEY}"):
            assert ask(running, authorization=value).status == 401, value
        for path in ("/v1/models", "/metrics", "/api/stats", "/v1/nothing"):
            assert ask(running, path).status == 401, path
        for path in ("/", "/health"):  # what a browser opens, and what a supervisor asks
            assert ask(running, path).status == 200, path


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host": "0.0.0.0"}, "host: everyone who can reach 0.0.0.0"),
        ({"host": "::"}, "host: "),
        ({"host": "my-pc"}, "host: "),
        ({"api_key": " "}, "api_key: "),
        ({"api_key": "schlüssel"}, "api_key: "),
        ({"cors": ("*",)}, "cors: "),
        ({"cors": ("http://x/path",)}, "cors: "),
        ({"timeout_sec": 0}, "timeout_sec: "),
        ({"timeout_sec": float("nan")}, "timeout_sec: "),
    ],
)
def test_settings_that_are_not_safe_are_refused_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Settings(**settings)
    Settings(host="0.0.0.0", api_key=KEY)
    Settings(host="::1")


def test_the_page_may_run_only_what_is_in_it(server: Running) -> None:
    page = httpx.get(server.url)
    rules = dict(rule.strip().split(" ", 1) for rule in page.headers["content-security-policy"].split(";"))
    assert rules["default-src"] == "'none'" and rules["connect-src"] == "'self'"
    assert "unsafe" not in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["content-type"].startswith("text/html")


def test_the_policy_names_the_hash_of_every_inline_block() -> None:
    html = b"<style>a{}</style><script>\n1</script><SCRIPT type='module'>2</SCRIPT >"
    # echo -n 'a{}' | openssl dgst -sha256 -binary | base64
    assert "style-src 'sha256-X1RutGBrXCt9KkSaXMK7tHftWiRscFHOhxsS8tv8hBk='" in policy(html)
    assert policy(html).count("'sha256-") == 3
    assert "script-src 'none'; style-src 'none'" in policy(b"<p>nothing")


def test_what_users_write_is_in_no_log(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", "smallthinker"):
        logging.getLogger(name).propagate = True
    secret = "xyzzy-plugh"
    ask = server.openai.chat.completions.with_raw_response.create
    logging.getLogger("openai").setLevel(logging.ERROR)  # the client's own log has what it sends
    for stream in (False, True):
        ask(model=NAME, messages=[{"role": "user", "content": secret}], max_tokens=2, stream=stream).parse()
    for body in (
        {"prompt": [secret]},
        {secret: 1},
        {"prompt": secret, "stop": secret * 100},
        {"prompt": secret * 9999},
    ):
        server.post("/v1/completions", **body, n=0)
    httpx.post(f"{server.url}/v1/completions", content=f'{{"prompt": "{secret}'.encode())
    ours = [record for record in caplog.records if not record.name.startswith(("openai", "httpcore", "httpx"))]
    assert all(secret not in record.getMessage() for record in ours)
