"""`smallthinker probe`: measure a disk."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from smallthinker.commands.models import find_model_or_folder
from smallthinker.commands.options import Commands, ProgressBar, add_command, check_out

if TYPE_CHECKING:
    from smallthinker.expert_store.device.device_probe import DeviceReport


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "probe",
        handle,
        "measure the disk behind a folder, in under 30 seconds",
        "smallthinker probe ./4b-store -o my-disk.toml",
    )
    parser.add_argument(
        "path",
        metavar="PATH",
        nargs="?",
        help="a folder, a large file to read, or a model's name (default: the current folder). A folder's largest file "
        "is read, or a temporary one is written",
    )
    parser.add_argument("-o", "--out", metavar="FILE", type=Path, help="write a profile, for --storage and `plan`")
    parser.add_argument("--force", action="store_true", help="replace FILE")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def handle(args: argparse.Namespace) -> int:
    from smallthinker import host
    from smallthinker.expert_store.device.device_probe import probe_device
    from smallthinker.expert_store.device.probe_file import probe_file
    from smallthinker.expert_store.device.storage_profile import LONGEST_NAME, save_profile_toml

    path, out = find_model_or_folder(args.path) or Path(), args.out
    if out is not None:
        check_out(out, [path], args.force)
    with ProgressBar("writing") as writing, probe_file(path, writing) as file:
        if out is not None:
            check_out(out, [path, file.path], args.force)
        with ProgressBar("measuring", "point") as measuring:
            is_name = out is not None and out.stem.isprintable() and len(out.stem) <= LONGEST_NAME
            name = out.stem if out is not None and is_name else "measured"
            before = host.cpu_seconds()
            report = probe_device(file, name, progress=measuring)
            others = host.cores_of_others(before, host.cpu_seconds())
        shown = file.shown
    if out is not None:
        save_profile_toml(report.profile, out, replace=args.force)
    if args.json:
        print(json.dumps(report.to_dict() | {"out": None if out is None else str(out), "others_cores": others}))
        return 0
    print(f"{shown}: a file of {report.file_bytes / 2**20:,.0f} MiB")
    if report.note is not None:
        print(report.note)
    print(report_text(report))
    if (busy := host.busy_note(others)) is not None:
        print(busy)
    print(f"written to {out}" if out is not None else "-o FILE writes a profile that --storage and `plan` take")
    return 0


def report_text(report: DeviceReport) -> str:
    """The points as a table for each way of reading, and what they come down to."""
    lines = []
    speeds = {(point.kind, point.request_bytes, point.depth): point.bytes_per_sec for point in report.points}
    depths = sorted({depth for _, _, depth in speeds})
    for kind in dict.fromkeys(kind for kind, _, _ in speeds):
        lines.append(f"{kind} cold random reads, MB/s by size (rows) and reads under way (columns)")
        lines.append(f"{'':>8}" + "".join(f"{depth:>9}" for depth in depths))
        for nbytes in sorted({size for of_kind, size, _ in speeds if of_kind == kind}):
            cells = [speeds.get((kind, nbytes, depth)) for depth in depths]
            size = f"{nbytes >> 10} KiB" if nbytes < 1 << 20 else f"{nbytes >> 20} MiB"
            lines.append(f"{size:>8}" + "".join(f"{'-':>9}" if x is None else f"{x / 1e6:9.1f}" for x in cells))
    profile = report.profile
    lines.append(
        f"profile: sequential {profile.sequential_bytes_per_sec / 1e6:,.0f} MB/s, random "
        f"{profile.random_bytes_per_sec / 1e6:,.0f} MB/s and {profile.random_iops:,.0f} reads/s of 4 KiB, latency "
        f"{profile.latency_sec * 1e6:,.0f} us, depth {profile.queue_depth}; it meets the table within "
        f"{report.model_error:.0%} (median)"
    )
    return "\n".join(lines)
