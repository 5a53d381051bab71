"""`smallthinker probe`: measure a disk."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallthinker.commands.models import find_model_or_folder
from smallthinker.commands.options import Commands, ProgressBar, add_command, check_out
from smallthinker.commands.output import add_output, check_plot, print_found, save_plot

if TYPE_CHECKING:
    from smallthinker.charts.style import Chart
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
    add_output(parser, rows="one line for each size, depth and way of reading", plot="speeds by size and depth")


def handle(args: argparse.Namespace) -> int:
    from smallthinker import host
    from smallthinker.expert_store.device.device_probe import probe_device
    from smallthinker.expert_store.device.probe_file import probe_file
    from smallthinker.expert_store.device.storage_profile import LONGEST_NAME, save_profile_toml

    path, out = find_model_or_folder(args.path) or Path(), args.out
    check_plot(args.plot, [path])
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
    save_plot(args.plot, lambda: _chart(report, shown))

    def text() -> str:
        notes = [report.note, host.busy_note(others)]
        written = f"written to {out}" if out is not None else "-o FILE writes a profile that --storage and `plan` take"
        lines = [f"{shown}: a file of {report.file_bytes / 2**20:,.0f} MiB", notes[0], report_text(report), notes[1]]
        return "\n".join(line for line in [*lines, written] if line is not None)

    def facts() -> dict[str, Any]:
        return report.to_dict() | {"out": None if out is None else str(out), "others_cores": others}

    print_found(args, text, facts, lambda: [point.to_dict() for point in report.points])
    return 0


def _chart(report: DeviceReport, shown: Path) -> Chart:
    from smallthinker.charts.disk import disk_chart

    return disk_chart(report, shown.resolve().name)


def report_text(report: DeviceReport) -> str:
    """The points as a table for each way of reading, and what they come down to."""
    from smallthinker.figures import rounded

    lines = []
    speeds = {(point.kind, point.request_bytes, point.depth): point.bytes_per_sec for point in report.points}
    depths = sorted({depth for _, _, depth in speeds})
    for kind in dict.fromkeys(kind for kind, _, _ in speeds):
        lines.append(f"{kind} cold random reads, MB/s by size (rows) and reads under way (columns)")
        lines.append(f"{'':>8}" + "".join(f"{depth:>9}" for depth in depths))
        for nbytes in sorted({size for of_kind, size, _ in speeds if of_kind == kind}):
            cells = [speeds.get((kind, nbytes, depth)) for depth in depths]
            size = f"{nbytes >> 10} KiB" if nbytes < 1 << 20 else f"{nbytes >> 20} MiB"
            lines.append(f"{size:>8}" + "".join(f"{'-' if x is None else rounded(x / 1e6):>9}" for x in cells))
    profile = report.profile
    apart = "" if report.spread is None else f", {report.spread:.0%} apart in the median".replace("%", " %")
    lines.append(f"medians of {report.runs} run{'s' * (report.runs > 1)}{apart}")
    lines.append(
        f"profile: sequential {rounded(profile.sequential_bytes_per_sec / 1e6)} MB/s, random "
        f"{rounded(profile.random_bytes_per_sec / 1e6)} MB/s and {profile.random_iops:,.0f} reads/s of 4 KiB, latency "
        f"{profile.latency_sec * 1e6:,.0f} us, depth {profile.queue_depth}; it meets the table within "
        f"{report.model_error:.0%} (median)"
    )
    return "\n".join(lines)
