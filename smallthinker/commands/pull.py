"""`smallthinker pull`: download a model; safetensors become a store, a GGUF file runs as it is."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from smallthinker.commands.options import (
    WEIGHT_FORMATS,
    Commands,
    ProgressBar,
    add_command,
    add_compression,
    renamed,
    text,
    written,
    written_text,
)


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "pull",
        handle,
        "download a model from a hub: a GGUF file, or safetensors, of which a store is made; needs smallthinker[hub]",
        "smallthinker pull smollm2-135m --dry-run; smallthinker pull OWNER/NAME-GGUF --list; "
        "smallthinker pull OWNER/NAME-GGUF --quant q4_k_m",
    )
    parser.add_argument(
        "repo",
        type=text,
        metavar="NAME",
        help="OWNER/NAME on the hub, or a short name as plan's (4b, smollm2-135m, ...: a wrong one names all), by "
        "which it is called here then; only safetensors, GGUF, JSON are fetched",
    )
    parser.add_argument("--list", action="store_true", help="print what there is, with sizes and memory, and end")
    renamed(parser, "--file", "--gguf")
    parser.add_argument(
        "--gguf",
        type=text,
        metavar="NAME",
        help="take this GGUF file of the repository, or the one that a pattern as '*Q8_0*' fits (default: safetensors "
        "where there are any, else the GGUF file that is of --quant)",
    )
    parser.add_argument(
        "store",
        metavar="OUT",
        type=Path,
        nargs="?",
        help="folder of the store, or for the GGUF file, which keeps its name and runs there (default: one in the "
        "models folder, whose models have names: smallthinker list)",
    )
    parser.add_argument(
        "--quant",
        type=str.lower,
        metavar="QUANT",
        help=f"of safetensors the store's weight format ({', '.join(WEIGHT_FORMATS)}; default: q4), else which GGUF "
        "file to take, as q4_k_m (default: of those that run and fit, the one that loses little for its size)",
    )
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        help="memory that the model shall run in (default: what is free here, less a margin)",
    )
    add_compression(parser)
    parser.add_argument(
        "--revision", type=text, metavar="REV", default="main", help="branch, tag or commit (default: main)"
    )
    parser.add_argument(
        "--endpoint",
        type=text,
        metavar="URL",
        help="another hub (default: HF_ENDPOINT or huggingface.co; HF_TOKEN is its token)",
    )
    parser.add_argument("--keep-download", action="store_true", help="keep the safetensors, in OUT.download")
    parser.add_argument(
        "--force", action="store_true", help="replace an existing store, once the new one is whole, or file"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be fetched and written, and end")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def handle(args: argparse.Namespace) -> int:
    from smallthinker.errors import RequestError
    from smallthinker.hub.known import repository_of
    from smallthinker.hub.pull import Pull, listing
    from smallthinker.hub.repository import Hub
    from smallthinker.library import Library

    repo = repository_of(args.repo)
    alias = args.repo if repo != args.repo else None
    hub = Hub(repo, args.revision, args.endpoint)
    if args.list:
        found = listing(hub, args.quant)
        print(json.dumps(found.to_dict()) if args.json else found.text())
        return 0
    library = Library()
    folder = library.made() if args.store is None else None
    pull = Pull(hub, args.store, args.quant, args.force, args.gguf, args.memory, folder, alias)
    plan = pull.plan
    if args.compress is not None and not pull.converts:
        raise RequestError("--compress: a GGUF file runs as it is; smallthinker convert makes a compressed store of it")
    if args.dry_run:
        print(json.dumps(plan.to_dict()) if args.json else plan.text())
        pull.check_space()
        return 0
    print(plan.text(), file=sys.stderr)
    try:
        with pull.locked():
            with ProgressBar("downloading") as progress:
                pull.fetch(progress)
            if pull.converts:
                with ProgressBar("converting") as progress:
                    pull.convert(args.compress, progress)
            pull.finish(args.keep_download)
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command goes on with {pull.download}", file=sys.stderr)
        raise
    if folder is not None and alias is not None:
        library.set_alias(alias, plan.store)
    kept = pull.download if args.keep_download and pull.converts else None
    if args.json:
        print(json.dumps(plan.to_dict() | {"kept_download": None if kept is None else str(kept)}))
    else:
        print(written_text(written(plan.store)))
        if kept is not None:
            print(f"{kept}: the weights as they were, for `smallthinker convert`")
        print(plan.run_command())
    return 0
