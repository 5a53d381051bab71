"""Charts as files, and as part of a page. One drawing serves as PNG, as SVG and, in the page's colours, inline."""

from __future__ import annotations

import io
import re
from html import escape
from pathlib import Path

from smallthinker.benchmark.views.chart_style import VARIABLES, Chart
from smallthinker.files import write_whole

MARK = "smallthinker bench"
_METADATA = {"png": {"Software": MARK}, "svg": {"Creator": MARK, "Date": None}}


def save(chart: Chart, folder: Path) -> list[Path]:
    """As PNG and SVG, the same bytes for the same figures, with MARK in them. Raises OSError."""
    paths: list[Path] = []
    for kind, metadata in _METADATA.items():
        if paths:
            chart.figure.set_layout_engine("none")  # it is laid out, which takes a third of the time
        buffer = io.BytesIO()
        chart.figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
        paths.append(folder / f"{chart.name}.{kind}")
        write_whole(paths[-1], buffer.getvalue())
    return paths


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
