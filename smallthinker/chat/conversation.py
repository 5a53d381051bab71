"""One conversation: its messages, what its commands do, and Ctrl-C that stops the answer and not the program.

It prints. Knows nothing about how text is generated, or how lines are typed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import FrameType
from typing import Any, TextIO, cast

from smallthinker.chat import plain_dialogue
from smallthinker.chat.kept_messages import Message, keep_last, read_messages, to_json
from smallthinker.chat.line_input import LineInput
from smallthinker.chat.wrapping import Wrapping, columns, fitted
from smallthinker.errors import ContextLengthError, RequestError, SmallThinkerError, one_line
from smallthinker.files import write_whole
from smallthinker.generation.answer import GenerationParams
from smallthinker.llm import LLM, ChatOptions, GenerationOptions, TextStream
from smallthinker.terminal import PromptBar, answer_stream
from smallthinker.terminal import thought as print_thought
from smallthinker.text.answer_parser import Part, Reasoning, Said

HELP = """\
/help             this list
/retry            answer the last question anew
/undo             take the last question and its answer back
/reset            forget the conversation
/system TEXT      what the model is told first, from now on; without TEXT, nothing
/set NAME VALUE   an option of the answers, e.g. temperature 0.2; without, what is set
/model NAME       go on with another model
/save FILE        write the conversation to a new file: .json for messages, else a transcript
/load FILE        go on with a conversation that was saved as .json
/bye              leave (so do /quit and Ctrl-D)
Ctrl-C            stop the answer
\"\"\"              begins and ends a text of several lines; what is pasted is one text"""
COMMANDS = (
    "/help",
    "/retry",
    "/undo",
    "/reset",
    "/system",
    "/set",
    "/model",
    "/save",
    "/load",
    "/bye",
    "/quit",
    "/exit",
)
_CUT = {
    "length": "cut at max_tokens or the end of the context; /set max_tokens allows more",
    "cancelled": "stopped",
    "timeout": "stopped: it took too long",
}
_IMPATIENT = 3  # of times Ctrl-C in one answer
_LEAVE = ("/quit", "/bye", "/exit")


class Chat:
    """One conversation with one model. `run` returns at its end, or the path of the model that is wanted next; raises
    SmallThinkerError when an answer fails and nobody sits at a terminal to ask again. `timings` prints where the time
    went after every answer; `words` makes what is said of an error fit the command line; `find` says where a model of
    a name is. messages: a conversation to go on with; kept: the folder where it is remembered; quiet: no progress."""

    def __init__(
        self,
        llm: LLM,
        options: GenerationOptions,
        chat: ChatOptions,
        system: str | None,
        *,
        shows_thoughts: bool = True,
        timings: bool = False,
        quiet: bool = False,
        words: Callable[[str], str] = str,
        find: Callable[[str], Path] = Path,
        messages: Sequence[Message] = (),
        kept: Path | None = None,
    ) -> None:
        self._llm, self.options, self._chat, self._timings = llm, options, chat, timings
        self._shows_thoughts, self._words, self._quiet = shows_thoughts, words, quiet
        self._find, self._kept = find, kept
        self._opening: list[Message] = [{"role": "system", "content": system}] if system else []
        self.messages: list[Message] = list(self._opening)
        self._wanted: Path | None = None
        self._cut = ""  # why the last answer has no end of its own
        if messages:
            self._go_on(messages)

    def run(self, lines: LineInput) -> Path | None:
        on_interrupt = signal.getsignal(signal.SIGINT)
        while self._wanted is None:
            try:
                line = lines.next().strip()
            except EOFError:
                if lines.is_terminal:
                    print()
                return None
            except KeyboardInterrupt:
                signal.signal(signal.SIGINT, on_interrupt)  # the command line's own, which a first one disarms
                print("\n/bye or Ctrl-D leaves.")
                continue
            if line in _LEAVE:
                return None
            if line.startswith("/"):
                self._command(line)
            elif line:
                self._answer(line)
        return self._wanted

    def _go_on(self, messages: Sequence[Message]) -> None:
        self._opening = [message for message in messages[:1] if message["role"] == "system"]
        self.messages = list(messages)

    def _command(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        if name == "/help":
            say(HELP)
        elif name == "/reset":
            self.messages = list(self._opening)
            say("The conversation is forgotten.")
        elif name == "/retry":
            question = self._take_back()
            if question is not None:
                self._answer(question)
        elif name == "/undo":
            if self._take_back() is not None:
                say("The last question and its answer are forgotten.")
        elif name == "/system":
            rest = self.messages[len(self._opening) :]
            self._opening = [{"role": "system", "content": argument}] if argument else []
            self.messages = [*self._opening, *rest]
        elif name == "/set":
            say(self._set(argument))
        elif name == "/model":
            self._want(argument)
        elif name == "/save":
            say(self._save(argument))
        elif name == "/load":
            say(self._load(argument))
        else:
            close = get_close_matches(name, COMMANDS, n=1)
            say(f"{name}: unknown command; {f'did you mean {close[0]}? ' if close else ''}/help lists them")

    def _take_back(self) -> str | None:
        """The last question, which is forgotten with its answer; None, and a word of it, where there is none."""
        if len(self.messages) - len(self._opening) < 2:
            say("Nothing has been asked yet.")
            return None
        question = self.messages[-2]["content"]
        del self.messages[-2:]
        return question

    def _set(self, argument: str) -> str:
        """`NAME VALUE`, of what shapes an answer."""
        name, _, value = argument.replace("=", " ").partition(" ")
        name, value = name.strip().removeprefix("--").replace("-", "_"), value.strip()
        if not name:
            return ", ".join(f"{key} {value}" for key, value in self.options.items() if value is not None)
        try:
            read: object = json.loads(value)
        except ValueError:
            read = value or None
        changed: dict[str, Any] = {**self.options, name: read}
        try:
            GenerationParams(**changed)
        except TypeError:
            return f"{name}: no such option; there are {', '.join(GenerationOptions.__annotations__)}"
        except RequestError as e:
            return f"not set: {one_line(str(e))}"
        self.options = cast(GenerationOptions, changed)
        return f"{name} is {read}"

    def _want(self, name: str) -> None:
        if not name:
            say("/model needs a name: smallthinker list has them")
            return
        try:
            self._wanted = self._find(name)
        except SmallThinkerError as e:
            say(one_line(str(e)))

    def _save(self, name: str) -> str:
        if not name:
            return "/save needs a file name"
        if name.endswith(".json"):
            data = to_json(self.messages)
        else:
            data = "".join(f"{m['role']}: {m['content']}\n\n" for m in self.messages).encode()
        try:
            path = Path(name).expanduser()
            write_whole(path, data, replace=False)
        except (OSError, ValueError, RuntimeError) as e:  # RuntimeError: ~NAME of nobody
            return f"{name}: not saved: {(e.strerror if isinstance(e, OSError) else None) or e}"
        return f"saved {len(self.messages)} messages to {path}"

    def _load(self, name: str) -> str:
        if not name:
            return "/load needs a file name"
        try:
            self._go_on(read_messages(Path(name).expanduser()))
        except (OSError, ValueError, RuntimeError) as e:  # RuntimeError: ~NAME of nobody
            return f"{name}: not loaded: {(e.strerror if isinstance(e, OSError) else None) or e}"
        return self.where()

    def where(self) -> str:
        """How far the conversation has come, in a line."""
        last = one_line(self.messages[-1]["content"], 60) if self.messages else "none"
        return f"{len(self.messages)} messages; the last: {last}"

    def _answer(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})
        thought: list[str] = []
        said: list[str] = []
        out, wrapping = answer_stream(), Wrapping(columns)
        shown = wrapping.push if out.isatty() else str
        try:
            with interrupts_cancel(self._llm):
                for part in self._stream():
                    if isinstance(part, Said):
                        if not said and thought and self._shows_thoughts:
                            print("\n")  # between a thought and the answer
                        said.append(part.text)
                        print(shown(part.text), end="", flush=True, file=out)
                    elif isinstance(part, Reasoning):
                        thought.append(part.text)
                        if self._shows_thoughts:
                            print_thought(part.text, out)
        except SmallThinkerError as e:
            if not sys.stdin.isatty():  # a script's questions, of which the next may need this one's answer
                raise
            say(f"error: {one_line(self._words(str(e)))}", sys.stderr)
            self.messages.pop()
            return
        print(wrapping.end())
        if self._cut and out.isatty():
            print_thought(fitted(f"[{self._cut}]\n", out), out)
        reasoning = {"reasoning_content": "".join(thought)} if thought else {}
        self.messages.append({"role": "assistant", "content": "".join(said), **reasoning})
        keep_last(self.messages, self._kept)

    def _begin(self, bar: PromptBar) -> TextStream:
        if self._llm.tokenizer.has_chat_template:
            return self._llm.stream(self.messages, on_prefill=bar, **self.options, **self._chat)
        options, asked = self.options.copy(), self.options.get("stop") or ()
        options["stop"] = (*((asked,) if isinstance(asked, str) else asked), *plain_dialogue.STOPS)
        return self._llm.stream(plain_dialogue.as_text(self.messages), on_prefill=bar, **options)

    def _stream(self) -> Iterator[Part]:
        """The answer to the conversation, its oldest turns dropped if it has outgrown the context."""
        while True:
            bar = PromptBar(quiet=self._quiet)
            try:
                stream = self._begin(bar)
                break
            except ContextLengthError:
                first = len(self._opening)
                if len(self.messages) - first < 3:
                    raise
                del self.messages[first : first + 2]
                say("(the oldest turn no longer fits the context and is forgotten)", sys.stderr)
        with stream, contextlib.closing(bar):
            for event in stream.request:
                bar.close()
                yield from event.parts
        reason = "cancelled" if stream.completion is None else stream.completion.finish_reason
        self._cut = _CUT.get(reason, "")
        if self._timings and stream.completion is not None:
            print(f"\n{stream.completion.profile.table()}", end="", file=sys.stderr)


def say(text: str, stream: TextIO | None = None) -> None:
    """A line of the chat's own, on standard output if nothing is said; at a terminal its words stay whole."""
    stream = stream or sys.stdout
    print(fitted(text, stream), file=stream)


@contextlib.contextmanager
def interrupts_cancel(llm: LLM) -> Iterator[None]:
    """Inside, Ctrl-C ends the answer instead of raising KeyboardInterrupt in the middle of a step. The third one in an
    answer does what it would do outside: a step may wait for a disk that never answers."""
    presses = itertools.count(1)

    def cancel(number: int, frame: FrameType | None) -> None:
        llm.cancel()
        if next(presses) == _IMPATIENT and callable(previous):
            previous(number, frame)

    previous = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
