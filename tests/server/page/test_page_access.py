"""Who can use the page: with a keyboard, a screen reader, a small screen, in light and dark."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from running import Gate, Running
from tabs import RICH, Tab

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def violations(tab: Tab) -> list[str]:
    """What axe-core finds, each as rule and element."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs pip install '.[test]'")
    found = axe.Axe().run(tab.page).response["violations"]
    return [f"{each['id']}: {node['target']} {node['failureSummary']}" for each in found for node in each["nodes"]]


@pytest.mark.parametrize(("width", "colours"), [(1280, "light"), (360, "dark")])
def test_axe_finds_nothing(browser: Browser, page_url: str, colours: str, width: int) -> None:
    # without motion no colour is caught half-way through a transition
    looks: dict[str, Any] = {"color_scheme": colours, "reduced_motion": "reduce"}
    tab = Tab(browser, page_url, viewport={"width": width, "height": 740}, **looks)
    found = {"empty": violations(tab)}
    tab.replies(RICH, reasoning="Hm.")
    tab.ask("Show me everything.")
    tab.page.click("details.reasoning summary")
    found["an answer"] = violations(tab)
    tab.page.locator(".message.user").hover()
    tab.page.click("role=button[name='Edit your message']")
    found["editing"] = violations(tab)
    tab.page.keyboard.press("Escape")
    tab.page.click("#settings-open")
    found["settings"] = violations(tab)
    tab.page.keyboard.press("Escape")
    if width < 860:
        tab.page.click("#side-open")
        found["conversations"] = violations(tab)
        tab.page.keyboard.press("Escape")
    tab.page.click("#live-open")
    tab.page.wait_for_selector("#heat-section:not([hidden])")
    tab.page.click("#heat-table summary")
    found["live"] = violations(tab)
    tab.page.click("#live-close")
    tab.page.unroute("**/v1/chat/completions")
    tab.fails(500, "", "internal error")
    tab.send("Fail.")
    tab.page.wait_for_selector("role=alert")
    found["a fault"] = violations(tab)
    tab.settle()
    assert {state: each for state, each in found.items() if each} == {}


def test_nothing_is_wider_than_a_screen_of_360_pixels(browser: Browser, page_url: str) -> None:
    tab = Tab(browser, page_url, viewport={"width": 360, "height": 640}, has_touch=True)
    tab.replies(RICH + "\n\n" + "long" * 200 + "\n\n```\n" + "x" * 500 + "\n```\n")
    tab.ask("w" * 300)
    widest = "Math.max(document.documentElement.scrollWidth, document.getElementById('scroll').scrollWidth)"
    widths = {"answer": tab.page.evaluate(widest)}
    for name in ("side", "live", "settings"):
        tab.page.click(f"#{name}-open")
        box = tab.page.locator(f"#{name}").bounding_box()
        assert box is not None and box["x"] >= 0
        widths[name] = round(box["x"] + box["width"])
        tab.page.keyboard.press("Escape")
        tab.page.locator(f"#{name}").wait_for(state="hidden")
    tab.settle()
    assert max(widths.values()) <= 360, widths


def test_everything_is_reached_by_keyboard(tab: Tab) -> None:
    keys, focused = tab.page.keyboard, lambda: tab.page.evaluate("document.activeElement.id")
    assert focused() == "box"
    tab.replies("Done.")
    keys.type("one")
    keys.press("Shift+Enter")
    keys.type("two")
    keys.press("Enter")
    tab.answer()
    assert tab.says() == ["one\ntwo"] and focused() == "box"
    keys.press("ArrowUp")  # an empty box: the last message is edited
    assert tab.page.evaluate("document.activeElement.value") == "one\ntwo"
    keys.press("Escape")
    tab.page.locator("#box").focus()
    keys.press("Alt+n")
    assert tab.says() == [] and focused() == "box"
    keys.press("Alt+ArrowDown")
    assert tab.says() == ["one\ntwo"]
    for key, opened, leave in (("Alt+l", "#live", "Alt+l"), ("Alt+s", "#settings", "Escape")):
        keys.press(key)
        tab.page.locator(opened).wait_for(state="visible")
        keys.press(leave)
        tab.page.locator(opened).wait_for(state="hidden")
    tab.page.locator("#scroll").focus()
    keys.press("?")
    tab.page.locator("#shortcuts").wait_for(state="visible")
    keys.press("Escape")
    keys.press("/")
    assert focused() == "box"
    first = tab.page.locator("a, button, input, [tabindex]").first
    assert first.inner_text() == "Skip to the message box"
    first.focus()
    keys.press("Enter")
    assert focused() == "box"


def test_a_drawer_over_the_page_keeps_the_focus_until_it_is_closed(browser: Browser, page_url: str) -> None:
    tab = Tab(browser, page_url, viewport={"width": 600, "height": 700})
    for name in ("side", "live"):
        tab.page.click(f"#{name}-open")
        assert tab.page.evaluate("document.activeElement.id") == f"{name}-close"
        assert tab.page.evaluate("document.getElementById('main').inert")
        tab.page.keyboard.press("Escape")
        assert tab.page.evaluate("document.activeElement.id") == f"{name}-open"
        assert not tab.page.evaluate("document.getElementById('main').inert")
    tab.settle()


def test_a_screen_reader_hears_each_paragraph_once_and_the_end(tab: Tab) -> None:
    tab.replies("First **part**.\n\nSecond part.\n\nLast")
    tab.ask("Go on.")
    said = tab.page.locator("#said")
    assert said.get_attribute("aria-live") == "polite"
    assert said.evaluate("box => box.textContent.split(/\\s+/).join(' ').trim()") == (
        "First part. Second part. LastThe answer is complete."
    )


def test_the_panel_follows_the_server_and_asks_only_while_it_can_be_seen(tab: Tab) -> None:
    tab.set(temperature="0", max_tokens="60")
    tab.page.click("#live-open")
    tab.page.wait_for_selector("#heat-section:not([hidden])")
    tab.ask("Tell me of the sea.")
    tab.until("document.getElementById('heat-read').textContent.includes('Busiest: layer')")
    assert "8 layers of 32 experts" in tab.page.inner_text("#heat-read")
    assert tab.page.inner_text("#memory").endswith("of 400 MiB")
    assert "%" in tab.page.inner_text("#hits") and "of 1,024 tokens" in tab.page.inner_text("#context")
    tab.page.get_by_label("Since the start").check()
    tab.page.click("#heat-table summary")
    tab.until("document.querySelectorAll('#heat-rows tr').length === 8")  # drawn once the browser says that it is open
    assert "of 32" in tab.page.locator("#heat-rows tr").first.inner_text()
    painted = "c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size"
    assert tab.page.locator("#heat").evaluate(painted) > 10
    tab.page.click("#live-close")
    before = sum(url.endswith("/api/stats") for url in tab.requests)
    tab.ask("And of the hills.")
    assert sum(url.endswith("/api/stats") for url in tab.requests) <= before + 1  # one may have been under way


def test_dark_and_light_can_be_chosen_and_stay(tab: Tab) -> None:
    surface = "getComputedStyle(document.body).backgroundColor"
    light = tab.page.evaluate(surface)
    tab.page.click("role=button[name='Dark colours']")
    dark = tab.page.evaluate(surface)
    tab.page.reload()
    assert light != dark == tab.page.evaluate(surface)
    tab.page.click("#settings-open")
    tab.page.get_by_label("As the system").check()
    assert tab.page.evaluate(surface) == light


def test_pictures_for_the_docs(
    browser: Browser, server: Running, gate: Gate, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    """A visit, looked at four times. `--screenshots docs/images` writes the pictures that docs/chat-page.md shows."""
    folder = Path(pytestconfig.getoption("--screenshots") or tmp_path)
    gate.first = 10**6  # the first answer is written at once, the second until the picture has been taken
    tab = Tab(browser, server.url, viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    tab.set(temperature="0.7", seed="11", max_tokens="160")
    tab.page.click("#live-open")
    tab.ask("Once upon a time there was a lighthouse,")
    gate.first = 80
    tab.send("The keeper said:")
    tab.until("document.querySelector('.writing > .prose')?.textContent.length > 150")
    tab.page.screenshot(path=folder / "chat-light.png")
    gate.open()
    tab.answer()
    tab.page.emulate_media(color_scheme="dark")
    tab.page.get_by_label("Since the start").check()
    tab.page.screenshot(path=folder / "chat-dark.png")
    tab.page.click("#settings-open")
    tab.page.emulate_media(color_scheme="light")
    tab.page.screenshot(path=folder / "chat-settings.png")
    tab.page.keyboard.press("Escape")
    tab.page.click("#live-close")
    tab.page.set_viewport_size({"width": 360, "height": 740})
    tab.page.screenshot(path=folder / "chat-360.png")
    tab.settle()
    sizes = [path.stat().st_size for path in folder.glob("chat-*.png")]
    assert len(sizes) == 4 and all(10_000 < size < 200_000 for size in sizes)
