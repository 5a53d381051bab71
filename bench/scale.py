"""How many rows a second do so many nodes answer? Simulated from what one node was measured to do, and tried here.

python bench/scale.py measure STORE OUT.json [--nodes 1 2 3 4] [--storage emmc] [--memory 350MiB] [--limit 1GiB]
python bench/scale.py simulate MEASURED.json [--nodes 1 10 100 1000] [--rows 10000] [--spread 0.3] [--store 2GiB]
       [--source 1.25] [--link 0.125] [--row-sec S]

measure: `batch --cluster` on one Ray node with 1, 2 and 4 rows side by side, which is a node's curve; the driver's cost
of a row, by rows of the demo model; and jobs over several nodes, each in a memory cgroup of its own (needs root); and
what the simulation says of them. All nodes share this machine's processors, so --storage emulates a disk
that they wait for most of the time; what nodes that arithmetic keeps busy do can't be seen that way.

simulate: a queue. Nodes fetch the store from one source (GB/s, shared; each has its link), load it, and take rows as
they have room; the driver hands out one row after another; a node's speed is drawn, log-normal with --spread; a row
takes as long as its node's curve says for the rows that are then side by side. --row-sec: of a row alone, for others.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from smallthinker.benchmark.cgroup import MemoryGroup, memory_limit
from smallthinker.benchmark.environment import machine
from smallthinker.memory_plan import MIB, parse_size

PARALLEL = 4
TEMPLATE = ["--prompt-template", "{text}", "--seed", "0", "--ignore-eos", "--json", "--force"]


def simulated_sec(
    nodes: int, rows: int, *, curve: dict[int, float], driver_sec: float, ready_sec: float, spread: float
) -> float:
    """From the first node's readiness on. curve: rows/s of a node with so many side by side."""
    rng = np.random.default_rng(0)
    speed = np.exp(rng.normal(0, spread, nodes))
    speed /= speed.mean()
    most = max(curve)
    known = sorted(curve)
    per_row = [0.0] + [k / float(np.interp(k, known, [curve[n] for n in known])) for k in range(1, most + 1)]
    active, driver, ended = [0] * nodes, 0.0, 0.0
    free = [(ready_sec, i, node) for i in range(most) for node in range(nodes)]  # (when, tie, node): slots
    heapq.heapify(free)
    ends: list[tuple[float, int]] = []
    for _ in range(rows):
        now, tie, node = heapq.heappop(free)
        driver = max(driver, now) + driver_sec
        while ends and ends[0][0] <= driver:
            active[heapq.heappop(ends)[1]] -= 1
        active[node] += 1
        end = driver + per_row[active[node]] / speed[node]
        heapq.heappush(ends, (end, node))
        heapq.heappush(free, (end, tie, node))
        ended = max(ended, end)
    return ended


def simulate(args: argparse.Namespace) -> None:
    found = json.loads(args.measured.read_text())
    curve = {int(k): v for k, v in found["curve"].items()}
    if args.row_sec is not None:
        scale = 1 / (args.row_sec * curve[1])
        curve = {k: v * scale for k, v in curve.items()}
    print(f"SIMULATED: {args.rows} rows, a node alone {max(curve.values()):.2f} rows/s, the driver "
          f"{1 / found['driver_sec']:.0f} rows/s")  # fmt: skip
    lines = []
    for nodes in args.nodes:
        size = parse_size(args.store) / 1e9
        fetch = max(size / args.link, nodes * size / args.source)
        ready = fetch + found["start_sec"]
        sec = simulated_sec(
            nodes, args.rows, curve=curve, driver_sec=found["driver_sec"], ready_sec=ready, spread=args.spread
        )
        rate = args.rows / (sec - ready)
        of = rate / (nodes * max(curve.values()))
        lines.append({"nodes": nodes, "rows_per_sec": rate, "of_linear": of, "fetch_sec": fetch, "job_sec": sec})
        print(f"SIMULATED {nodes:5} nodes: {rate:9.2f} rows/s ({of:4.0%} of linear), fetching {fetch:6.0f} s, the "
              f"whole job {sec:8.0f} s, {args.rows / sec:8.2f} rows/s with it")  # fmt: skip
    print(json.dumps({"simulated": lines}))


def batch(args: argparse.Namespace, folder: Path, rows: int, tokens: int, *options: str) -> float:
    """-> seconds from the loaded model, or with a cluster from joining it, to the last row."""
    (folder / "in.jsonl").write_text("".join(f'{{"text": "It was the {i}th night"}}\n' for i in range(rows)))
    slow = [args.store, "--storage", args.storage, "--memory", args.memory]
    model = ["demo", "--memory", args.memory] if tokens == 1 else slow  # what costs nearly nothing
    words = ["batch", model[0], "in.jsonl", "out.jsonl", *TEMPLATE, "--max-tokens", str(tokens), "--threads", "1"]
    words += [*model[1:], *options]
    done = subprocess.run(
        [sys.executable, "-m", "smallthinker", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return float(json.loads(done.stdout)["answering_sec"])


def on_nodes(
    args: argparse.Namespace, folder: Path, nodes: int, at_once: int, *jobs: tuple[int, int]
) -> tuple[list[float], Any]:
    """The seconds of these jobs (rows, tokens), one after another, and each node's peak and ceiling hits."""
    import psutil
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 80 << 20, "include_dashboard": False}
    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    with ExitStack() as resources:
        groups: list[MemoryGroup] = []
        try:
            for i in range(nodes):
                node = cluster.add_node(num_cpus=1, memory=parse_size(args.memory), **small)
                groups.append(resources.enter_context(memory_limit(parse_size(args.limit), f"-{i}")))
                for raylet, *_ in (node.all_processes["raylet"],):
                    process = psutil.Process(raylet.process.pid)
                    for each in (process, *process.children(recursive=True)):  # later ones are born into it
                        (groups[-1].folder / "cgroup.procs").write_text(str(each.pid))
            cluster.wait_for_nodes()
            there = ["--cluster", cluster.address, "--parallel", str(at_once), "--node-dir", str(folder / "node")]
            secs = [batch(args, folder, *job, *there) for job in jobs]
            seen = [{"peak_mib": g.peak_bytes() // MIB, "ceiling_hits": g.ceiling_hits()} for g in groups]
        finally:
            cluster.shutdown()
        return secs, seen


def measure(args: argparse.Namespace) -> None:
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    found: dict[str, Any] = machine() | {"storage": args.storage, "memory": args.memory, "limit": args.limit}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        curve = dict[int, float]()
        for k in (1, 2, PARALLEL):  # on a node of Ray, whose libraries take their share of --memory
            (few, many), _ = on_nodes(args, folder, 1, k, (k, args.tokens), (3 * k + 8, args.tokens))
            curve[k] = (2 * k + 8) / (many - few)
            start = few - k / curve[k]
            print(f"one node, {k} rows side by side: {curve[k]:.3f} rows/s, a start {start:.1f} s", flush=True)
        (few, many), _ = on_nodes(args, folder, 1, PARALLEL, (50, 1), (450, 1))
        driver = (many - few) / 400
        print(f"the driver: {1000 * driver:.1f} ms a row", flush=True)
        found |= {"curve": curve, "driver_sec": driver, "start_sec": start, "real": []}
        for nodes in args.nodes:
            rows = args.rows * nodes
            (sec,), seen = on_nodes(args, folder, nodes, PARALLEL, (rows, args.tokens))
            told = simulated_sec(nodes, rows, curve=curve, driver_sec=driver, ready_sec=start, spread=0.0)
            found["real"].append({"nodes": nodes, "rows": rows, "sec": sec, "simulated_sec": told, "groups": seen})
            print(f"{nodes} nodes, {rows} rows: {sec:.1f} s real, {told:.1f} s simulated; {seen}", flush=True)
    args.out.write_text(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    real = commands.add_parser("measure")
    real.add_argument("store")
    real.add_argument("out", type=Path)
    real.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 3, 4])
    real.add_argument("--rows", type=int, default=24, help="of each node")
    real.add_argument("--tokens", type=int, default=6, help="of an answer; 1 is for the driver's cost")
    real.add_argument("--storage", default="emmc")
    real.add_argument("--memory", default="350MiB")
    real.add_argument("--limit", default="1GiB")
    real.set_defaults(run=measure)
    told = commands.add_parser("simulate")
    told.add_argument("measured", type=Path)
    told.add_argument("--nodes", type=int, nargs="+", default=[1, 3, 10, 30, 100, 300, 1000])
    told.add_argument("--rows", type=int, default=10_000)
    told.add_argument("--spread", type=float, default=0.3, help="of nodes' speeds, log-normal")
    told.add_argument("--store", default="2GiB", help="bytes that each node fetches")
    told.add_argument("--source", type=float, default=1.25, help="GB/s of the shared path, for all nodes together")
    told.add_argument("--link", type=float, default=0.125, help="GB/s of one node")
    told.add_argument("--row-sec", type=float, help="seconds of a row alone on a node")
    told.set_defaults(run=simulate)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
