"""Runs examples/tk_chat.py with a person's hands in place of Tk's own loop. Prints what is on the screen."""

import json
import runpy
import tkinter as tk
from collections.abc import Callable
from tkinter import ttk


def use_the_window(root: tk.Tk, n: int = 0) -> None:
    """In place of `mainloop`."""
    children = root.winfo_children()
    (entry,) = (widget for widget in children if isinstance(widget, ttk.Entry))
    (button,) = (widget for widget in children if isinstance(widget, ttk.Button))
    (status,) = (widget for widget in children if isinstance(widget, ttk.Label))
    (transcript,) = (widget for widget in children if isinstance(widget, tk.Text))

    def until(condition: Callable[[], bool]) -> None:
        while not condition():
            root.update()

    def ask(text: str) -> None:
        until(lambda: str(entry["state"]) == "normal")
        entry.focus_force()
        until(lambda: root.focus_get() is entry)
        for character in text:
            entry.event_generate("<Key>", keysym={" ": "space", "?": "question"}.get(character, character))
        root.update()
        entry.event_generate("<Return>")

    def shown() -> str:
        return transcript.get("1.0", "end")

    seen = [str(status["text"])]
    ask("Who is there?")
    until(lambda: "tokens, " in str(status["text"]))
    seen += [shown(), str(status["text"])]
    ask("And who else?")
    button.invoke()  # at once: the demo model writes an answer in less time than a busy machine may take to look up
    until(lambda: "tokens, " in str(status["text"]))
    seen += [shown(), str(status["text"])]
    ask("And then?")
    root.tk.call(*root.tk.splitlist(root.protocol("WM_DELETE_WINDOW")))  # while it writes
    print(json.dumps(seen))


tk.Misc.mainloop = use_the_window  # type: ignore[method-assign]
runpy.run_path("examples/tk_chat.py", run_name="__main__")
