"""Draws the way of one token for design.md: `python docs/images/token_way.py` writes token-way.svg beside this file.

What happens when, not how long it takes. The same script gives the same bytes.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import NamedTuple

WIDTH, LEFT, TOP = 1244, 126, 58
LANE, BAR = 82, 44  # heights
LANES = ("kernels", "layers.cpp", "disk")
BELOW = ("C++, all threads", "C++, the order", "read queue, C++")

# class -> (light fill, light text), (dark fill, dark text)
COLORS = {
    "run": (("#1f6fd6", "#ffffff"), ("#2f7fe6", "#ffffff")),
    "call": (("#a3c8ea", "#1b1f24"), ("#2b4a6b", "#e8ecf1")),
    "order": (("#8250c4", "#ffffff"), ("#8f66cf", "#ffffff")),
    "certain": (("#c2560f", "#ffffff"), ("#c4611f", "#ffffff")),
    "guess": (("#f2d9c2", "#1b1f24"), ("#5b3d25", "#f4e6d8")),
}


class Bar(NamedTuple):
    lane: int
    start: int  # both in pixels from where the lanes begin
    end: int
    kind: str
    lines: tuple[str, ...]


BARS = (
    Bar(1, 0, 32, "order", ("step",)),
    Bar(0, 36, 82, "call", ("embed",)),
    Bar(0, 86, 240, "run", ("run: all of layer 0,", "then the route of layer 1")),
    Bar(1, 244, 298, "order", ("request",)),
    Bar(2, 302, 440, "certain", ("expert 7 of layer 1",)),
    Bar(2, 444, 582, "certain", ("expert 12 of layer 1",)),
    Bar(2, 586, 708, "guess", ("expert 3 of layer 2",)),
    Bar(0, 302, 362, "call", ("mix:", "attention")),
    Bar(0, 366, 412, "call", ("guess", "layer 2")),
    Bar(1, 414, 468, "order", ("prefetch",)),
    Bar(0, 470, 524, "call", ("compute", "5 and 9")),
    Bar(0, 528, 584, "call", ("compute", "7")),
    Bar(0, 606, 662, "call", ("compute", "12")),
    Bar(0, 666, 722, "call", ("combine",)),
    Bar(0, 726, 798, "run", ("run: route", "of layer 2")),
    Bar(1, 802, 862, "order", ("all there",)),
    Bar(0, 866, 940, "call", ("layer 2,", "call by call")),
    Bar(0, 944, 1026, "run", ("run: layer 3", "to the last")),
    Bar(0, 1030, 1104, "call", ("norm, head:", "logits")),
)
# from (x, lane) to (x, lane), what it says, and where beside its middle
ARROWS = (
    ((240, 0), (252, 1), "7 and 12 are missing", (10, -2)),
    ((298, 1), (310, 2), "misses, at once", (12, 3)),
    ((440, 2), (536, 0), "7 has landed", (-16, 36)),
    ((582, 2), (614, 0), "12 has landed", (0, 40)),
    ((798, 0), (810, 1), "a read was guessed for it", (10, -2)),
)


def top(lane: int) -> int:
    return TOP + lane * LANE


def bar(b: Bar) -> list[str]:
    x, y = LEFT + b.start, top(b.lane)
    out = [f'<rect class="{b.kind}" x="{x}" y="{y}" width="{b.end - b.start}" height="{BAR}" rx="4"/>']
    middle = y + BAR / 2 + 4 - 7.5 * (len(b.lines) - 1)
    for number, line in enumerate(b.lines):
        at = f'x="{(x + LEFT + b.end) / 2:g}" y="{middle + 15 * number:g}"'
        out.append(f'<text class="on-{b.kind} centre" {at}>{escape(line)}</text>')
    return out


def arrow(start: tuple[int, int], end: tuple[int, int], text: str, beside: tuple[int, int]) -> list[str]:
    down = end[1] > start[1]
    x1, y1 = LEFT + start[0], top(start[1]) + (BAR if down else 0)
    x2, y2 = LEFT + end[0], top(end[1]) + (-2 if down else BAR + 2)
    at = f'x="{(x1 + x2) / 2 + beside[0]:g}" y="{(y1 + y2) / 2 + beside[1]:g}"'
    return [
        f'<path class="arrow" d="M{x1} {y1}L{x2} {y2}" marker-end="url(#tip)"/>',
        f'<text class="muted" {at}>{escape(text)}</text>',
    ]


def style(dark: bool) -> str:
    ink, muted, grid, surface = (
        ("#e8ecf1", "#a9b3bf", "#333b45", "#15191e") if dark else ("#1b1f24", "#5c6672", "#dfe3e8", "#ffffff")
    )
    rules = [
        f".surface{{fill:{surface}}}.grid{{stroke:{grid}}}.arrow{{stroke:{muted};fill:none}}.tip{{fill:{muted}}}",
        f"text{{fill:{ink}}}.muted{{fill:{muted}}}",
    ]
    for kind, colors in COLORS.items():
        fill, ink = colors[dark]
        rules.append(f".{kind}{{fill:{fill}}}.on-{kind}{{fill:{ink}}}")
    return "".join(rules)


def drawing() -> str:
    height = top(len(LANES)) + 26
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'role="img" aria-labelledby="title">',
        '<title id="title">One token: kernels run layer after layer in C++ until an expert is missing; while '
        "the disk reads, attention is computed, and experts are used as they land</title>",
        "<style>text{font:12px system-ui,'DejaVu Sans',Verdana,sans-serif}.centre{text-anchor:middle}"
        ".lane{font-weight:600;font-size:14px}"
        f"{style(dark=False)}@media(prefers-color-scheme:dark){{{style(dark=True)}}}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>',
        f'<rect class="surface" width="{WIDTH}" height="{height}" rx="6"/>',
        f'<text class="muted" x="{LEFT}" y="34">One token; layer 1 wants experts 5, 7, 9 and 12, of which 5 and 9 are '
        "in memory. Time goes to the right, not to scale.</text>",
    ]
    for lane, (name, what) in enumerate(zip(LANES, BELOW, strict=True)):
        y = top(lane) + BAR // 2
        out.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - 12}"/>')
        out.append(f'<text class="lane" x="14" y="{y - 2}">{name}</text>')
        out.append(f'<text class="muted" x="14" y="{y + 15}">{what}</text>')
    for item in ARROWS:
        out += arrow(*item)
    for item in BARS:
        out += bar(item)
    x = LEFT
    for kind, text in (
        ("run", "layers at once"),
        ("call", "one call"),
        ("certain", "a certain read"),
        ("guess", "a read for a guess: yields to certain ones, is withdrawn when wrong"),
    ):
        y = top(len(LANES)) - 6
        out.append(f'<rect class="{kind}" x="{x}" y="{y}" width="14" height="14" rx="3"/>')
        out.append(f'<text class="muted" x="{x + 20}" y="{y + 12}">{text}</text>')
        x += 44 + 7 * len(text)
    return "\n".join([*out, "</svg>", ""])


if __name__ == "__main__":
    Path(__file__).with_name("token-way.svg").write_bytes(drawing().encode())
