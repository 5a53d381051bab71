"""Charts as files, and as part of a page. One drawing serves as PNG, as SVG and, in the page's colours, inline."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Final

from smallthinker.charts.style import VARIABLES, Chart, require_matplotlib
from smallthinker.errors import ResultsError
from smallthinker.files import check_output, open_regular, write_whole

_CREATOR = "smallthinker"
_METADATA = {".png": {"Software": _CREATOR}, ".svg": {"Creator": _CREATOR, "Date": None}}
MARKS: Final = {".png": f"Software\0{_CREATOR}".encode(), ".svg": f"<dc:title>{_CREATOR}".encode()}
"""By which a file is known as one of ours again: others are never replaced unasked."""
MARKED_BYTES: Final = 1 << 18  # from a file's beginning


def save(chart: Chart, folder: Path) -> list[Path]:
    """As PNG and SVG, the same bytes for the same figures. Raises OSError."""
    return [save_as(chart, folder / f"{chart.name}{ending}") for ending in _METADATA]


def save_as(chart: Chart, path: Path) -> Path:
    """In the form that the name's ending says. Raises OSError."""
    kind, buffer = path.suffix.lower(), io.BytesIO()
    chart.figure.savefig(buffer, format=kind[1:], dpi=160, metadata=_METADATA[kind])
    chart.figure.set_layout_engine("none")  # it is laid out, which takes a third of the time
    write_whole(path, buffer.getvalue())
    return path


def check_plot(path: Path, inputs: Iterable[Path]) -> None:
    """Before anything is computed: whether a chart can be drawn and written there. Raises ResultsError: matplotlib is
    missing, the ending says nothing, or a file would be replaced that is no chart of ours, or one of the inputs."""
    kind = path.suffix.lower()
    if kind not in _METADATA:
        raise ResultsError(f"{path}: expected a name that ends in .svg or .png, found {kind or 'no ending'}")
    require_matplotlib()
    try:
        check_output(path, list(inputs), replace=True)
        if not os.path.lexists(path):
            return
        with open_regular(path) as file:
            is_ours = MARKS[kind] in file.read(MARKED_BYTES)
    except (OSError, ValueError) as e:  # ValueError: a zero byte in the path
        raise ResultsError(f"{path}: cannot write: {getattr(e, 'strerror', None) or e}; give another file") from None
    if not is_ours:
        raise ResultsError(
            f"{path}: is no chart of smallthinker's, and would be replaced; move it, or give another file"
        )


def inline(chart: Chart) -> str:
    """An <svg> element to stand in a page: its colours are the page's variables, its ids its own, its tips titles."""
    buffer = io.StringIO()
    chart.figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for color, name in VARIABLES.items():
        text = text.replace(color, f"var(--{name})")
    for name, tip in chart.tips.items():
        text = text.replace(f'<g id="{name}">', f'<g id="{name}"><title>{_escaped(tip)}</title>', 1)
    prefix = f"{chart.name}-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{prefix}", text)
    label = _escaped(f"{chart.title}. {chart.caption}")
    return re.sub(
        r'<svg [^>]*viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{label}">', text, count=1
    )


def _escaped(text: str) -> str:
    return escape(text).replace("\\", "&#92;")  # a backslash would be the regular expression's
