"""Results as Markdown: one row for each cell and start, the ceiling beside every figure."""

from __future__ import annotations

from collections.abc import Sequence

from smallthinker import host
from smallthinker.benchmark.matrix import RAW
from smallthinker.benchmark.results import Results, Row
from smallthinker.benchmark.summary import CellSummary, Spread, cliffs
from smallthinker.figures import rounded, size_text
from smallthinker.memory_plan import MIB

_COLUMNS = (
    "disk", "prompt", "budget", "start", "decode, tokens/s", "ceiling", "hit rate (at best)", "MiB read a token",
    "prompt, tokens/s", "ceiling", "TTFT, s", "at least", "peak memory",
)  # fmt: skip


def markdown(results: Results, summaries: Sequence[CellSummary]) -> str:
    """The whole results.md."""
    environment = results.environment
    lines = [f"# {escaped(environment['model']['name'])}", "", *(f"- {escaped(f)}" for f in facts(environment)), ""]
    lines += [
        "Medians, with the least and the most of all runs. Ceilings are rooflines of the very runs: kernels alone, or",
        "the needed bytes over the disk's bandwidth, whichever takes longer. Cold: the process's first answer, nothing",
        "of the store in the page cache. Warm: its second.",
        "",
        *aligned([_COLUMNS, *(_cells(summary) for summary in summaries)]),
        "",
    ]
    for row in results.of_kind("failed"):
        place = f"{disk_name(row['profile'])}, {size_text(row['memory_bytes'])}, prompt of {row['prompt_tokens']}"
        lines.append(f"- not possible: {escaped(place)}: {escaped(row['error'])}")
    lines += [f"- {escaped(text)}" for text in notes(results, summaries)]
    return "\n".join(lines).rstrip() + "\n"


def facts(environment: Row) -> list[str]:
    """What every figure hangs on, a few words each."""
    machine, disk, model, settings = (environment[key] for key in ("machine", "disk", "model", "settings"))
    return [
        f"{machine['cpu']}, {machine['cores']} cores, {size_text(machine['memory_bytes'])} of memory, "
        f"{machine['system']}",
        f"disk: {device_text(disk)}, {disk['filesystem'] or 'unknown'} file system",
        f"smallthinker {environment['versions']['smallthinker']}, commit {machine['commit'] or 'unknown'}, "
        f"{environment['measured']}",
        f"model: {model['name']}, {model['quant']}, {model['num_experts']} experts of "
        f"{model['record_bytes'] / MIB:.3g} MiB and {model['dense_bytes'] / MIB:.4g} MiB of dense weights",
        tokens_text(settings),
        limits_text(environment),
    ]


def device_text(disk: Row) -> str:
    """The real disk, as far as the system knows it."""
    if disk["device"] is None:
        return "unknown"
    kind = {True: "hard disk", False: "solid-state disk", None: "virtual disk"}[disk["rotational"]]
    return f"{disk['model'] or kind} ({disk['device']})"


def tokens_text(settings: Row) -> str:
    source = f"random ids of seed {settings['seed']}" if settings["source"] == "random" else "a text"
    decoded = (
        "the likeliest each time"
        if settings["greedy"]
        else "the source's next ones, whatever the model finds likeliest"
    )
    return f"tokens: {source}; {settings['tokens']} decoded after each prompt, {decoded}"


def limits_text(environment: Row) -> str:
    settings = environment["settings"]
    memory = "a memory cgroup of the budget's size" if settings["limit"] else "the engine's own plan, no cgroup"
    who = "the kernel's throttle" if settings["throttle"] == "kernel" else "emulated by the engine"
    disks = f"; disks other than the real one: {who}" if environment["profiles"] else ""
    return f"memory held to the budget by {memory}{disks}"


def disk_name(profile: str) -> str:
    return "real disk" if profile == RAW else profile


def spread_text(spread: Spread, digits: int = 3) -> str:
    if len(spread.values) == 1:
        return rounded(spread.median, digits)
    return f"{rounded(spread.median, digits)} ({rounded(spread.least, digits)} to {rounded(spread.most, digits)})"


def notes(results: Results, summaries: Sequence[CellSummary]) -> list[str]:
    """Why not all of it may be believed."""
    return [*cliff_notes(summaries), *busy_notes(results)]


def busy_notes(results: Results) -> list[str]:
    """Runs beside which other programs, or other machines of the host, worked."""
    runs = results.of_kind("run")
    others = [row.get("others_cores", 0.0) for row in runs]  # runs of before this was looked at have none
    busy = [cores for cores in others if host.busy_note(cores) is not None]
    if not busy:
        return []
    return [
        f"the machine was busy in {len(busy)} of {len(runs)} runs: others took up to {rounded(max(busy), 2)} of its "
        f"processors; when it is quiet, measure again with --force, and expect more"
    ]


def cliff_notes(summaries: Sequence[CellSummary]) -> list[str]:
    """More memory must not be slower."""
    return [
        f"slower with more memory: {disk_name(more.cell.profile)}, prompt of {more.cell.prompt_tokens}, {more.start}: "
        f"at most {more.decode.most:.3g} tokens/s in {size_text(more.cell.memory_bytes)}, "
        f"at least {less.decode.least:.3g} in {size_text(less.cell.memory_bytes)}"
        for less, more in cliffs(summaries)
    ]


def escaped(text: object) -> str:
    """For a cell or a line of Markdown: nothing in it is markup, and nothing ends the cell."""
    line = " ".join(str(text).split())
    for mark, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("\\", "&#92;"), ("|", "&#124;"), ("`", "&#96;"),
                       ("[", "&#91;"), ("]", "&#93;"), ("*", "&#42;")):  # fmt: skip
        line = line.replace(mark, safe)
    return line


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, the first row its header; columns line up for who reads it as text."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _cells(s: CellSummary) -> tuple[str, ...]:
    return (
        escaped(disk_name(s.cell.profile)),
        str(s.cell.prompt_tokens),
        size_text(s.cell.memory_bytes),
        s.start,
        spread_text(s.decode),
        f"{rounded(s.decode_ceiling)} ({s.decode_bound})",
        f"{s.hit_rate:.0%} ({s.best_hit_rate:.0%})".replace("%", " %"),
        rounded(s.read_bytes_per_token / MIB),
        spread_text(s.prefill),
        f"{rounded(s.prefill_ceiling)} ({s.prefill_bound})",
        spread_text(s.ttft),
        rounded(s.ttft_floor),
        memory_text(s),
    )


def memory_text(s: CellSummary) -> str:
    if s.limit_peak_bytes is None:
        return f"{s.peak_memory_bytes / MIB:,.0f} MiB"
    return f"{s.limit_peak_bytes / MIB:,.0f} MiB, {s.ceiling_hits} ceiling hits"
