"""`smallthinker batch`: every row of a file answered, into another file."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallthinker.commands.models import KINDS, find_drafts_model, find_model, is_demo, load, name_of, node_model
from smallthinker.commands.options import (
    Commands,
    ProgressBar,
    add_chat_options,
    add_cluster_options,
    add_command,
    add_model_options,
    add_sampling_options,
    engine_options,
    generation_options,
    text,
    whole,
)
from smallthinker.commands.run import schema_of
from smallthinker.errors import RequestError

if TYPE_CHECKING:
    from smallthinker.batch.job import Answerer
    from smallthinker.batch.journal import Journal
    from smallthinker.batch.prompts import Prompts
    from smallthinker.batch.rows import InputFacts, Rows
    from smallthinker.llm import LLM

EXIT_WITH_ERRORS = 1
DEFAULT_MAX_TOKENS = 256
DEFAULT_SEED = 0
_FOR_PROMPTS = ("prompt_template", "raw", "system", "thinking", "reasoning_effort", "json_schema", "column")
_OF_SAMPLING = ("ignore_eos", "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "stop")


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "batch",
        handle,
        "answer every row of a file, into another file",
        'smallthinker batch demo notes.csv out.jsonl --prompt-template "Summarise: {text}"; '
        "smallthinker batch ./4b-store requests.jsonl responses.jsonl --memory 1GiB",
    )
    parser.add_argument("word", metavar="MODEL", help=KINDS)
    parser.add_argument(
        "input", metavar="INPUT", type=Path,
        help="rows: .jsonl, .csv, .parquet, a folder of texts (columns file and text), or a batch file of OpenAI's",
    )  # fmt: skip
    parser.add_argument(
        "output", metavar="OUTPUT", type=Path,
        help="the rows with their answers: .jsonl, .csv, .parquet, or without an ending a folder of texts; the same "
        "command again goes on where it was ended",
    )  # fmt: skip
    group = parser.add_argument_group("batch")
    group.add_argument(
        "--prompt-template", type=text, metavar="TEXT", help="a row's prompt, with {column} for what the row has there"
    )
    group.add_argument(
        "--column", type=text, metavar="NAME", default="output", help="the answers' column (default: output)"
    )
    group.add_argument(
        "--raw",
        action="store_true",
        help="continue the prompt as it is, without the model's chat template (default: where it has none, and for the "
        "bundled demo model)",
    )
    group.add_argument(
        "--schema", dest="json_schema", type=Path, metavar="FILE",
        help="a JSON schema that the answers keep to; needs smallthinker[json]",
    )  # fmt: skip
    group.add_argument(
        "--parallel", dest="sequences", type=whole, metavar="N", help="rows at once (default: as many as memory allows)"
    )
    group.add_argument(
        "--max-errors", type=whole, default=50, metavar="N",
        help="end where so many rows one after another fail; 0 never does (default: 50)",
    )  # fmt: skip
    add_cluster_options(group)
    group.add_argument("--force", action="store_true", help="replace OUTPUT, and begin anew what was begun")
    group.add_argument("--json", action="store_true", help="print one JSON object: how many rows, and all figures")
    add_chat_options(parser, "a column of their own")
    add_model_options(parser, context="what the longest row needs")
    add_sampling_options(parser)
    parser.set_defaults(seed=DEFAULT_SEED)


def handle(args: argparse.Namespace) -> int:
    from smallthinker import host
    from smallthinker.batch import openai_file
    from smallthinker.batch.capacity import context_for
    from smallthinker.batch.journal import Journal, journal_path
    from smallthinker.batch.output import answer_columns, check_columns, check_place, write_lines, write_rows
    from smallthinker.batch.rows import InputFacts, open_rows
    from smallthinker.cluster.node_store import identity_of
    from smallthinker.expert_store.store import Store
    from smallthinker.text.tokenizer import Tokenizer

    resident = host.resident_bytes()
    if args.cluster is not None:
        from smallthinker.batch.cluster import check_ray

        check_ray()
    elif args.node_dir is not None:
        raise RequestError("node_dir: has no meaning without --cluster")
    if args.max_errors < 0:
        raise RequestError("--max-errors: expected a number of at least 0")
    rows, facts = open_rows(args.input), InputFacts()
    resumes = journal_path(args.output).exists() and not args.force
    check_place(args.output, args.input, replace=args.force, resumes=resumes)
    path = find_model(args.word)
    with Store.open(path) as store:
        tokenizer = Tokenizer(store.small_files, store.config.vocab_size, store)
        first = next(iter(rows), None)
        is_openai = args.prompt_template is None and first is not None and openai_file.is_request(first)
        if is_openai:
            _refuse_prompt_options(args)
            openai_file.check_requests(rows)
        prompts = None if is_openai else _prompts(args, path, tokenizer)
        longest = _look_at(rows, facts, prompts, tokenizer, args)
        columns = answer_columns(args.column)
        if args.thinking != "show":
            del columns["reasoning"]
        if prompts is not None:
            prompts.template.check(facts.columns)
            check_columns(facts.columns, columns.values())
        identity = identity_of(store)
        job = _job(args, identity, facts, is_openai)
        context = args.context or context_for(longest, store.config.context)
    del tokenizer
    if not facts.count:
        raise RequestError(f"{args.input}: expected rows, found none")
    began = time.monotonic()
    figures: dict[str, Any] = {"rows": facts.count}
    with Journal(args.output, job, facts.count, anew=args.force) as journal:
        figures["already_done"] = journal.done
        if journal.done < facts.count:
            figures |= _answer(args, path, rows, facts, prompts, journal, identity, context, resident)
        if is_openai:
            write_lines(args.output, rows, journal)
        else:
            write_rows(args.output, rows, journal, list(facts.columns), columns)
        failed = sum(_has_failed(journal.answer(index)) for index in range(facts.count))
        journal.remove()
    figures |= {"errors": failed, "sec": round(time.monotonic() - began, 3), "output": str(args.output)}
    if args.json:
        print(json.dumps(figures))
    else:
        speed = f", {figures['tok_per_sec']:.1f} tokens/s" if "tok_per_sec" in figures else ""
        said = f"{facts.count} row{'s' * (facts.count > 1)}, {failed} with errors, {figures['sec']:.1f} s{speed}"
        print(f"{args.output}: {said}", file=sys.stderr)
    return EXIT_WITH_ERRORS if failed else 0


def _refuse_prompt_options(args: argparse.Namespace) -> None:
    for name in (*_FOR_PROMPTS, *_OF_SAMPLING):
        if getattr(args, name) != args.parser.get_default(name):
            raise RequestError(f"{name}: a batch file of OpenAI's says that in each body; leave this out")


def _prompts(args: argparse.Namespace, path: Path, tokenizer: Any) -> Prompts:
    from smallthinker.batch.prompts import Prompts
    from smallthinker.batch.template import Template
    from smallthinker.text.chat_prompt import switches

    if args.prompt_template is None:
        raise RequestError('prompt_template: expected one, such as --prompt-template "Summarise: {text}"')
    template = Template(args.prompt_template)
    is_chat = not args.raw and (args.system is not None or (tokenizer.has_chat_template and not is_demo(path)))
    if is_chat:
        thinking = False if args.thinking == "off" else None
        values = switches(tokenizer.chat_template, thinking, args.reasoning_effort)
        return Prompts(template, True, args.system, values)
    for name in ("system", "reasoning_effort"):
        if getattr(args, name) is not None:
            raise RequestError(f"{name}: a text is continued as it is; leave --raw out")
    return Prompts(template, False)


def _look_at(rows: Rows, facts: InputFacts, prompts: Prompts | None, tokenizer: Any, args: argparse.Namespace) -> int:
    """Every row once -> the most tokens that prompt and answer of one take."""
    from smallthinker.batch.openai_file import tokens_of

    longest, new = 0, args.max_tokens or DEFAULT_MAX_TOKENS
    with ProgressBar("looking at the rows", "row") as progress:
        for row in rows:
            facts.add(rows, row)
            if args.context is None:
                count = tokens_of(tokenizer, row, new) if prompts is None else prompts.count(tokenizer, row) + new
                longest = max(longest, count)
            progress(facts.count, facts.count, "rows")
    return longest


def _job(args: argparse.Namespace, identity: str, facts: InputFacts, is_openai: bool) -> dict[str, Any]:
    """Whatever an answer depends on, by the names that a person knows it by."""
    job: dict[str, Any] = {
        "MODEL": identity,
        "INPUT": facts.identity,
        "kind of input": "requests" if is_openai else "rows",
        "--schema": schema_of(args.json_schema),
    }
    named = ("prompt_template", "raw", "system", "thinking", "reasoning_effort", "seed", "max_tokens", "context")
    of_engine = ("kv", "lossy_head", "lossy_threshold", "lossy_experts", "lossy_prefer", "lossy_skip")
    for name in (*named, *_OF_SAMPLING, *of_engine):
        value = getattr(args, name)
        job[f"--{name.replace('_', '-')}"] = str(value) if isinstance(value, Path) else value
    return job


def _answer(
    args: argparse.Namespace,
    path: Path,
    rows: Rows,
    facts: InputFacts,
    prompts: Prompts | None,
    journal: Journal,
    identity: str,
    context: int,
    resident: int,
) -> dict[str, Any]:
    """What the journal lacks -> figures."""
    from smallthinker.batch import job, openai_file
    from smallthinker.batch.capacity import rows_at_once

    find_drafts_model(args)
    sort_key = openai_file.sort_key if prompts is None else prompts.sort_key
    in_a_form = prompts is None or args.json_schema is not None
    reserved = _bytes_beside(path, prompts is None) if in_a_form else 0
    left, at_once = facts.count - journal.done, args.sequences
    if at_once is None:
        options = engine_options(args, context=context, reserved=reserved)
        at_once = rows_at_once(path, options, left, resident)
    if prompts is not None:  # there an LLM makes the grammar, and takes what that needs itself
        reserved = 0
    more = {"context": context, "sequences": at_once, "reserved": reserved, "max_waiting": max(64, at_once)}
    figures: dict[str, Any] = {"at_once": at_once, "context": context}
    answers, began = _answers(args, path, prompts, facts), time.monotonic()
    with ProgressBar("answering", "row") as progress:
        told: dict[str, Any] = {"left": left, "max_errors": args.max_errors, "progress": progress}
        if args.cluster is not None:
            from smallthinker.batch import cluster

            node = cluster.NodeJob(node_model(args, path, identity, **more), answers)
            figures["nodes"] = cluster.run(iter(rows), journal, sort_key, node, address=args.cluster, **told)
            return figures | {"answering_sec": round(time.monotonic() - began, 3)}
        with load(args, path, **more) as llm:
            began = time.monotonic()
            # twice as many at once: so that one is there when another ends
            job.run(iter(rows), journal, answers(llm), sort_key, at_once=2 * at_once, **told)
            stats, sec = llm.scheduler.stats(), time.monotonic() - began
    return figures | {
        "new_tokens": stats.new_tokens,
        "prompt_tokens": stats.prompt_tokens,
        "reused_tokens": stats.reused_tokens,
        "hit_rate": round(stats.hit_rate, 4),
        "answering_sec": round(sec, 3),
        "tok_per_sec": round(stats.new_tokens / sec, 3),
    }


def _bytes_beside(path: Path, is_openai: bool) -> int:
    """What answers in a form take of the budget. A file of OpenAI's may ask for any, and is answered as by a server."""
    from smallthinker.expert_store.store import Store
    from smallthinker.generation.constraints import grammar_bytes
    from smallthinker.server.settings import working_bytes

    with Store.open(path) as store:
        return (working_bytes if is_openai else grammar_bytes)(store.config.vocab_size)


def _answers(
    args: argparse.Namespace, path: Path, prompts: Prompts | None, facts: InputFacts
) -> Callable[[LLM], Answerer]:
    """How a loaded model answers; can be sent to other machines."""
    from smallthinker.batch.openai_file import RequestAnswers
    from smallthinker.batch.prompts import PromptAnswers
    from smallthinker.llm import CallOptions

    if prompts is None:
        return partial(RequestAnswers, name=name_of(path), seed=args.seed, job=facts.identity)
    options: CallOptions = {"json_schema": schema_of(args.json_schema)}
    options.update(generation_options(args))  # type: ignore[typeddict-item]
    return partial(PromptAnswers, prompts=prompts, seed=args.seed, options=options)


def _has_failed(answer: dict[str, Any]) -> bool:
    response = answer.get("response")
    return answer.get("error") is not None or (isinstance(response, dict) and response.get("status_code") != 200)
