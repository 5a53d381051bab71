"""Trains the demo model on the encoded books, within a given number of hours, and resumes from its checkpoint.

Trains the reference model itself, so what is learned is what the engine runs. Progress through the learning-rate
schedule is measured in training time, not steps: a slow machine gets a worse model, never an unfinished one.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from muon import Muon
from torch import Tensor

from smallthinker.models.registry import read_model
from smallthinker.reference import ReferenceModel

MUON_LR, ADAM_LR = 6e-3, 3e-3
BALANCE_WEIGHT, Z_WEIGHT = 4e-2, 1e-4
WARMUP, DECAY_FROM = 0.01, 0.35  # shares of the training time
# Tokens a sequence, from which share of the time on. Attention over short ones costs a quarter less time a token; long
# ones at the end teach the window and the declared context.
LENGTHS = ((0.0, 256), (0.75, 512), (0.9, 1024))


def learning_rate_scale(progress: float) -> float:
    """Warm-up, plateau, then linear to 2 %: the plateau lets `--hours` be raised later without a restart."""
    if progress < WARMUP:
        return 0.05 + 0.95 * progress / WARMUP
    if progress < DECAY_FROM:
        return 1.0
    return max(0.02, 1 - 0.98 * (progress - DECAY_FROM) / (1 - DECAY_FROM))


def batch_at(step: int, data: np.ndarray, sequences: int, length: int, device: str) -> tuple[Tensor, Tensor]:
    """Inputs and targets [sequences, length], drawn by step number, so that a resumed run sees no batch twice."""
    starts = np.random.default_rng((17, step)).integers(0, len(data) - length - 1, sequences)
    rows = np.stack([data[s : s + length + 1] for s in starts]).astype(np.int64)
    block = torch.from_numpy(rows).to(device)
    return block[:, :-1], block[:, 1:]


def routing_losses(routing: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Load balance over the whole batch, all sequences together, and the router z-loss.

    Balancing each sequence would forbid experts that specialise in a subject; balancing the global batch does not
    (the SmallThinker report, after Qiu et al. 2025).
    """
    balance = z = torch.zeros((), device=routing[0][0].device)
    for logits, ids in routing:
        experts = logits.shape[-1]
        share = torch.bincount(ids.flatten(), minlength=experts).float() / ids.numel()
        balance = balance + experts * (share * logits.softmax(-1).mean(0)).sum()
        z = z + logits.logsumexp(-1).pow(2).mean()
    return balance / len(routing), z / len(routing)


def init_weights(model: ReferenceModel) -> None:
    """Outputs of each block start near zero, so that the residual stream is the embedding at first."""
    for name, p in model.named_weights().items():
        if p.dim() < 2:
            continue
        if "o_proj" in name or "down" in name:
            torch.nn.init.normal_(p, std=0.2 / math.sqrt(p.shape[1] * model.model.num_layers))
        elif "embed" in name:
            torch.nn.init.normal_(p, std=0.05)
        elif "router" in name:
            torch.nn.init.normal_(p, std=0.1)
        else:
            torch.nn.init.normal_(p, std=1 / math.sqrt(p.shape[1]))


def optimizers(model: ReferenceModel) -> list[torch.optim.Optimizer]:
    matrices, others = [], []
    for name, p in model.named_weights().items():
        plain = p.dim() == 2 and "embed" not in name and "router" not in name and "lm_head" not in name
        (matrices if plain else others).append(p)
    return [
        Muon(matrices, lr=MUON_LR, weight_decay=0.05),
        torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0, foreach=True),
    ]


def save(path: Path, state: dict[str, object]) -> None:
    """Written beside and renamed: a kill leaves the last whole checkpoint."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder that data.py wrote")
    parser.add_argument("out", type=Path, help="folder for checkpoint.pt and train.jsonl; resumes if they exist")
    parser.add_argument("--hours", type=float, default=2.0, help="training time in all, resumed parts included")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-tokens", type=int, default=6144)
    parser.add_argument("--checkpoint-minutes", type=float, default=5.0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    config = read_model(Path(__file__).parent / "model.json")
    data = np.load(args.data / "train.npy", mmap_mode="r")
    model = ReferenceModel(config).to(args.device)
    init_weights(model)
    opts = optimizers(model)
    step, trained_sec, tokens = 0, 0.0, 0
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=args.device, weights_only=True)
        model.load_state_dict(state["model"])
        for opt, saved in zip(opts, state["optimizers"], strict=True):
            opt.load_state_dict(saved)
        step, trained_sec, tokens = state["step"], state["trained_sec"], state["tokens"]
        print(f"resumed at step {step}, {trained_sec / 3600:.2f} h", flush=True)

    base_lrs = (MUON_LR, ADAM_LR)
    budget_sec = args.hours * 3600
    last_saved, losses = trained_sec, []
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    with (args.out / "train.jsonl").open("a", encoding="utf-8") as log:
        while trained_sec < budget_sec and not stopping:
            began = time.perf_counter()
            progress = trained_sec / budget_sec
            for opt, lr in zip(opts, base_lrs, strict=True):
                opt.param_groups[0]["lr"] = lr * learning_rate_scale(progress)
            length = next(length for since, length in reversed(LENGTHS) if progress >= since)
            x, y = batch_at(step, data, args.batch_tokens // length, length, args.device)
            hidden, _, routing = model.hidden(x)
            loss = F.cross_entropy(model.head(hidden).flatten(0, 1).float(), y.flatten())
            balance, z = routing_losses(routing)
            (loss + BALANCE_WEIGHT * balance + Z_WEIGHT * z).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
            for opt in opts:
                opt.step()
                opt.zero_grad(set_to_none=True)
            step, tokens = step + 1, tokens + x.numel()
            losses.append(loss.item())
            trained_sec += time.perf_counter() - began
            if step % 20 == 0:
                row = {
                    "step": step,
                    "tokens": tokens,
                    "hours": round(trained_sec / 3600, 4),
                    "loss": round(sum(losses) / len(losses), 4),
                    "balance": round(balance.item(), 4),
                    "tok_per_sec": round(x.numel() / (time.perf_counter() - began)),
                }
                losses.clear()
                print(json.dumps(row), flush=True)
                print(json.dumps(row), file=log, flush=True)
            if trained_sec - last_saved > args.checkpoint_minutes * 60 or trained_sec >= budget_sec or stopping:
                last_saved = trained_sec
                save(
                    checkpoint,
                    {
                        "model": model.state_dict(),
                        "optimizers": [opt.state_dict() for opt in opts],
                        "step": step,
                        "trained_sec": trained_sec,
                        "tokens": tokens,
                    },
                )


if __name__ == "__main__":
    main()
