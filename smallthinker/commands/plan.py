"""`smallthinker plan`: what a model would do here, before anything is downloaded or converted."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from smallthinker.commands.models import DEFAULT, add_model, model_word
from smallthinker.commands.options import SHAPE_FORMATS, Commands, ProgressBar, add_command, add_kv, renamed, whole
from smallthinker.commands.output import add_output, check_plot, print_found, save_plot

if TYPE_CHECKING:
    from smallthinker.charts.style import Chart
    from smallthinker.prediction.compute_costs import ComputeCosts
    from smallthinker.prediction.needs import PlannedModel
    from smallthinker.prediction.predict import Prediction
    from smallthinker.prediction.report import Report
    from smallthinker.prediction.routing import Routing


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "plan",
        handle,
        "predict what a model needs and how fast it would be, from its config.json alone",
        "smallthinker plan 4b --memory 512MiB 1GiB 2GiB --storage emmc",
    )
    add_model(
        parser,
        "a name (smallthinker list), a shape (4b, qwen3-30b-a3b, ...), a config.json, a .gguf file, or the folder of a "
        "store or of a hub's weights",
        DEFAULT,
    )
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        nargs="+",
        help="ceilings for the whole process (default: what is free, less a margin)",
    )
    renamed(parser, "--profile", "--storage")
    parser.add_argument(
        "--storage",
        metavar="PROFILE",
        help="a disk: nvme, sata-ssd, ufs, emmc, sd-card, hdd or a file of `smallthinker probe` (default: measure)",
    )
    parser.add_argument(
        "--context", type=whole, metavar="N", help="tokens of prompt and answer together (default: at most 4096)"
    )
    add_kv(parser)
    parser.add_argument("--threads", type=whole, metavar="N", help="arithmetic threads (default: physical cores)")
    parser.add_argument(
        "--quant", choices=SHAPE_FORMATS, help="weight format to convert to (default: q4, or the store's)"
    )
    parser.add_argument("--prompt", type=whole, default=128, metavar="N", help="tokens of a prompt (default: 128)")
    parser.add_argument("--max-tokens", type=whole, default=128, metavar="N", help="tokens of an answer (default: 128)")
    routing = parser.add_mutually_exclusive_group()
    routing.add_argument("--trace", metavar="FILE", type=Path, help="routing that `smallthinker trace` recorded")
    routing.add_argument(
        "--skew",
        type=float,
        metavar="X",
        help="how unevenly experts are used, as for synth (default: 1.3, about that of the published models; 0 is the "
        "worst case)",
    )
    add_output(
        parser,
        rows="one line for each budget and answer",
        plot="what the memory goes to, and speeds from the floor to all that the model can use",
    )


def handle(args: argparse.Namespace) -> int:
    from smallthinker import host
    from smallthinker.errors import ContextLengthError, MemoryBudgetError, RequestError
    from smallthinker.figures import rounded
    from smallthinker.memory_plan import choose_context, default_budget, parse_size
    from smallthinker.options import EngineOptions
    from smallthinker.prediction.advice import best_changes, curve_budgets, recommended_bytes
    from smallthinker.prediction.disks import find_disk
    from smallthinker.prediction.kernel_bench import measure
    from smallthinker.prediction.needs import Process, find_model, floor_bytes, full_bytes, memory_plan
    from smallthinker.prediction.predict import Setting, predict
    from smallthinker.prediction.report import Budgets, Report

    resident = host.resident_bytes()  # before anything that a run would not do
    check_plot(args.plot, [Path(word) for word in (args.storage, args.trace, model_word(args)) if word is not None])
    options = EngineOptions(kv=args.kv, threads=args.threads)
    if args.prompt < 1 or args.max_tokens < 1:
        raise RequestError("--prompt and --max-tokens: expected at least 1")
    model = find_model(_what(model_word(args)), args.quant)
    free = default_budget(host.held_bytes(), host.available_memory_bytes(), host.memory_limit_bytes())
    sizes = sorted(parse_size(size) for size in args.memory) if args.memory else [free]
    context = choose_context(model.config, args.context)
    if args.prompt + args.max_tokens > context:
        raise ContextLengthError(
            f"context: a prompt of {args.prompt} tokens and an answer of {args.max_tokens} don't fit {context}; give a "
            f"smaller --prompt or --max-tokens, or a larger --context"
        )
    routing = _routing(args, model)
    before = host.cpu_seconds()
    with ProgressBar("writing") as writing, ProgressBar("measuring", "point") as measuring:
        disk, disk_source = find_disk(model, args.storage, writing, measuring)
    process = Process(context, options.kv, disk.io_bytes, resident)
    floor, full = floor_bytes(model, process), full_bytes(model, process)
    if max(sizes) < floor:
        none = Report(model, process, Budgets(floor, None, full), (), None, {}, args.prompt, 0)
        least = memory_plan(model, process, floor)
        print_found(args, lambda: f"{none.text()}\n\n{least.table()}", none.to_dict, none.rows)
        memory_plan(model, process, max(sizes))  # raises

    @lru_cache
    def costs_of(quant: str, threads: int) -> ComputeCosts:
        return measure(
            model.config,
            model.formats if quant == model.quant else model.with_quant(quant).formats,
            options.kv,
            threads,
            model.stored_bytes / disk.random_bytes_per_sec,
        )

    costs = costs_of(model.quant, options.threads or host.physical_cores())
    others = host.cores_of_others(before, host.cpu_seconds())
    settings = [
        Setting(model, process, size, disk, costs, routing, args.prompt, args.max_tokens)
        for size in sizes
        if size >= floor
    ]
    between = [replace(settings[0], budget_bytes=size) for size in curve_budgets(floor, full)] if args.plot else []
    with ProgressBar("predicting", "budget") as progress:
        predictions = []
        for setting in [*settings, *between]:
            predictions.append(predict(setting))
            progress(len(predictions), len(settings) + len(between) + 2, "budgets")
        predictions, curve = predictions[: len(settings)], predictions[len(settings) :]
        budgets = Budgets(floor, recommended_bytes(settings[-1]), full)
        progress(len(settings) + len(between) + 1, len(settings) + len(between) + 2, "budgets")
        changes = None
        if len(sizes) == 1:
            changes = tuple(best_changes(settings[0], predictions[0], host.physical_cores(), costs_of))
    tokenizer = "measured" if model.tokenizer_is_measured else "assumed, by the words of its vocabulary"
    sources = {
        "disk": f"{disk_source}; {rounded(disk.random_bytes_per_sec / 1e6)} MB/s of {model.config.records_are}, "
        "read as the engine would",
        "kernels": f"measured here: {costs.threads} threads, {costs.isa}, "
        f"{rounded(1e3 * costs.token_sec(model.config.num_layers))} ms a token with everything in memory",
        "routing": f"{routing.source}; through the engine's own cache, which is empty at first",
        "memory": f"this process before a model is loaded; the tokenizer {tokenizer}",
    }
    asked = args.prompt, args.max_tokens
    report = Report(model, process, budgets, tuple(predictions), changes, sources, *asked, others)
    save_plot(args.plot, lambda: _chart(report, curve))
    print_found(args, report.text, report.to_dict, report.rows)
    if len(settings) < len(sizes):
        raise MemoryBudgetError(f"memory: {min(sizes) / 2**20:.0f} MiB is below the floor of {floor / 2**20:.0f} MiB")
    return 0


def _what(word: str | None) -> str:
    """What `prediction.needs.find_model` takes: of a name, the model's path; else what was given."""
    from smallthinker.expert_store.format import CONFIG_FILE
    from smallthinker.library import Library
    from smallthinker.library.resolve import is_path, resolve
    from smallthinker.models.published import published_shape

    library = Library()
    if word is None:
        return str(resolve(None, library))
    path = Path(word)
    model = None if is_path(word) else library.named(word)
    if model is not None:
        if published_shape(word) is not None:
            print(f"note: {word}: the model of that name at {model.path}, not the published shape", file=sys.stderr)
            return str(model.path)
        return str(model.path if model.kind == "checkpoint" else resolve(word, library))
    if published_shape(word) is not None or path.is_file() or (path / CONFIG_FILE).is_file():
        return word
    return str(resolve(word, library))


def _chart(report: Report, curve: list[Prediction]) -> Chart:
    from smallthinker.charts.plan import plan_chart

    return plan_chart(report, curve)


def _routing(args: argparse.Namespace, model: PlannedModel) -> Routing:
    from smallthinker.errors import RequestError
    from smallthinker.expert_store.synthetic.synth import MAX_SKEW
    from smallthinker.prediction.routing import PUBLISHED_SKEW, synthetic_routing, traced_routing
    from smallthinker.router.trace import load_trace

    config, tokens = model.config, 2 * (args.prompt + args.max_tokens)
    if args.trace is not None:
        trace = load_trace(args.trace)
        found = (trace.layers, trace.experts, trace.experts_per_token)
        config.check_routed("--trace")
        routed = config.routed_layers
        expected = (len(routed), config.experts_of_layers[routed[0]], config.used_of_layers[routed[0]])
        if found != expected:
            raise RequestError(
                f"{args.trace}: expected a trace of {expected[0]} routed layers of {expected[1]} experts, "
                f"{expected[2]} a token, found {found[0]}, {found[1]} and {found[2]}; record one of this model"
            )
        return traced_routing(trace, tokens, config)
    skew = PUBLISHED_SKEW if args.skew is None else args.skew
    if not 0 <= skew <= MAX_SKEW:
        raise RequestError(f"--skew: expected a number from 0 to {MAX_SKEW:g}, found {skew}")
    return synthetic_routing(config, tokens, skew)
