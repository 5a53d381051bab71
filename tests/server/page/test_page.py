"""Conversations on the page, with a real server and the demo model: asked, stopped, changed, kept, moved."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from running import Gate, Running
from tabs import Tab

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SHORT = {"temperature": "0", "max_tokens": "12"}


def stored(tab: Tab) -> list[dict[str, Any]]:
    """The conversations that the browser keeps."""
    entries = tab.page.evaluate("Object.entries(localStorage)")
    return [json.loads(text) for key, text in entries if key.startswith("smallthinker.conversation.")]


def test_an_answer_is_shown_while_it_is_written(held: tuple[Tab, Gate]) -> None:
    tab, gate = held
    tab.set(temperature="0", max_tokens="120")
    tab.send("Tell me of the sea.")
    tab.until("document.querySelector('.writing > .prose')?.textContent.length > 20")
    half = tab.page.locator(".writing > .prose").inner_text()
    gate.open()
    answer = tab.answer()
    assert answer.startswith(half.rstrip(".…")) and len(answer) > len(half)
    assert tab.says() == ["Tell me of the sea."]
    figures = tab.page.locator(".message.assistant .figures").inner_text()
    assert "120 tokens" in figures and "tokens/s" in figures and "first after" in figures


def test_a_next_turn_goes_on_with_the_same_conversation(tab: Tab) -> None:
    tab.set(**SHORT)
    first = tab.ask("Good morning.")
    tab.ask("And then?")
    assert tab.says() == ["Good morning.", "And then?"]
    (kept,) = stored(tab)
    assert [m["role"] for m in kept["messages"]] == ["user", "assistant", "user", "assistant"]
    letters = [[c for c in text if c.isalnum()] for text in (kept["messages"][1]["content"], first)]
    assert kept["title"] == "Good morning." and letters[0] == letters[1] != []


@pytest.mark.parametrize("how", ["the button", "Escape"])
def test_stopping_keeps_what_was_written_and_frees_the_server(
    held: tuple[Tab, Gate], server: Running, how: str
) -> None:
    tab, gate = held
    tab.set(temperature="0", max_tokens="900")
    tab.send("Tell me a long story.")
    tab.until("document.querySelector('.writing > .prose')?.textContent.length > 20")
    tab.page.click("#stop") if how == "the button" else tab.page.keyboard.press("Escape")
    answer = tab.answer()
    figures = tab.page.locator(".message.assistant .figures").inner_text()
    assert "Stopped" in figures and re.search(r"about \d+ tokens", figures)
    assert stored(tab)[0]["messages"][1]["content"].strip() and len(answer) > 20
    gate.wait_until_one_is_cancelled()
    gate.open()
    assert server.requests[0].result().finish_reason == "cancelled"


def test_answering_again_replaces_the_answer(tab: Tab) -> None:
    tab.set(seed="1", max_tokens="30")
    first = tab.ask("Once upon a time")
    tab.page.click("role=button[name='Answer again']")
    assert tab.answer() == first  # the seed is the same
    tab.set(seed="2")
    tab.page.click("role=button[name='Answer again']")
    assert tab.answer() != first
    assert tab.page.locator(".message.assistant").count() == 1 and tab.says() == ["Once upon a time"]


def test_editing_a_message_replaces_all_that_came_after(tab: Tab) -> None:
    tab.set(**SHORT)
    tab.ask("First.")
    tab.ask("Second.")
    tab.page.locator(".message.user").first.hover()
    tab.page.locator("role=button[name='Edit your message']").first.click()
    box = tab.page.get_by_role("textbox", name="Edit your message")
    assert box.input_value() == "First."
    box.fill("Something else.")
    box.press("Enter")
    tab.answer()
    assert tab.says() == ["Something else."]
    assert [m["content"] for m in stored(tab)[0]["messages"] if m["role"] == "user"] == ["Something else."]


def test_a_message_may_be_edited_while_its_answer_is_written(held: tuple[Tab, Gate]) -> None:
    tab, gate = held
    tab.set(temperature="0", max_tokens="300")
    tab.send("First.")
    tab.page.wait_for_selector(".writing")
    tab.page.keyboard.press("ArrowUp")
    tab.page.keyboard.type("And second.")
    gate.open()
    tab.page.keyboard.press("Enter")
    tab.until("!document.querySelector('.edit')")
    tab.answer()
    (kept,) = stored(tab)
    assert [m["role"] for m in kept["messages"]] == ["user", "assistant"] and tab.says() == ["First.And second."]
    assert "Stopped" not in tab.page.locator(".message.assistant .figures").inner_text()


def test_a_reload_finds_the_conversation_and_the_settings(tab: Tab) -> None:
    tab.set(**SHORT, system="Be brief.")
    answer = tab.ask("Where was I?")
    tab.page.reload()
    assert tab.says() == ["Where was I?"]
    assert tab.page.locator(".message.assistant > .prose").inner_text() == answer
    tab.page.click("#settings-open")
    assert tab.page.input_value("#set-max_tokens") == "12" and tab.page.input_value("#set-system") == "Be brief."


def test_the_settings_are_what_the_server_is_asked_for(tab: Tab) -> None:
    tab.set(temperature="0.5", top_p="0.9", top_k="20", min_p="0.1", repeat_penalty="1.1", max_tokens="3", seed="7")
    tab.set(system="Speak plainly.")
    with tab.page.expect_request("**/v1/chat/completions") as asked:
        tab.ask("Hello.")
    body = asked.value.post_data_json
    numbers = {"temperature": 0.5, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "repeat_penalty": 1.1, "max_tokens": 3}
    assert body.items() >= (numbers | {"seed": 7, "stream": True}).items()
    assert body["messages"][0] == {"role": "system", "content": "Speak plainly."}
    tab.page.click("#settings-open")
    tab.page.click("text=Back to defaults")
    tab.page.fill("#set-top_p", "2")  # out of range: said so, and not sent
    assert tab.page.get_attribute("#set-top_p", "aria-invalid") == "true"
    tab.page.fill("#set-max_tokens", "3")
    tab.page.keyboard.press("Escape")
    with tab.page.expect_request("**/v1/chat/completions") as asked:
        tab.ask("Hello again.")
    assert not asked.value.post_data_json.keys() & {"temperature", "top_p", "seed"}
    assert asked.value.post_data_json["messages"][0]["role"] == "user"


def test_a_text_file_becomes_part_of_the_message(tab: Tab) -> None:
    tab.page.fill("#box", "Summarise this.")
    notes = {"name": "notes.txt", "mimeType": "text/plain", "buffer": "one ``` two\nthrée\n".encode()}
    tab.page.set_input_files("#attached", notes)
    tab.until("document.querySelector('#box').value.includes('notes.txt')")
    assert tab.page.input_value("#box") == "Summarise this.\n\nnotes.txt:\n````\none ``` two\nthrée\n````\n"
    tab.page.set_input_files("#attached", {"name": "a.png", "mimeType": "image/png", "buffer": b"\x89PNG\xff\xfe"})
    tab.page.wait_for_selector("text=expected a text in UTF-8")
    assert "a.png" not in tab.page.input_value("#box")


def test_the_model_is_chosen_where_there_are_several(browser: Browser, page_url: str) -> None:
    tab = Tab(browser, page_url)
    assert tab.page.is_visible("#model") and not tab.page.is_visible("#models")
    own = tab.page.inner_text("#model")
    models = {"object": "list", "data": [{"id": own, "object": "model"}, {"id": "other", "object": "model"}]}
    tab.page.route("**/v1/models", lambda route: route.fulfill(json=models))
    tab.page.reload()
    tab.page.wait_for_selector("#models:not([hidden])")
    assert tab.page.input_value("#models") == own and not tab.page.is_visible("#model")
    tab.replies("Yes.")
    tab.page.select_option("#models", "other")
    with tab.page.expect_request("**/v1/chat/completions") as asked:
        tab.ask("Hello.")
    assert asked.value.post_data_json["model"] == "other"
    tab.settle()


def test_conversations_are_renamed_deleted_and_brought_back(tab: Tab) -> None:
    tab.set(**SHORT)
    tab.ask("One.")
    tab.page.click("#new")
    tab.ask("Two.")
    titles = tab.page.locator(".chat .open")
    assert titles.all_inner_texts() == ["Two.", "One."]
    tab.page.click("role=button[name='Rename “Two.”']")
    tab.page.fill("role=textbox[name='New title']", "Number two")
    tab.page.keyboard.press("Enter")
    assert titles.all_inner_texts() == ["Number two", "One."]
    tab.page.click("role=button[name='Delete “Number two”']")
    assert titles.all_inner_texts() == ["One."] and len(stored(tab)) == 1
    tab.page.click("#toast-undo")
    assert titles.all_inner_texts() == ["Number two", "One."] and len(stored(tab)) == 2
    assert tab.says() == ["Two."]


def test_another_conversation_may_be_opened_while_an_answer_is_written(held: tuple[Tab, Gate]) -> None:
    tab, gate = held
    tab.set(temperature="0", max_tokens="200")
    tab.send("Tell me of the hills.")
    tab.page.wait_for_selector(".writing")
    tab.page.click("#new")
    assert tab.says() == [] and tab.page.is_visible("#send")
    tab.page.click("text=Tell me of the hills.")
    tab.page.wait_for_selector(".writing")
    gate.open()
    assert tab.answer() and tab.says() == ["Tell me of the hills."]


def test_what_is_exported_is_imported_elsewhere(tab: Tab, browser: Browser, page_url: str, tmp_path: Path) -> None:
    tab.set(**SHORT)
    answer = tab.ask("Keep this.")
    with tab.page.expect_download() as download:
        tab.page.click("#export")
    path = tmp_path / "conversations.json"
    download.value.save_as(path)
    assert "key" not in json.loads(path.read_text())
    other = Tab(browser, page_url)
    for said in ("1 imported.", "0 imported, 1 here already."):
        other.page.set_input_files("#file", path)
        other.page.wait_for_selector(f"#toast >> text={said}")
    other.page.click("text=Keep this.")
    assert other.says() == ["Keep this."]
    assert other.page.locator(".message.assistant > .prose").inner_text() == answer
    other.settle()


GOOD = {"format": "smallthinker-conversations", "version": 1}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("not JSON", "isn't a file of exported conversations"),
        ("[]", "isn't a file of exported conversations"),
        (json.dumps({**GOOD, "version": 2, "conversations": []}), "isn't a file of exported conversations"),
        (json.dumps({**GOOD, "conversations": "all"}), "expected a list of at most"),
        (json.dumps({**GOOD, "conversations": [None]}), "conversation 1: expected a list"),
        (json.dumps({**GOOD, "conversations": [{"messages": [{"role": "root"}]}]}), "expected a role of user"),
        (json.dumps({**GOOD, "conversations": [{"messages": [{"role": "user", "content": 1}]}]}), "expected a text"),
    ],
)
def test_a_file_that_is_no_export_changes_nothing(tab: Tab, content: str, said: str) -> None:
    file = {"name": "import.json", "mimeType": "application/json", "buffer": content.encode()}
    tab.page.set_input_files("#file", file)  # type: ignore[arg-type]
    tab.page.wait_for_selector(f"#toast >> text={said}")
    assert stored(tab) == []


def test_of_an_imported_file_only_what_is_known_is_kept(tab: Tab) -> None:
    message = {"role": "user", "content": "<b>hello</b>", "figures": 12, "onclick": "evil()"}
    chat = {"id": "../x", "title": "<img src=x onerror=evil()>", "created": -1, "from": 99, "messages": [message]}
    content = json.dumps({**GOOD, "conversations": [chat]}).encode()
    tab.page.set_input_files("#file", {"name": "x.json", "mimeType": "application/json", "buffer": content})
    tab.page.wait_for_selector("#toast >> text=1 imported.")
    (kept,) = stored(tab)
    assert kept["messages"] == [{"role": "user", "content": "<b>hello</b>"}]
    assert kept["id"] != "../x" and kept["from"] == 0 and kept["created"] > 0
    tab.page.click(".chat .open")
    assert tab.says() == ["<b>hello</b>"] and tab.page.locator("img, b").count() == 0
