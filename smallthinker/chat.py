"""A conversation at the terminal: history, commands, and Ctrl-C that stops the answer and not the program.

Part of the command line: it prints. Knows nothing about how text is generated.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from smallthinker.errors import ContextLengthError, SmallThinkerError, one_line
from smallthinker.files import parse_json, read_small, write_whole
from smallthinker.llm import LLM, ChatOptions, GenerationOptions
from smallthinker.terminal import PromptBar, answer_stream, read_input
from smallthinker.terminal import thought as print_thought
from smallthinker.text.answer_parser import Part, Reasoning, Said

HELP = """\
/help          this list
/retry         answer the last question anew
/undo          take the last question and its answer back
/reset         forget the conversation
/system TEXT   what the model is told first, from now on; without TEXT, nothing
/save FILE     write the conversation to a new file: .json for messages, else a transcript
/load FILE     go on with a conversation that was saved as .json
/quit          leave (so do /bye and Ctrl-D)
Ctrl-C         stop the answer"""
_ROLES = ("system", "user", "assistant")


class Chat:
    """One conversation. `run` returns the exit code, and raises SmallThinkerError when an answer fails and nobody sits
    at a terminal to ask again. `timings` prints where the time went after every answer; `words` makes what is said of
    an error fit the command line."""

    def __init__(
        self,
        llm: LLM,
        options: GenerationOptions,
        chat: ChatOptions,
        system: str | None,
        *,
        shows_thoughts: bool = True,
        timings: bool = False,
        words: Callable[[str], str] = str,
    ) -> None:
        self._llm, self._options, self._chat, self._timings = llm, options, chat, timings
        self._shows_thoughts, self._words = shows_thoughts, words
        self._opening: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
        self.messages: list[dict[str, str]] = list(self._opening)

    def run(self) -> int:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (line editing and history in input())

        if sys.stdin.isatty():
            print("/help lists the commands.")
        while True:
            try:
                line = _next_line().strip()
            except EOFError:
                if sys.stdin.isatty():
                    print()
                return 0
            except KeyboardInterrupt:
                print("\n/quit or Ctrl-D leaves.")
                continue
            if line in ("/quit", "/bye", "/exit"):
                return 0
            if line.startswith("/"):
                self._command(line)
            elif line:
                self._answer(line)

    def _command(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        if name == "/help":
            print(HELP)
        elif name == "/reset":
            self.messages = list(self._opening)
            print("The conversation is forgotten.")
        elif name == "/retry":
            question = self._take_back()
            if question is not None:
                self._answer(question)
        elif name == "/undo":
            if self._take_back() is not None:
                print("The last question and its answer are forgotten.")
        elif name == "/system":
            rest = self.messages[len(self._opening) :]
            self._opening = [{"role": "system", "content": argument}] if argument else []
            self.messages = [*self._opening, *rest]
        elif name == "/save":
            print(self._save(argument))
        elif name == "/load":
            print(self._load(argument))
        else:
            print(f"{name}: unknown command; /help lists them")

    def _take_back(self) -> str | None:
        """The last question, which is forgotten with its answer; None, and a word of it, where there is none."""
        if len(self.messages) - len(self._opening) < 2:
            print("Nothing has been asked yet.")
            return None
        question = self.messages[-2]["content"]
        del self.messages[-2:]
        return question

    def _save(self, name: str) -> str:
        if not name:
            return "/save needs a file name"
        if name.endswith(".json"):
            text = json.dumps(self.messages, ensure_ascii=False, indent=1) + "\n"
        else:
            text = "".join(f"{m['role']}: {m['content']}\n\n" for m in self.messages)
        try:
            path = Path(name).expanduser()
            write_whole(path, text.encode(), replace=False)
        except (OSError, ValueError, RuntimeError) as e:  # RuntimeError: ~NAME of nobody
            return f"{name}: not saved: {(e.strerror if isinstance(e, OSError) else None) or e}"
        return f"saved {len(self.messages)} messages to {path}"

    def _load(self, name: str) -> str:
        if not name:
            return "/load needs a file name"
        try:
            messages = parse_json(read_small(Path(name).expanduser()))
            if not isinstance(messages, list) or not all(map(_is_message, messages)):
                raise ValueError("expected a list of messages with role and content, as /save FILE.json writes them")
            first = len(messages) and messages[0]["role"] == "system"
            roles = [message["role"] for message in messages[first:]]
            if roles != ["user", "assistant"] * (len(roles) // 2):
                raise ValueError("expected questions and answers in turns")
        except (OSError, ValueError, RuntimeError) as e:  # RuntimeError: ~NAME of nobody
            return f"{name}: not loaded: {(e.strerror if isinstance(e, OSError) else None) or e}"
        self._opening, self.messages = messages[:first], messages
        return f"{len(messages)} messages; the last: {one_line(messages[-1]['content'], 60) if messages else 'none'}"

    def _answer(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})
        thought: list[str] = []
        said: list[str] = []
        try:
            with interrupts_cancel(self._llm):
                for part in self._stream():
                    if isinstance(part, Said):
                        if not said and thought and self._shows_thoughts:
                            print("\n")  # between a thought and the answer
                        said.append(part.text)
                        print(part.text, end="", flush=True, file=answer_stream())
                    elif isinstance(part, Reasoning):
                        thought.append(part.text)
                        if self._shows_thoughts:
                            print_thought(part.text, answer_stream())
        except SmallThinkerError as e:
            if not sys.stdin.isatty():  # a script's questions, of which the next may need this one's answer
                raise
            print(f"error: {one_line(self._words(str(e)))}", file=sys.stderr)
            self.messages.pop()
            return
        print()
        reasoning = {"reasoning_content": "".join(thought)} if thought else {}
        self.messages.append({"role": "assistant", "content": "".join(said), **reasoning})

    def _stream(self) -> Iterator[Part]:
        """The answer to the conversation, its oldest turns dropped if it has outgrown the context."""
        while True:
            bar = PromptBar()
            try:
                stream = self._llm.stream(self.messages, on_prefill=bar, **self._options, **self._chat)
                break
            except ContextLengthError:
                first = len(self._opening)
                if len(self.messages) - first < 3:
                    raise
                del self.messages[first : first + 2]
                print("(the oldest turn no longer fits the context and is forgotten)", file=sys.stderr)
        with stream, contextlib.closing(bar):
            for event in stream.request:
                bar.close()
                yield from event.parts
        if self._timings and stream.completion is not None:
            print(f"\n{stream.completion.profile.table()}", end="", file=sys.stderr)


def _is_message(value: object) -> bool:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        return False
    return value.get("role") in _ROLES and "content" in value


def _next_line() -> str:
    """Raises EOFError at the end of the input, RequestError when it can't be read."""
    if sys.stdin.isatty():
        return input("> ")
    line = read_input(line=True)
    if not line:
        raise EOFError
    return line


@contextlib.contextmanager
def interrupts_cancel(llm: LLM) -> Iterator[None]:
    """Inside, Ctrl-C ends the answer instead of raising KeyboardInterrupt in the middle of a step."""
    previous = signal.signal(signal.SIGINT, lambda *_: llm.cancel())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
