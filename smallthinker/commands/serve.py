"""`smallthinker serve`: a model for other programs, by the protocols of OpenAI and of Ollama, and a chat page."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from smallthinker.commands.models import (
    KINDS,
    add_model,
    find_drafts_model,
    find_model,
    load,
    model_word,
    name_of,
    node_model,
    tell_of_demo,
)
from smallthinker.commands.options import (
    Commands,
    add_cluster_options,
    add_command,
    add_model_options,
    add_quiet,
    engine_options,
    text,
    whole,
)

if TYPE_CHECKING:
    from smallthinker.library import Library
    from smallthinker.server.settings import Settings

MOST_KEY_BYTES = 1 << 16
KEY_VARIABLE = "SMALLTHINKER_API_KEY"


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "serve",
        handle,
        "answer other programs by the protocols of OpenAI and Ollama, and show a chat page",
        "smallthinker serve ./4b-store --memory 1GiB --port 8080",
    )
    add_model(parser, f"the model to begin with, {KINDS}; those of the models folder are served, too")
    group = parser.add_argument_group("server")
    group.add_argument("--host", type=text, default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    group.add_argument("--port", type=whole, default=8080, metavar="N", help="0 takes a free one (default: 8080)")
    group.add_argument(
        "--name", type=text, metavar="NAME", help="what the model is called (default: the store's folder)"
    )
    group.add_argument(
        "--parallel", dest="sequences", type=whole, metavar="N", help="answers at the same time (default: 1)"
    )
    group.add_argument("--kv-dir", metavar="FOLDER", help="save conversations there, to be continued after a restart")
    group.add_argument(
        "--kv-dir-size", dest="kv_dir_bytes", metavar="SIZE", help="what they may take there (default: 4GiB)"
    )
    group.add_argument(
        "--queue", dest="max_waiting", type=whole, metavar="N", help="requests that may wait (default: 64)"
    )
    group.add_argument(
        "--timeout",
        dest="timeout_sec",
        type=float,
        default=3600,
        metavar="SEC",
        help="longest answer, waiting included (default: 3600)",
    )
    group.add_argument(
        "--grace", type=float, default=10, metavar="SEC", help="for answers to finish at the end (default: 10)"
    )
    group.add_argument(
        "--api-key", type=text, metavar="KEY", help="clients must show it; other users see it in the process list"
    )
    group.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help=f"a file with the key (or {KEY_VARIABLE} in the environment)"
    )
    group.add_argument(
        "--allow-host",
        type=text,
        action="append",
        default=[],
        metavar="NAME",
        help="another name of this machine; repeatable",
    )
    group.add_argument(
        "--cors",
        type=text,
        action="append",
        default=[],
        metavar="ORIGIN",
        help="a site whose pages may call; repeatable",
    )
    group.add_argument(
        "--only", action="store_true", help="this model alone, not also those of the models folder, by name"
    )
    add_cluster_options(group)
    group.add_argument(
        "--replicas", type=text, metavar="N|MIN-MAX",
        help="engines of --cluster: so many, or as many as there is work for (default: one a node)",
    )  # fmt: skip
    group.add_argument("--access-log", action="store_true", help="a line for each request, without its text")
    group.add_argument("--json", action="store_true", help="say where it listens in JSON")
    add_model_options(parser)
    add_quiet(parser, " and notes")


def handle(args: argparse.Namespace) -> int:
    from smallthinker.errors import RequestError, printable

    word = model_word(args)
    try:
        from smallthinker.server.app import create_app
        from smallthinker.server.runner import Server, listen
        from smallthinker.server.settings import reserved_bytes
    except ImportError as e:
        raise RequestError(f"serve needs {e.name}: pip install 'smallthinker[serve]'") from None
    from smallthinker.expert_store.store import Store
    from smallthinker.library import Library
    from smallthinker.llm import LLM

    for option in ("replicas", "node_dir"):
        if args.cluster is None and getattr(args, option) is not None:
            raise RequestError(f"{option}: has no meaning without --cluster")
    if args.cluster is not None and args.kv_dir is not None:
        raise RequestError("kv_dir: has no meaning with --cluster, where replicas hold their own conversations")
    settings = _settings(args)
    path = find_model(word)
    if word is None:
        tell_of_demo(args)
    name = printable(args.name) if args.name else name_of(path)  # it goes into JSON and onto the terminal
    with listen(args.host, args.port) as sock:  # before the model is loaded: a port that is taken is told at once
        if args.cluster is not None:
            _serve_replicas(args, path, name, settings, sock)
            return 0

        def reserved(path: Path) -> int:
            with Store.open(path) as store:
                return reserved_bytes(settings.limits, store.config.vocab_size)

        def load_another(path: Path) -> LLM:
            return LLM(path, engine_options(args, reserved=reserved(path)))

        with load(args, path, reserved=reserved(path)) as llm:
            library = None if args.only else Library()
            app = create_app(llm, name, settings, load=load_another, library=library)
            models = app.state.models
            server = Server(app, settings.limits, models.cancel, grace_sec=args.grace, access_log=args.access_log)
            _tell(args, sock, {"model": name, "context": llm.plan.context}, sys.stdout)
            if sys.stderr.isatty() and not args.quiet:
                _tell_of_others(library, path)
            with _signals_end_quietly():
                server.run(sockets=[sock])
                signal.signal(signal.SIGINT, signal.SIG_DFL)  # closing may wait for a disk that never answers
                models.close()
    return 0


def _serve_replicas(args: argparse.Namespace, path: Path, name: str, settings: Settings, sock: socket.socket) -> None:
    from smallthinker.cluster.node_store import identity_of
    from smallthinker.cluster.nodes import find_ray, joined
    from smallthinker.cluster.replicas import counts_of, deployed
    from smallthinker.expert_store.store import Store
    from smallthinker.server.runner import Server
    from smallthinker.server.settings import reserved_bytes

    ray, told = find_ray("serve"), sys.stdout
    counts = None if args.replicas is None else counts_of(args.replicas)
    from smallthinker.cluster.front import create_front

    find_drafts_model(args)
    with Store.open(path) as store:
        identity, reserved = identity_of(store), reserved_bytes(settings.limits, store.config.vocab_size)
    model = node_model(args, path, identity, reserved=reserved)
    with joined(ray, args.cluster) as nodes, deployed(model, name, settings, counts or (nodes, nodes)) as replicas:
        app = create_front(replicas, settings)
        server = Server(app, settings.limits, app.state.cancel, grace_sec=args.grace, access_log=args.access_log)
        facts = {"model": name, "context": replicas.context(), "replicas": replicas.running()}
        _tell(args, sock, facts, told)
        with _signals_end_quietly():
            server.run(sockets=[sock])


def _tell(args: argparse.Namespace, sock: socket.socket, facts: dict[str, Any], out: TextIO) -> None:
    host, port = sock.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    said = json.dumps({"url": url, **facts}) if args.json else f"{facts['model']} is served at {url} (Ctrl-C ends)"
    print(said, file=out, flush=True)


def _tell_of_others(library: Library | None, path: Path) -> None:
    """Whoever reads along hears which names requests may have beside the first."""
    from smallthinker.errors import printable
    from smallthinker.library.library import is_same

    models = [] if library is None else library.models()
    names = [printable(model.name) for model in models if model.runs and not is_same(model.path, path)]
    if names:
        print(
            f"a request may name another, which is loaded then: {', '.join(names)}; --only refuses them",
            file=sys.stderr,
        )


def _settings(args: argparse.Namespace) -> Settings:
    from smallthinker.errors import RequestError
    from smallthinker.server.settings import Settings, is_loopback

    key = _api_key(args)
    if key is None and not is_loopback(args.host):
        raise RequestError(
            f"--host {args.host}: everyone who can reach this address could use the model; give --api-key-file, "
            f"--api-key or {KEY_VARIABLE}, or listen on 127.0.0.1"
        )
    return Settings(
        host=args.host,
        api_key=key,
        allowed_hosts=frozenset(args.allow_host),
        cors=tuple(args.cors),
        timeout_sec=args.timeout_sec,
    )


def _api_key(args: argparse.Namespace) -> str | None:
    """The command line's, else the file's, else the environment's."""
    from smallthinker.errors import RequestError
    from smallthinker.files import read_small

    if args.api_key is not None and args.api_key_file is not None:
        raise RequestError("--api-key: give either this or --api-key-file")
    if args.api_key_file is not None:
        path: Path = args.api_key_file
        try:
            key = read_small(path, MOST_KEY_BYTES).decode("ascii").strip()
        except (OSError, UnicodeDecodeError) as e:
            why = e.strerror if isinstance(e, OSError) else "a key has ASCII characters only"
            raise RequestError(f"--api-key-file {path}: cannot read the key: {why}") from None
        if not key:
            raise RequestError(f"--api-key-file {path}: expected a key, found an empty file")
        return key
    key = args.api_key
    return os.environ.get(KEY_VARIABLE) if key is None else str(key)


@contextlib.contextmanager
def _signals_end_quietly() -> Iterator[None]:
    """Uvicorn raises a signal that ended it once more when it is done; by then everything is as it should be."""
    previous = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
