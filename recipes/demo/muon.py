"""Muon (Jordan et al. 2024): momentum whose matrix updates are orthogonalised by Newton-Schulz iterations.

It needs about half of AdamW's tokens for the same loss here. torch.optim.Muon takes one matrix at a time; a model
with hundreds of small experts wants all matrices of a shape in one batched product, which is all that differs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """[N, rows, cols] -> about U V^T of each matrix's singular value decomposition."""
    a, b, c = 3.4445, -4.7750, 2.0315  # Jordan's quintic: singular values land in 0.7 to 1.2
    tall = g.shape[1] > g.shape[2]
    x = g.mT if tall else g
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(b * gram, gram, gram, beta=1.0, alpha=c) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """For 2-D weights. The step is scaled by 0.2 * sqrt(max(rows, cols)), so that AdamW's learning rates fit."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for shape, params in by_shape.items():
                for p in params:
                    if "momentum" not in self.state[p]:
                        self.state[p]["momentum"] = torch.zeros_like(p)
                buffers = [self.state[p]["momentum"] for p in params]
                grads = [p.grad for p in params]
                torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
                nesterov = torch._foreach_lerp(grads, buffers, group["momentum"])
                update = orthogonalise(torch.stack(nesterov))
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, list(update.unbind()), alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)
