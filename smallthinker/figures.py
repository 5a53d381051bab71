"""Figures for people. A leaf: imports nothing."""

from __future__ import annotations

import math


def size(nbytes: float) -> str:
    """Bytes as people read them."""
    return f"{nbytes / 2**30:,.1f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:,.1f} MiB"


def size_text(nbytes: float) -> str:
    """A budget as people write it: 512 MiB, 1.5 GiB."""
    return f"{nbytes / 2**30:.4g} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.4g} MiB"


def rounded(value: float, digits: int = 3) -> str:
    """So many digits, however small it is, and never an exponent: 0.0123, 1.23, 123, 12,345."""
    if value == 0 or not abs(value) < 1e15:
        return "0" if value == 0 else f"{value:g}"
    nearest = float(f"{value:.{digits}g}")
    decimals = max(digits - 1 - math.floor(math.log10(abs(nearest))), 0)
    text = f"{nearest:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if decimals else text
