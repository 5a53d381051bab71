"""A real server with the demo model, and a browser's tab that knows what must hold of every visit."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

GIVE_UP_MS = 300_000  # no limit on speed: the machine may be busy with something else

RICH = """\
# Title

Some *italic*, **bold**, ***both***, `code *not italic*`, ~~gone~~ and 2 * 3 * 4, snake_case_name.

- one
  - nested
- two

3. three
4. four

> quoted
> lines

| left | right |
|:--|--:|
| a \\| b | 1 |

```python
def f():
    return "<b>"
```

See [the page](https://example.org/a_(b)) or https://example.org/x.
"""


@contextlib.contextmanager
def serving_process(**environment: str) -> Iterator[str]:
    """`smallthinker serve` in a process of its own -> its URL."""
    command = [sys.executable, "-m", "smallthinker", "serve", "--port", "0", "--json", "--memory", "400MiB"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line, "the server ended before it listened"
            yield str(json.loads(line)["url"])
        finally:
            process.terminate()
            process.wait()


class Tab:
    """One tab of a browser that has never seen the page, with what a user does in it."""

    def __init__(self, browser: Browser, url: str, *, faults_expected: bool = False, **options: Any) -> None:
        self.url = url
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        self.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.faults_expected = faults_expected  # a failed request is written to the console by the browser itself
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(GIVE_UP_MS)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self._complain(message.type, message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(url)
        self.page.wait_for_selector("#model:not([hidden]), [role=alert]", state="attached")

    def _complain(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not (self.faults_expected and "Failed to load resource" in text):
            self.complaints.append(text)

    def settle(self) -> None:
        """What must hold of every visit: nothing left this machine, and nothing was refused, reported or thrown."""
        elsewhere = [url for url in self.requests if not url.startswith((self.url + "/", "data:", f"blob:{self.url}/"))]
        self.context.close()
        assert elsewhere == [] and self.complaints == []

    def send(self, text: str) -> None:
        self.page.fill("#box", text)
        self.page.press("#box", "Enter")

    def ask(self, text: str) -> str:
        """Sends, waits for the end, and returns the answer as it is shown."""
        self.send(text)
        return self.answer()

    def answer(self) -> str:
        self.page.wait_for_selector("#send:not([hidden])")
        return self.page.locator(".message.assistant > .prose").last.inner_text()

    def until(self, condition: str) -> None:
        """Wait for a JavaScript expression; playwright's own waiting needs eval, which the page's policy forbids."""
        self.page.evaluate(f"async () => {{ while (!({condition})) await new Promise(requestAnimationFrame); }}")

    def says(self) -> list[str]:
        """The user's messages as they are shown."""
        return self.page.locator(".message.user .said").all_inner_texts()

    def set(self, **settings: str) -> None:
        self.page.click("#settings-open")
        for name, value in settings.items():
            self.page.fill(f"#set-{name}", value)
        self.page.keyboard.press("Escape")

    def replies(self, *texts: str, reasoning: str = "") -> None:
        """From here on the server's answers are these: for what a small model can't be brought to say."""
        left = list(texts)

        def answer(route: Route) -> None:
            text = left.pop(0) if len(left) > 1 else left[0]
            deltas = [{"reasoning_content": reasoning}] if reasoning else []
            deltas += [{"content": text[at : at + 7]} for at in range(0, len(text), 7)]
            chunks: list[dict[str, Any]] = [{"choices": [{"delta": delta}]} for delta in deltas]
            chunks.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
            body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
            route.fulfill(status=200, content_type="text/event-stream", body=body)

        self.page.route("**/v1/chat/completions", answer)

    def fails(self, status: int, code: str, message: str, **headers: str) -> None:
        """From here on the server refuses."""
        self.faults_expected = True
        body = json.dumps({"error": {"message": message, "type": "x", "param": None, "code": code}})
        self.page.route(
            "**/v1/chat/completions",
            lambda route: route.fulfill(status=status, content_type="application/json", headers=headers, body=body),
        )
