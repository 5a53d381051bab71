"""A chat window in plain Tk: the model works on other threads, so that Stop and closing work at any time.

python examples/tk_chat.py [STORE]
"""

import queue
import sys
import threading
import tkinter as tk
from collections.abc import Callable
from tkinter import ttk

from smallthinker import LLM, SmallThinkerError, TextStream

POLL_MS = 30


class ChatWindow:
    def __init__(self, root: tk.Tk, store: str | None = None, memory: str = "1GiB", **options: object) -> None:
        self.root, self.options = root, options
        self.messages: list[dict[str, str]] = []
        self.llm: LLM | None = None
        self.answer: TextStream | None = None
        # Tk belongs to one thread: the others put what is to be done in the window here, and `poll` does it
        self.todo: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

        root.title("Chat")
        root.protocol("WM_DELETE_WINDOW", self.close)
        self.transcript = tk.Text(root, wrap="word", state="disabled", padx=8, pady=8)
        self.transcript.tag_configure("user", font="TkHeadingFont")
        self.entry = ttk.Entry(root)
        self.entry.bind("<Return>", lambda _: self.ask())
        self.button = ttk.Button(root, text="Stop", command=self.stop)
        self.status = ttk.Label(root, text="Loading ...")
        self.status.pack(side="bottom", fill="x")
        self.button.pack(side="bottom", fill="x")
        self.entry.pack(side="bottom", fill="x")
        self.transcript.pack(fill="both", expand=True)
        self.set_busy(True)
        threading.Thread(target=self.load, args=(store, memory), daemon=True).start()
        self.poll()

    def poll(self) -> None:
        while not self.todo.empty():
            self.todo.get()()
        self.timer = self.root.after(POLL_MS, self.poll)

    def load(self, store: str | None, memory: str) -> None:
        """On its own thread."""
        try:
            llm = LLM(store, memory=memory)
        except SmallThinkerError as error:
            message = str(error)
            self.todo.put(lambda: self.status.configure(text=message))
        else:
            self.todo.put(lambda: self.loaded(llm))

    def loaded(self, llm: LLM) -> None:
        self.llm = llm
        self.set_busy(False)

    def ask(self) -> None:
        text = self.entry.get().strip()
        if not text or self.llm is None or self.answer is not None:
            return
        self.messages.append({"role": "user", "content": text})
        try:
            self.answer = self.llm.stream(self.messages, **self.options)
        except SmallThinkerError as error:  # the conversation has outgrown the context, for one
            self.messages.pop()
            self.status.configure(text=str(error))
            return
        self.entry.delete(0, "end")
        self.show(f"{text}\n", "user")
        self.set_busy(True)
        threading.Thread(target=self.read, args=(self.answer,), daemon=True).start()

    def read(self, answer: TextStream) -> None:
        """On its own thread: wait for each piece and hand it over."""
        pieces, trouble = [], ""
        try:
            for piece in answer:
                pieces.append(piece)
                self.todo.put(lambda piece=piece: self.show(piece))
        except SmallThinkerError as error:  # the disk failed
            trouble = str(error)
        self.todo.put(lambda: self.answered("".join(pieces), trouble))

    def answered(self, text: str, trouble: str) -> None:
        self.messages.append({"role": "assistant", "content": text})
        self.show("\n\n")
        completion = self.answer.completion if self.answer else None
        self.answer = None
        self.set_busy(False)
        if trouble:
            self.status.configure(text=trouble)
        elif completion is not None:
            self.status.configure(text=f"{len(completion.token_ids)} tokens, {completion.finish_reason}")

    def stop(self) -> None:
        if self.answer is not None:
            self.answer.close()  # what has been written stays

    def show(self, text: str, *tags: str) -> None:
        self.transcript.configure(state="normal")
        self.transcript.insert("end", text, tags)
        self.transcript.configure(state="disabled")
        self.transcript.see("end")

    def set_busy(self, busy: bool) -> None:
        self.entry.configure(state="disabled" if busy else "normal")
        self.button.configure(state="normal" if self.answer else "disabled")
        self.status.configure(text="Writing ..." if self.answer else "Loading ..." if busy else "Ready")
        if not busy:
            self.entry.focus_set()

    def close(self) -> None:
        self.root.after_cancel(self.timer)
        self.root.destroy()
        if self.llm is not None:
            self.llm.close()  # ends the answer that is being written


def main() -> None:
    root = tk.Tk()
    ChatWindow(root, *sys.argv[1:2])
    root.mainloop()


if __name__ == "__main__":
    main()
