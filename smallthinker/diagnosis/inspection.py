"""A store's description, and a trace's replay, as lines for people. Knows nothing about how the facts were gathered
(expert_store.inspect, cache.replay).
"""

from __future__ import annotations

from typing import Any

from smallthinker.cache.replay import Replay
from smallthinker.errors import printable
from smallthinker.router.trace import Trace

MIB = 1 << 20


def inspection_text(facts: dict[str, Any]) -> str:
    """facts: what `expert_store.inspect.describe` returns."""
    shape, experts, sizes = facts["shape"], facts["experts"], facts["bytes"]
    head = "tied head" if shape["tied_head"] else "head of its own"
    dense = ", ".join(f"{name} {_mib(size)}" for name, size in sizes["dense_parts"].items())
    tables = [f"; {_mib(sizes['tables'])} stay on disk, a token's rows are read"] if sizes["tables"] else []
    files = ", ".join(f"{name} {_mib(size)}" for name, size in sizes["files"].items())
    rows = {
        "format": facts["format"] + (f", written by {facts['engine_version']}" if facts["engine_version"] else ""),
        "weights": f"{facts['quant']}, {facts['bits_per_parameter']:.2f} bits a parameter",
        "parameters": f"{facts['parameters']:,}",
        "family": shape["family"],
        "shape": f"{shape['layers']} layers, hidden {shape['hidden']}, vocabulary {shape['vocabulary']} ({head})",
        "attention": f"{_attention(shape['attention'])}, context {shape['context']}",
        "slices" if experts["records"] == "slices" else "experts": _experts(experts),
        "compression": _compression(experts, sizes["experts"]),
        "dense": f"{_mib(sizes['dense'])}: {dense}{''.join(tables)}",
        "on disk": f"{_mib(sizes['total'])}: {files}",
    }
    return "\n".join(
        [printable(facts["path"]), *(f"  {name:<12}{printable(str(value))}" for name, value in rows.items())]
    )


def replay_facts(trace: Trace, replays: list[Replay]) -> dict[str, Any]:
    """For JSON. Hit rates and recovered shares from 0 to 1; recovered is null where LRU hits as much as the optimum."""
    sizes = [
        {
            "slots": of.slots,
            "bytes": of.slots * trace.record_bytes,
            "optimum": of.optimum,
            "hit_rates": of.hit_rates,
            "recovered": {name: of.recovered(name) for name in of.hit_rates},
        }
        for of in replays
    ]
    return {"model": trace.model, "tokens": trace.tokens, "experts": trace.layers * trace.experts, "sizes": sizes}


def replay_rows(trace: Trace, replays: list[Replay]) -> list[dict[str, Any]]:
    """For CSV: a row for each policy and number of slots, the optimum among them."""
    return [
        {"slots": of.slots, "bytes": of.slots * trace.record_bytes, "policy": name, "hit_rate": rate}
        for of in replays
        for name, rate in [*of.hit_rates.items(), ("optimum", of.optimum)]
    ]


def replay_text(trace: Trace, replays: list[Replay]) -> str:
    """A row for each policy and a column for each number of slots."""
    experts = trace.layers * trace.experts
    rows = [["slots"], ["of all experts"], ["memory"]]
    for of in replays:
        rows[0].append(str(of.slots))
        rows[1].append(f"{of.slots / experts:.0%}")
        rows[2].append(f"{of.slots * trace.record_bytes / MIB:,.1f} MiB")
    for name in replays[0].hit_rates:
        rows.append([name])
        for of in replays:
            gained = of.recovered(name)
            rows[-1].append(f"{of.hit_rates[name]:.1%}" + ("" if gained is None else f" ({gained:.0%})"))
    rows.append(["optimum", *(f"{of.optimum:.1%}" for of in replays)])
    title = f"hit rates of {trace.tokens} tokens of {printable(trace.model)} (part of the way from lru to the optimum)"
    return "\n".join([title, *(f"{row[0]:<15}" + "".join(f"{cell:>15}" for cell in row[1:]) for row in rows)])


def _attention(facts: dict[str, Any]) -> str:
    heads, kv_heads, head_dim = ("/".join(map(str, facts[key])) for key in ("heads", "kv_heads", "head_dim"))
    windows = [f", window of {window} in {layers}" for window, layers in facts["windows"]]
    text = f"{heads} query and {kv_heads} key/value heads of {head_dim}, RoPE in {facts['with_rope']} layers"
    return text + "".join(windows or [", no window"])


def _experts(experts: dict[str, Any]) -> str:
    """A dense network's slices are all used; where some layers have one, experts are those of the others."""
    total, each = experts["total"], f"{_mib(experts['record_bytes'])} each, {_mib(experts['token_bytes'])} a token"
    if experts["records"] == "slices":
        return f"{experts['per_layer']} a layer, all used by each token, {total} in all, {each}"
    chosen = f"{experts['per_layer']} a layer, {experts['per_token']} a token"
    if experts["dense_layers"]:
        return f"{chosen}; {experts['dense_layers']} layers are dense, in slices; {total} of both in all, {each}"
    return f"{chosen}, {total} in all, {each}"


def _compression(experts: dict[str, Any], experts_bytes: int) -> str:
    if experts["compression"] is None:
        return "none"
    return (
        f"{experts['compression']}, {experts['compressed']} of {experts['total']} {experts['records']}; "
        f"{_mib(experts_bytes)} take {_mib(experts['stored_bytes'])}, {experts['compression_ratio']:.1%}"
    )


def _mib(size: int) -> str:
    return f"{size / MIB:,.1f} MiB" if size >= 100_000 else f"{size:,} bytes"
