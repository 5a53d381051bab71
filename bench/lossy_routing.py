"""What does lossy routing cost, and what does it save, on a text?

python bench/lossy_routing.py STORE TEXT --slots N [--tokens 2000] [--context 512]

For each setting: experts that a token misses with so many slots, and how far the store is from itself computed exactly.
One token at a time, without guesses, so that nothing depends on the disk. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from smallthinker.engine import Engine
from smallthinker.evaluation.evaluate import compare
from smallthinker.lossy_routing import RoutingCounters
from smallthinker.options import EngineOptions
from smallthinker.text.tokenizer import Tokenizer

SETTINGS: list[dict[str, Any]] = [
    {},
    *({"lossy_prefer": margin} for margin in (0.05, 0.1, 0.2)),
    *({"lossy_skip": share} for share in (0.1, 0.2, 0.3)),
]
WARM_UP = 16  # tokens that fill the slots


def misses(store: Path, ids: list[int], options: EngineOptions) -> tuple[float, RoutingCounters]:
    """Experts a token has to wait for."""
    with Engine(store, options) as engine:
        engine.prefill(ids[:WARM_UP])
        before = engine.experts.counters()
        for token in ids[WARM_UP:]:
            engine.decode(token)
        missed = (engine.experts.counters() - before).misses
        return missed / (len(ids) - WARM_UP), engine.routing_counters() or RoutingCounters()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--context", type=int, default=512)
    args = parser.parse_args()
    text = args.text.read_text()
    plain = EngineOptions(context=args.context, max_slots=args.slots, look_ahead=False, hot_set=False)
    with Engine(args.store, plain) as engine:
        k = engine.config.experts_per_token
        tokenizer = Tokenizer(engine.store.small_files, engine.config.vocab_size, engine.store)
        ids = tokenizer.encode(text)[: args.context]
    found = []
    for setting in [*SETTINGS, {"lossy_experts": k - 1}]:
        options = replace(plain, **setting)
        missed, counted = misses(args.store, ids, options)
        cost = compare(args.store, args.store, text, options, tokens=args.tokens)
        what = ", ".join(f"{name} {value}" for name, value in setting.items()) or "exact"
        print(
            f"{what:18} {missed:5.2f} misses a token; {counted.line()}; perplexity {cost.store.perplexity:.2f} "
            f"({cost.nats_difference:+.4f} +- {cost.nats_difference_error:.4f} nats), KL {cost.kl_mean:.4f}, "
            f"likeliest token the same {cost.top1_agreement:.1%}",
            flush=True,
        )
        found.append({"setting": setting, "misses": missed} | cost.to_dict())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
