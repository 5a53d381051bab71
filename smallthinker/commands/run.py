"""`smallthinker run`: one answer to a prompt, or text that continues it."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from smallthinker.commands.models import (
    DEFAULT,
    KINDS,
    add_model_option,
    find_model,
    is_demo,
    load,
    model_among,
    name_of,
    tell_of_demo,
)
from smallthinker.commands.options import (
    EXIT_INTERRUPTED,
    Commands,
    add_chat_options,
    add_command,
    add_model_options,
    add_quiet,
    add_sampling_options,
    add_timings,
    chat_options,
    generation_options,
    read_text,
    text,
)
from smallthinker.errors import RequestError
from smallthinker.terminal import PromptBar, answer_stream, piped_input, read_input, thought

if TYPE_CHECKING:
    from smallthinker.llm import LLM, TextStream

_PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff")


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "run",
        handle,
        "answer a prompt, or write text that continues it",
        'smallthinker run model.gguf --memory 1GiB "Why is the sea salt?"; '
        'smallthinker run -m ./4b-store "Summarise this." < notes.txt',
    )
    parser.add_argument(
        "prompt",
        type=text,
        nargs="*",
        metavar="PROMPT",
        help="what to answer; files and what is piped in follow it; - stands for standard input; without -m, a first "
        "word that is a model is that",
    )
    add_model_option(parser, f"{KINDS} ({DEFAULT})")
    parser.add_argument(
        "--file", action="append", type=Path, default=[], metavar="FILE", help="a text to follow the prompt; repeatable"
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="continue the prompt as it is, without the model's chat template (default: where it has none, and for the "
        "bundled demo model)",
    )
    parser.add_argument(
        "--special-tokens",
        action="store_true",
        help="names of special tokens in PROMPT stand for them (default: text); with --raw",
    )
    add_chat_options(parser, "show them on standard error")
    add_model_options(parser)
    add_timings(parser)
    add_quiet(parser, ", notes and figures")
    add_sampling_options(parser)
    parser.add_argument(
        "--schema",
        dest="json_schema",
        type=Path,
        metavar="FILE",
        help="a JSON schema that the answer keeps to; needs smallthinker[json]",
    )
    parser.add_argument("--image", metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print one JSON object: the text, and all figures")
    parser.add_argument(
        "--stats", choices=["line", "json"], default="line", help="figures on the last line of stderr (default: line)"
    )


def handle(args: argparse.Namespace) -> int:
    if args.image is not None:
        raise RequestError("--image: pictures aren't read: models answer text here; leave it out")
    word = args.model if args.model is not None else model_among(args.prompt, bool(args.file))
    path = find_model(word)
    prompt = _prompt(args, word)
    if word is None:
        tell_of_demo(args)
    is_chat = not is_demo(path)
    from smallthinker.chat.conversation import interrupts_cancel

    with (
        load(args, path) as llm,
        contextlib.closing(PromptBar(quiet=args.quiet)) as bar,
        _stream(args, llm, prompt, bar, is_chat=is_chat) as stream,
        interrupts_cancel(llm),
    ):
        _print(stream, bar, shows_thoughts=args.thinking == "show" and not args.json, says=not args.json)
        assert stream.completion is not None
        stats = stream.completion.stats
        profile = stream.completion.profile
        if args.timings:
            print(profile.table(), file=sys.stderr)
        if args.verbose and stats.least_slots < stats.slots:
            print(f"the machine ran short of memory: only {stats.least_slots} experts could stay", file=sys.stderr)
        figures = {"finish_reason": stream.completion.finish_reason} | stats.to_dict()
        figures |= {"profile": profile.to_dict()} if args.timings else {}
        if args.json:
            said = {"text": stream.completion.text, "reasoning": stream.completion.reasoning or None}
            print(json.dumps({"model": name_of(path)} | said | figures))
        elif args.stats == "json":
            print(json.dumps(figures), file=sys.stderr)
        elif not args.quiet:
            print(stats.line(), file=sys.stderr)
        return EXIT_INTERRUPTED if stream.completion.finish_reason == "cancelled" else 0


def _prompt(args: argparse.Namespace, model: str | None) -> str:
    """Its parts, a blank line between them. Raises RequestError."""
    parts: list[str] = []
    for is_input, words in itertools.groupby(args.prompt, lambda word: word == "-"):
        parts.append(read_input() if is_input else " ".join(words))
    for path in args.file:
        if path.suffix.lower() in _PICTURES:
            raise RequestError(f"{path}: a picture, which isn't read: models answer text here; give a text as --file")
        parts.append(read_text(path, "--file"))
    if "-" not in args.prompt:
        parts.append(piped_input())
    parts = [part for part in parts if part]
    if not parts:
        talk = "" if model is None else f"; smallthinker chat {quote(model)} talks with it"
        raise RequestError(f"PROMPT: expected a text, a --file, or something on standard input, found nothing{talk}")
    return "\n\n".join(parts)


def _stream(args: argparse.Namespace, llm: LLM, prompt: str, bar: PromptBar, *, is_chat: bool) -> TextStream:
    options = generation_options(args)
    raw = args.raw or args.special_tokens
    if (is_chat and llm.tokenizer.has_chat_template and not raw) or (args.system is not None and not raw):
        system = [{"role": "system", "content": args.system}] if args.system else []
        messages = [*system, {"role": "user", "content": prompt}]
        chat = chat_options(args, llm)
        return llm.stream(messages, on_prefill=bar, json_schema=schema_of(args.json_schema), **options, **chat)
    for name in ("system", "reasoning_effort"):
        if getattr(args, name) is not None:
            raise RequestError(f"--{name.replace('_', '-')}: a text is continued as it is; leave --raw out")
    schema = schema_of(args.json_schema)
    return llm.stream(prompt, special_tokens=args.special_tokens, on_prefill=bar, json_schema=schema, **options)


def schema_of(path: Path | None) -> dict[str, Any] | None:
    """What --schema says. Raises RequestError."""
    if path is None:
        return None
    from smallthinker.files import parse_json

    try:
        schema = parse_json(read_text(path, "--schema"))
    except ValueError as e:
        if isinstance(e, RequestError):
            raise
        raise RequestError(f"{path}: expected a JSON schema: {e}") from None
    if not isinstance(schema, dict):
        raise RequestError(f"{path}: expected a JSON schema, an object, found another value")
    return schema


def _print(stream: TextStream, bar: PromptBar, *, shows_thoughts: bool, says: bool) -> None:
    from smallthinker.text.answer_parser import Reasoning, Said

    answer, in_thought = answer_stream(), False
    for event in stream.request:
        bar.close()
        for part in event.parts:
            if isinstance(part, Reasoning) and shows_thoughts:
                in_thought = True
                thought(part.text, sys.stderr)
            elif isinstance(part, Said) and says:
                if in_thought:
                    print("\n", file=sys.stderr)
                    in_thought = False
                print(part.text, end="", flush=True, file=answer)
    if in_thought:
        print(file=sys.stderr)
    if says:
        print(flush=True)
