"""How well does `smallthinker plan` predict what then happens?

python bench/plan_check.py --eight SKEWED_STORE EVEN_STORE [--only NAME ...] [--limit] [--out FILE.jsonl]
python bench/plan_check.py STORE --skew 1.3 --memory 512MiB 1GiB [--storage emmc] [--out FILE.jsonl]
python bench/plan_check.py --table FILE.jsonl

`--eight` goes through EIGHT, named combinations of model, budget and disk, with the prompt, answer and context of
`plan` by default; the stores are those of `synth 4b --skew 1.3` and `--skew 0`. It says which speeds are predicted
within 15 % of what was measured, and exits with 1 unless all are.

For each combination, in processes of their own and in turns: a prediction, from a new probe of the disk or the named
profile, a bench of the kernels and a routing drawn with that skew; then the engine, from a cold page cache, which gives
two answers of random tokens. Medians of `--repeats` of each. Where something else used the processors meanwhile, a run
is made again. What earlier runs left of hot experts beside the store is deleted. `--table` prints what several such
calls wrote: a Markdown table, and the median error.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from smallthinker import host
from smallthinker.benchmark.cgroup import joining, memory_limit
from smallthinker.benchmark.disk import make_cold
from smallthinker.benchmark.environment import machine
from smallthinker.engine import Engine
from smallthinker.expert_store.device.disk_profile import save_profile
from smallthinker.expert_store.device.probe import probe
from smallthinker.expert_store.device.storage_profile import load_profile
from smallthinker.expert_store.format import HOT_FILE, PROFILE_FILE
from smallthinker.expert_store.store import Store
from smallthinker.memory_plan import MIB, parse_size
from smallthinker.prediction.disk_model import DiskModel
from smallthinker.prediction.kernel_bench import measure
from smallthinker.prediction.needs import Process, find_model
from smallthinker.prediction.predict import Setting, predict
from smallthinker.prediction.routing import synthetic_routing

MOST_OTHERS = 0.05  # of all processors' time, that other programs may take during a run
WITHIN = 0.15
# By name: of the skewed or the even store, the budget, and the disk; None is its own.
EIGHT: dict[str, tuple[bool, str, str | None]] = {
    "skewed-512MiB": (True, "512MiB", None),
    "skewed-768MiB": (True, "768MiB", None),
    "skewed-1GiB": (True, "1GiB", None),
    "skewed-2GiB": (True, "2GiB", None),
    "even-1536MiB": (False, "1536MiB", None),
    "even-1GiB-sata": (False, "1GiB", "sata-ssd"),
    "skewed-1GiB-sata": (True, "1GiB", "sata-ssd"),
    "skewed-1GiB-emmc": (True, "1GiB", "emmc"),
}
FIGURES = (("first", "tok_per_sec"), ("later", "tok_per_sec"), ("first", "ttft_sec"), ("later", "ttft_sec"))
Row = dict[str, Any]


@contextmanager
def kept_profile(store: Path) -> Iterator[None]:
    """The store's disk profile is afterwards what it was."""
    path = store / PROFILE_FILE
    before = path.read_bytes() if path.exists() else None
    try:
        yield
    finally:
        if before is not None:
            path.write_bytes(before)
        else:
            path.unlink(missing_ok=True)


def predicted(args: argparse.Namespace) -> Row:
    resident = host.resident_bytes()
    model = find_model(str(args.store), None)
    if args.storage is None:
        with Store.open(args.store) as store:
            found = probe(store)
            save_profile(store, found)  # the run reads the disk as this probe found best
        disk = DiskModel.of_probe(found, "this disk")
    else:
        disk = DiskModel.of_device(load_profile(args.storage), model.record_bytes)
    costs = measure(model.config, model.formats, read_sec=model.stored_bytes / disk.random_bytes_per_sec)
    setting = Setting(
        model=model,
        process=Process(args.context, "f16", disk.io_bytes, resident),
        budget_bytes=parse_size(args.memory[0]),
        disk=disk,
        costs=costs,
        routing=synthetic_routing(model.config, 2 * (args.prompt + args.tokens), args.skew),
        prompt_tokens=args.prompt,
        answer_tokens=args.tokens,
    )
    result = predict(setting)
    return {
        "load_sec": result.load_sec,
        "slots": result.plan.slots,
        "disk_bytes_per_sec": disk.random_bytes_per_sec,
        "costs": costs.to_dict(),
        "first": {"ttft_sec": result.first_ttft_sec} | result.first_decode.to_dict(),
        "later": {"ttft_sec": result.later_ttft_sec} | result.later_decode.to_dict(),
    }


def measured(args: argparse.Namespace) -> Row:
    with Engine(args.store, memory=args.memory[0], context=args.context, storage=args.storage) as engine:
        row: Row = {"load_sec": engine.load_sec, "slots": engine.plan.slots, "others": 0.0}
        rng = np.random.default_rng(args.seed)
        for name in ("first", "later"):
            ids = rng.integers(0, engine.config.vocab_size, args.prompt + args.tokens).tolist()
            engine.forget()
            row[name] = answer(engine, ids, args.prompt)
            row["others"] = max(row["others"], row[name]["others"])
        return row


def answer(engine: Engine, ids: list[int], prompt: int) -> Row:
    """One prompt and the tokens after it."""
    began, tokens = time.perf_counter(), len(ids) - prompt
    engine.prefill(ids[:prompt])
    ttft = time.perf_counter() - began
    before, clocks, began = engine.experts.counters(), engine.clocks(), time.perf_counter()
    cpu, own = sum(psutil.cpu_times()[:3]), time.process_time()
    for token in ids[prompt:]:
        engine.decode(token)
    seconds = time.perf_counter() - began
    cpu, own = sum(psutil.cpu_times()[:3]) - cpu, time.process_time() - own
    counters, clocks = engine.experts.counters() - before, engine.clocks() - clocks
    return {
        "ttft_sec": ttft,
        "tok_per_sec": tokens / seconds,
        "hit_rate": counters.hit_rate,
        "bytes_read_per_token": counters.bytes_read / tokens,
        "compute_sec_per_token": (clocks.wall_sec - clocks.stall_sec) / tokens,
        "disk_bytes_per_sec": counters.bytes_read / counters.busy_sec if counters.busy_sec else None,
        "others": max(cpu - own, 0.0) / seconds / (psutil.cpu_count() or 1),
    }


def in_process(args: argparse.Namespace, part: str, memory: str) -> Row:
    command = [sys.executable, __file__, str(args.store), "--part", part, "--memory", memory]
    for name in ("context", "prompt", "tokens", "seed", "storage", "skew"):
        if (value := getattr(args, name)) is not None:
            command += [f"--{name}", str(value)]
    with ExitStack() as resources:
        groups = []
        if args.limit and part == "run":
            groups.append(resources.enter_context(memory_limit(parse_size(memory))).folder)
        result = subprocess.run(joining(groups, command), capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{memory}: {result.stderr.splitlines()[-1]}")
    row: Row = json.loads(result.stdout.splitlines()[-1])
    return row


def line(row: Row) -> str:
    cells = [row["model"], f"{row['skew']:g}", row["storage"] or "its own", row["memory"]]
    for name in ("first", "later"):
        p, m = row["predicted"][name], row["measured"][name]
        cells.append(f"{p['tok_per_sec']:.2f}, {m['tok_per_sec']:.2f}: {error(row, name, 'tok_per_sec'):+.0%}")
    p, m = row["predicted"]["first"], row["measured"]["first"]
    cells.append(f"{p['ttft_sec']:.2f}, {m['ttft_sec']:.2f}: {error(row, 'first', 'ttft_sec'):+.0%}")
    p, m = row["predicted"]["later"], row["measured"]["later"]
    cells.append(f"{p['hit_rate']:.0%}, {m['hit_rate']:.0%}")
    cells.append(f"{p['bytes_read_per_token'] / MIB:.1f}, {m['bytes_read_per_token'] / MIB:.1f}")
    cells.append(p["limit"])
    return f"| {' | '.join(cells)} |".replace("%", " %")


def error(row: Row, name: str, key: str) -> float:
    predicted: float = row["predicted"][name][key]
    return predicted / row["measured"][name][key] - 1


def table(rows: list[Row]) -> str:
    lines = [
        "| model | skew | disk | budget | tokens/s of the first answer: predicted, measured | of the second | "
        "first TTFT, s | hit rate | MiB a token | limit |",
        "|" + "---|" * 10,
        *map(line, rows),
        "",
    ]
    for name, key in FIGURES:
        errors = sorted(abs(error(row, name, key)) for row in rows)
        lines.append(
            f"{key} of the {name} answer: {len(errors)} combinations, median error {statistics.median(errors):.1%}, "
            f"nine of ten within {errors[min(len(errors) - 1, int(0.9 * len(errors)))]:.1%}, largest {errors[-1]:.1%}"
        )
    return "\n".join(lines)


def check(args: argparse.Namespace, memory: str) -> Row:
    """Medians of predictions and runs in turns: a disk and its neighbours change from minute to minute."""
    predictions, runs = [], []
    for _ in range(args.repeats):
        predictions.append(in_process(args, "predict", memory))
        runs.append(quiet_run(args, memory))
    facts = {"model": args.name, "skew": args.skew, "storage": args.storage, "memory": memory, "repeats": args.repeats}
    found = {"predicted": median_of(predictions), "measured": median_of(runs)}
    return facts | found | {"tokens": args.tokens, "prompt": args.prompt, "limit": args.limit} | machine()


def quiet_run(args: argparse.Namespace, memory: str) -> Row:
    """The first during which nothing else worked, or the quietest of three."""
    runs = []
    while len(runs) < 3 and (not runs or runs[-1]["others"] > MOST_OTHERS):
        make_cold(args.store)
        (args.store / HOT_FILE).unlink(missing_ok=True)  # a first run knows of no hot experts
        runs.append(in_process(args, "run", memory))
    return min(runs, key=lambda run: run["others"])


def median_of(rows: list[Row]) -> Row:
    """Of every figure, in parts of a row, too; of what is no number, the first."""
    found: Row = {}
    for key, value in rows[0].items():
        values = [row[key] for row in rows]
        if isinstance(value, dict):
            found[key] = median_of(values)
        else:
            found[key] = statistics.median(values) if all(isinstance(v, int | float) for v in values) else value
    return found


def verdict(name: str, row: Row) -> tuple[str, bool]:
    """A line about a combination, and whether both answers' speeds were predicted."""
    errors = {which: error(row, which, "tok_per_sec") for which in ("first", "later")}
    is_within = all(abs(found) <= WITHIN for found in errors.values())
    said = ", ".join(
        f"{which} {row['predicted'][which]['tok_per_sec']:.3g} tokens/s, measured "
        f"{row['measured'][which]['tok_per_sec']:.3g}: {100 * found:+.0f} %"
        for which, found in errors.items()
    )
    busy = f"; others took {100 * row['measured']['others']:.0f} %" if row["measured"]["others"] > MOST_OTHERS else ""
    return f"{'within' if is_within else 'OUTSIDE'}  {name:<18}{said}{busy}", is_within


def check_eight(args: argparse.Namespace, skewed: Path, even: Path) -> int:
    unknown = set(args.only or ()) - EIGHT.keys()
    if unknown:
        sys.exit(f"--only: no {', '.join(sorted(unknown))}; there are {', '.join(EIGHT)}")
    args.tokens, args.prompt, args.context = 128, 128, 4096
    names, good = [name for name in EIGHT if name in (args.only or EIGHT)], 0
    for name in names:
        is_skewed, memory, args.storage = EIGHT[name]
        args.store, args.skew = (skewed, 1.3) if is_skewed else (even, 0.0)
        with kept_profile(args.store):
            row = check(args, memory)
        keep(args, row | {"name": name})
        said, is_within = verdict(name, row)
        good += is_within
        print(said, flush=True)
    print(f"{good} of {len(names)} combinations within {100 * WITHIN:.0f} % of the median of {args.repeats} runs")
    return int(good < len(names))


def keep(args: argparse.Namespace, row: Row) -> None:
    if args.out is not None:
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", type=Path, nargs="?")
    parser.add_argument("--eight", type=Path, nargs=2, metavar=("SKEWED", "EVEN"), help="go through EIGHT")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of EIGHT, these alone")
    parser.add_argument("--limit", action="store_true", help="a memory cgroup of the budget's size around each run")
    parser.add_argument("--name", default="4B", help="of the model, in the table")
    parser.add_argument("--skew", type=float, default=1.3, help="that the store was made with")
    parser.add_argument("--memory", nargs="+", default=["1GiB"])
    parser.add_argument("--storage", help="a storage profile to emulate")
    parser.add_argument("--tokens", type=int, default=64, help="to decode")
    parser.add_argument("--prompt", type=int, default=16, help="tokens before them")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3, help="predictions and runs of each combination")
    parser.add_argument("--seed", type=int, default=0, help="of the token ids")
    parser.add_argument("--out", type=Path, help="append each combination to this file")
    parser.add_argument("--table", type=Path, help="print what such files hold")
    parser.add_argument("--part", choices=["predict", "run"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.table is not None:
        print(table([json.loads(text) for text in args.table.read_text().splitlines()]))
    elif args.eight is not None:
        sys.exit(check_eight(args, *args.eight))
    elif args.store is None:
        parser.error("expected a store, --eight or --table")
    elif args.part is not None:
        print(json.dumps(predicted(args) if args.part == "predict" else measured(args)))
    else:
        with kept_profile(args.store):
            for memory in args.memory:
                row = check(args, memory)
                print(line(row), f"others {row['measured']['others']:.0%}", flush=True)
                keep(args, row)


if __name__ == "__main__":
    main()
