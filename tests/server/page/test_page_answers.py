"""What a hostile or faulty answer does to the page: nothing but be shown, and one readable line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from running import Running, say
from tabs import RICH, Tab, serving_process

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HOSTILE = """\
<img src=x onerror="window.pwned=1"> and <script>window.pwned=2</script>

<svg onload=window.pwned=3><iframe src="javascript:window.pwned=4"></iframe>

[a](javascript:window.pwned=5) [b](data:text/html,<script>1</script>) [c](JaVaScRiPt:alert(1)) [d](//example.org/x)
![pixel](https://example.org/pixel.png)

```html
</code></pre><script>window.pwned=6</script>
```

| <b onmouseover=window.pwned=7>x</b> | y |
|---|---|
| <style>*{display:none}</style> | <a href="javascript:window.pwned=8">z</a> |

# <img src=x onerror=window.pwned=9>
"""


def test_markup_in_an_answer_is_text(browser: Browser, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, server, HOSTILE)
    tab = Tab(browser, server.url)
    tab.set(max_tokens="900")
    shown = tab.ask("Go on.")
    prose = tab.page.locator(".message.assistant > .prose")
    assert '<img src=x onerror="window.pwned=1"> and <script>window.pwned=2</script>' in shown
    assert prose.locator("img, script, style, iframe, svg:not(.icon), b").count() == 0
    assert prose.locator("a").evaluate_all("links => links.map(a => a.href)") == ["https://example.org/pixel.png"]
    tab.page.reload()  # nor when it is read back
    tab.page.locator(".message.assistant").hover()
    assert tab.page.evaluate("window.pwned") is None
    assert prose.locator("img, script, style, iframe").count() == 0
    tab.settle()


def test_markdown_becomes_elements(tab: Tab) -> None:
    tab.replies(RICH)
    tab.ask("Show me.")
    prose = tab.page.locator(".message.assistant > .prose")
    texts = {
        tag: prose.locator(tag).all_inner_texts()
        for tag in ("h3", "em", "strong", "del", "p > code", "li > ul li", "blockquote", "th", "td", "pre", "a")
    }
    assert texts == {
        "h3": ["Title"], "em": ["italic", "both"], "strong": ["bold", "both"], "del": ["gone"],
        "p > code": ["code *not italic*"], "li > ul li": ["nested"], "blockquote": ["quoted\nlines"],
        "th": ["left", "right"], "td": ["a | b", "1"], "pre": ['def f():\n    return "<b>"'],
        "a": ["the page", "https://example.org/x"],
    }  # fmt: skip
    assert prose.locator("ol").get_attribute("start") == "3"
    assert "2 * 3 * 4, snake_case_name." in prose.inner_text()
    assert prose.locator("a").first.get_attribute("href") == "https://example.org/a_(b)"
    assert "noopener" in (prose.locator("a").first.get_attribute("rel") or "")


def test_every_prefix_of_an_answer_is_shown_as_the_whole_would_be(tab: Tab) -> None:
    """While it streams, only blocks that changed are drawn again; the result must be that of drawing it all at once."""
    differing = tab.page.evaluate(
        """texts => texts.filter(text => {
            const grown = document.createElement('div');
            for (let i = 1; i <= text.length; i++) {
                Markdown.show(grown, text.slice(0, i));
                const whole = document.createElement('div');
                Markdown.show(whole, text.slice(0, i));
                if (grown.innerHTML !== whole.innerHTML) return true;
            }
            return false;
        })""",
        [RICH, HOSTILE, "- a\n\n  b\n- c\n1. d\n```\nx\n~~~\n", "> > > a\n> b\n\n***\n_a_ __b__ [x](<y z>) &lt; \\*"],
    )
    assert differing == []


def test_a_pathological_answer_is_shown(tab: Tab) -> None:
    """Nested or never-closed marks by the ten thousand: each took exponential time in some renderer once."""
    marks = ("*", "[", "`", "> ", "- ", "_a", "**a ", "<http://", "![", "|-", "\n1. ", "~~", "](")
    hostile = [mark * 20000 for mark in marks]
    shown = tab.page.evaluate(
        """texts => texts.map(text => {
            const box = document.createElement('div');
            Markdown.show(box, text);
            return box.childNodes.length;
        })""",
        hostile,
    )
    assert all(shown)


def test_a_message_and_a_block_of_code_are_copied(tab: Tab) -> None:
    tab.replies(RICH)
    tab.ask("Show me.")
    for name, copied in (("Copy this code", 'def f():\n    return "<b>"'), ("Copy the answer", RICH)):
        tab.page.click(f"role=button[name='{name}']")
        tab.page.wait_for_selector("role=button[name='Copied']")
        assert tab.page.evaluate("navigator.clipboard.readText()") == copied


def test_reasoning_is_folded_away(browser: Browser, thinker: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, thinker, "<think>\nFirst I *think*.\n</think>\n\nThe answer.")
    tab = Tab(browser, thinker.url)
    assert tab.ask("Why?") == "The answer."
    details = tab.page.locator("details.reasoning")
    assert details.get_attribute("open") is None
    details.locator("summary").click()
    assert details.locator(".prose em").inner_text() == "think"
    with tab.page.expect_request("**/v1/chat/completions") as asked:
        tab.ask("And?")
    assert "think" not in str(asked.value.post_data_json["messages"])  # a thought isn't part of the conversation
    assert "enable_thinking" not in asked.value.post_data_json
    tab.page.click("#settings-open")
    tab.page.select_option("#set-thinking", "off")
    tab.page.keyboard.press("Escape")
    with tab.page.expect_request("**/v1/chat/completions") as asked:
        tab.ask("And now?")
    assert asked.value.post_data_json["enable_thinking"] is False
    tab.settle()


def test_a_busy_server_says_when_to_try_again(tab: Tab) -> None:
    tab.fails(429, "rate_limit_exceeded", "queue: 64 requests are waiting", **{"retry-after": "2"})
    tab.send("Now.")
    box = tab.page.get_by_role("alert")
    box.wait_for()
    assert "busy" in box.inner_text() and box.get_by_role("button").is_disabled()
    tab.page.unroute("**/v1/chat/completions")
    tab.set(max_tokens="5")
    box.get_by_role("button", name="Try again", exact=True).click()
    assert tab.answer() and tab.says() == ["Now."] and box.count() == 0


def test_other_faults_are_one_line_with_a_way_on(tab: Tab) -> None:
    tab.fails(500, "", "internal error")
    tab.send("One.")
    tab.page.wait_for_selector("role=alert >> text=internal error")
    tab.page.unroute("**/v1/chat/completions")
    tab.page.route("**/v1/chat/completions", lambda route: route.abort())
    tab.page.click("text=Try again")
    tab.page.wait_for_selector("role=alert >> text=The server can't be reached")
    tab.page.unroute("**/v1/chat/completions")
    broken = 'data: {"choices": [{"delta": {"content": "Half an"}}]}\n\n'
    tab.page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(status=200, content_type="text/event-stream", body=broken),
    )
    tab.page.click("text=Try again")
    tab.page.wait_for_selector("role=alert >> text=The connection broke off")
    assert tab.page.locator(".message.assistant > .prose").inner_text() == "Half an"
    tab.page.reload()
    assert tab.says() == ["One."]


def test_a_conversation_that_outgrew_the_context_goes_on_without_its_beginning(tab: Tab) -> None:
    tab.set(temperature="0", max_tokens="5")
    tab.ask("word " * 450)
    tab.faults_expected = True
    tab.ask("more " * 700)
    tab.page.wait_for_selector(".message.assistant:last-of-type .figures")
    assert len(tab.says()) == 2 and tab.page.is_visible("text=The model no longer sees what is above.")
    assert tab.page.get_by_role("alert").count() == 0
    tab.page.unroute("**/v1/chat/completions")
    tab.send("far too long " * 2000)
    tab.page.get_by_role("alert").wait_for()
    assert "context" in tab.page.get_by_role("alert").inner_text()
    # it fits nowhere, and takes no turns with it
    assert tab.page.locator(".forgotten + .message.user .said").inner_text().startswith("more")


def test_an_answer_without_a_limit_leaves_room_for_the_next_turn(tab: Tab) -> None:
    with tab.page.expect_request("**/v1/chat/completions") as asked:
        tab.ask("Tell me a story.")
    body = asked.value.post_data_json
    assert body["max_tokens"] == 512 and body["return_progress"] is True  # of a context of 1024
    tab.faults_expected = True  # the first try may not fit
    tab.ask("And then?")
    assert len(tab.says()) == 2 and tab.page.get_by_role("alert").count() == 0


def test_headings_leave_out_no_level(tab: Tab) -> None:
    tab.replies("## Two\n\n#### Four\n\n# One")
    tab.ask("Show me.")
    prose = tab.page.locator(".message.assistant > .prose")
    found = prose.locator("h1, h2, h3, h4, h5, h6").evaluate_all("all => all.map(one => one.tagName + one.textContent)")
    assert found == ["H3Two", "H4Four", "H3One"]


def test_a_server_with_a_key_asks_for_it(browser: Browser) -> None:
    with serving_process(SMALLTHINKER_API_KEY="open sesame") as url:
        tab = Tab(browser, url, faults_expected=True)
        for key in ("wrong", "open sesame"):  # asked for on arrival, and again after a wrong one
            alert = tab.page.get_by_role("alert")
            assert "API key" in alert.inner_text()
            alert.get_by_label("API key").fill(key)
            alert.get_by_label("API key").press("Enter")
            if key == "wrong":
                tab.until("document.getElementById('fault-key')?.value === ''")
        tab.page.wait_for_selector("#model:not([hidden])")
        tab.set(max_tokens="5")
        assert tab.ask("Hello.")
        kept = tab.page.evaluate("JSON.stringify(localStorage)")
        assert "sesame" not in kept
        tab.settle()
