"""A diagnosis as text: for the reader, and as a block for a bug report in which nobody is named.

Owns the words and what is left out of them. Knows what `doctor.diagnose` returns.
"""

from __future__ import annotations

import contextlib
import getpass
import re
import socket
import sys
from pathlib import Path
from typing import Any

from smallthinker.errors import one_line

MIB, GIB = 1 << 20, 1 << 30
# A path: from a slash, a drive or a share up to a space or what ends one in a sentence.
_PATH = re.compile(r"""(?<![\w.])(?:~|[A-Za-z]:(?=[\\/])|\\)?[\\/][^\s'",;:)\]]*""")


def diagnosis_text(facts: dict[str, Any]) -> str:
    """facts: what `diagnose` returns -> lines for people."""
    lines = _lines(facts, facts["disk"]["path"])
    for finding in facts["findings"]:
        lines.append(_row(finding["severity"], finding["what"]))
        lines.append(_row("", f"-> {finding['remedy']}"))
    lines.append(_row("ready" if facts["would_run"] else "NOT READY", _verdict(facts)))
    return "\n".join([*lines, "", "for a bug report, without paths and names: smallthinker doctor --report"])


def report_block(facts: dict[str, Any]) -> str:
    """Markdown to be pasted into an issue: no path, no user's name, no host's name."""
    lines = _lines(facts, None)
    lines += [_row(finding["severity"], finding["what"]) for finding in facts["findings"]]
    lines.append(_row("ready" if facts["would_run"] else "NOT READY", _verdict(facts)))
    paths = [facts["disk"]["path"], (facts["store"] or {}).get("path"), *_own_paths()]
    return without_persons("\n".join(["```text", *lines, "```"]), [path for path in paths if path], _names())


def without_persons(text: str, paths: list[str], names: list[str]) -> str:
    """`text` with every path, and every one of the names where it stands as a word, replaced. paths: those that are
    known, since a path with a space in it can't be told from the words after it."""
    for path in sorted({path for path in paths if len(path) > 1}, key=len, reverse=True):
        text = text.replace(path, "<path>")
    text = _PATH.sub("<path>", text)
    text = re.sub(r"<path>(?:<path>|[\w.-])*", "<path>", text)
    for name in sorted({name for name in names if name}, key=len, reverse=True):
        text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", "<name>", text, flags=re.IGNORECASE)
    return text


def _own_paths() -> list[str]:
    paths = [sys.prefix, str(Path(__file__).parent)]
    for place in (Path.cwd, Path.home):
        with contextlib.suppress(OSError, RuntimeError):  # a folder that is gone, a user without a home
            paths.append(str(place()))
    return paths


def _names() -> list[str]:
    host_name = socket.gethostname()
    names = [host_name, host_name.split(".")[0]]
    with contextlib.suppress(OSError, KeyError, ImportError, RuntimeError):  # a user without an entry or a home
        names += [getpass.getuser(), Path.home().name]
    return names


def _row(name: str, value: str) -> str:
    return f"{name:<12}{one_line(value)}"


def _verdict(facts: dict[str, Any]) -> str:
    if not facts["would_run"]:
        return "see the errors above"
    store = facts["store"]
    if store is None:
        return "the bundled model answers"
    return (
        f"the bundled model answers, and the store fits: it needs {store['floor_bytes'] / MIB:,.0f} MiB at least, "
        f"{store['room_bytes'] / MIB:,.0f} MiB can be had"
    )


def _lines(facts: dict[str, Any], path: str | None) -> list[str]:
    """path: of the disk, None to leave it out."""
    isa, chosen, kernel = facts["isa"], facts["chosen"], facts["kernel"]
    budget = chosen["budget_bytes"]
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    rows = [
        ("version", f"{facts['version']}, Python {facts['python']}, {facts['system']}"),
        ("system", ", ".join(part for part in (facts["distribution"], facts["libc"]) if part) or "unknown"),
        ("packages", packages),
        (
            "cpu",
            f"{facts['cpu']}, {facts['physical_cores'] or 'unknown'} physical cores, {facts['logical_cores']} logical",
        ),
        ("", " ".join(facts["cpu_flags"]) or "none known"),
        ("kernels", "none" if isa is None else _kernels_text(isa)),
        ("memory", _memory_text(facts)),
        ("limits", _limits_text(facts)),
        ("kernel", _kernel_text(kernel)),
        ("disk", _disk_text(facts["disk"], path)),
    ]
    if facts["store"] is not None:
        rows.append(("store", _store_text(facts["store"])))
    rows += [
        ("threads", f"{chosen['threads']['value']}: {chosen['threads']['why']}"),
        ("reader", f"{chosen['reader']['value']}: {chosen['reader']['why']}"),
        ("budget", "unknown" if budget["value"] is None else f"{budget['value'] / MIB:,.0f} MiB: {budget['why']}"),
    ]
    return [_row(name, value) for name, value in rows]


def _kernels_text(isa: dict[str, Any]) -> str:
    return (
        f"{isa['chosen']}, {isa['why']}; it can run {', '.join(isa['available'])} of {', '.join(isa['built'])}; "
        f"compiled by {isa['compiler']}"
    )


def _memory_text(facts: dict[str, Any]) -> str:
    swap = f"swap {facts['swap_bytes'] / MIB:,.0f} MiB, {facts['swap_free_bytes'] / MIB:,.0f} free"
    text = f"{facts['memory_bytes'] / MIB:,.0f} MiB, {facts['memory_available_bytes'] / MIB:,.0f} MiB available, "
    text += swap if facts["swap_bytes"] else "no swap"
    if facts["memory_limit_bytes"] is None:
        return text + ", no cgroup limit"
    used = max((cgroup["used_bytes"] for cgroup in facts["cgroups"]), default=0)
    return text + (
        f", cgroup limit {facts['memory_limit_bytes'] / MIB:,.0f} MiB (v{facts['cgroup_version']}), "
        f"{used / MIB:,.0f} MiB used"
    )


def _limits_text(facts: dict[str, Any]) -> str:
    parts = [
        f"ulimit -{letter} {'unlimited' if limit is None else f'{limit / MIB:,.0f} MiB'}"
        for letter, limit in facts["ulimits"].items()
    ]
    if facts["overcommit"] is not None:
        parts.append(f"overcommit mode {facts['overcommit']['mode']}")
    return ", ".join(parts) or "none known"


def _kernel_text(kernel: dict[str, Any]) -> str:
    parts = [f"transparent huge pages {kernel['transparent_huge_pages'] or 'not known here'}"]
    for name, what in (("huge_pages", "asking for them"), ("cachestat", "cachestat")):
        has = kernel[name]
        parts.append(f"{what} {'not tried' if has is None else 'works' if has else 'missing'}")
    return ", ".join(parts)


def _disk_text(disk: dict[str, Any], path: str | None) -> str:
    kinds = {True: "rotating", False: "not rotating", None: "rotating or not: unknown"}
    direct = {True: "direct reads work", False: "no direct reads", None: "direct reads not tried"}
    parts = [
        disk["file_system"] or "file system unknown",
        f"on {disk['device']}" if disk["device"] else "no block device",
        kinds[disk["is_rotational"]],
        direct[disk["direct_reads"]],
        f"{disk['free_bytes'] / GIB:,.1f} of {disk['total_bytes'] / GIB:,.1f} GiB free",
    ]
    if disk["is_read_only"] or not disk["is_writable"]:
        parts.append("read-only" if disk["is_read_only"] else "not writable for this user")
    return ("" if path is None else f"{path}: ") + ", ".join(parts)


def _store_text(store: dict[str, Any]) -> str:
    compressed = ", compressed" if store["is_compressed"] else ""
    return (
        f"{store['quant']}{compressed}, {store['num_experts']} experts of {store['experts_bytes'] / MIB:,.0f} MiB, "
        f"{store['dense_bytes'] / MIB:,.0f} MiB dense; at least {store['floor_bytes'] / MIB:,.0f} MiB for a context of "
        f"{store['context']}"
    )
