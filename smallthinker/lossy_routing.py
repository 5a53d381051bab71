"""LOSSY ways to wait less for experts, off by default: what they may change, and how often they did.

Owns the settings and the counts; the choice itself is made where experts are routed (kernels/forward.h). What is chosen
then depends on what happens to be in memory, so an answer is not the same bits twice. Prompts are computed exactly. The
first expert of a token always stays as the router has it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LossyRouting:
    """experts: of a token and layer, at most so many of the model's (None: all). prefer: experts that aren't in memory
    are chosen as if their scores were lower by this share of the span of a token's scores (after arXiv 2412.00099).
    skip: one that isn't in memory is left out where its weight is below this share of the token's; the others take it.
    """

    experts: int | None = None
    prefer: float = 0.0
    skip: float = 0.0

    def __bool__(self) -> bool:
        return self.experts is not None or self.prefer > 0 or self.skip > 0

    def __str__(self) -> str:
        experts = "" if self.experts is None else f"at most {self.experts} experts"
        prefer = f"prefers what is in memory by {self.prefer:g}" if self.prefer else ""
        skip = f"skips what is missing below {self.skip:g}" if self.skip else ""
        return ", ".join(filter(None, (experts, prefer, skip)))


@dataclass(frozen=True)
class RoutingCounters:
    """pairs: of a token and an expert that the router chose while it might be lossy. replaced: another expert was
    computed, left_out: none."""

    pairs: int = 0
    replaced: int = 0
    left_out: int = 0

    def __sub__(self, earlier: RoutingCounters) -> RoutingCounters:
        return RoutingCounters(
            self.pairs - earlier.pairs, self.replaced - earlier.replaced, self.left_out - earlier.left_out
        )

    def line(self) -> str:
        """For people."""
        pairs = max(1, self.pairs)
        return f"lossy routing: {self.replaced / pairs:.1%} of experts replaced, {self.left_out / pairs:.1%} left out"
