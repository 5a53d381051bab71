"""What a disk gives, by the size of a read and by how many are under way."""

from __future__ import annotations

from smallthinker.charts.style import LINE_COLORS, Chart, dashed, legend_below, panels, speed_axis
from smallthinker.expert_store.device.device_probe import DeviceReport
from smallthinker.figures import size_text


def disk_chart(report: DeviceReport, name: str) -> Chart:
    """A panel for direct reads and one for buffered ones; name: of what was read."""
    kinds = list(dict.fromkeys(point.kind for point in report.points))
    depths = sorted({point.depth for point in report.points})
    sizes = sorted({point.request_bytes for point in report.points})
    title = f"Cold random reads, {name}"
    figure, places = panels([f"{name}: {kind} reads" for kind in kinds], 4.0)
    speeds = [value / 1e6 for point in report.points for value in (point.bytes_per_sec, point.least, point.most)]
    for kind, axes in zip(kinds, places, strict=True):
        for depth, color in zip(depths, LINE_COLORS, strict=False):
            line = [point for point in report.points if point.kind == kind and point.depth == depth]
            if not line:
                continue
            line.sort(key=lambda point: point.request_bytes)
            x, y = [point.request_bytes for point in line], [point.bytes_per_sec / 1e6 for point in line]
            spread = [
                [(p.bytes_per_sec - p.least) / 1e6 for p in line],
                [(p.most - p.bytes_per_sec) / 1e6 for p in line],
            ]
            axes.errorbar(
                x, y, yerr=spread, color=color, marker="o", markersize=4, linewidth=1.6, capsize=2, elinewidth=1,
                label=f"{depth} under way",
            )  # fmt: skip
            profile = [report.profile.bytes_per_sec(size, depth) / 1e6 for size in sizes]
            axes.plot(sizes, profile, "--", color=color, linewidth=0.9, alpha=0.6)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [_read_size(size) for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel("size of a read")
        speed_axis(axes, min(speeds), max(speeds))
    places[0].set_ylabel("MB/s")
    legend_below(figure, places[:1], 4, [dashed("as the profile has it")])
    caption = f"Medians of up to {max(point.runs for point in report.points)} runs; bars span all of them."
    return Chart("probe", title, caption, figure, {})


def _read_size(nbytes: int) -> str:
    return f"{nbytes >> 10} KiB" if nbytes < 1 << 20 else size_text(nbytes)
