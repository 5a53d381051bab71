"""The reference: what a description computes, in plain torch, for every family. It defines "correct" for the engine.

Training uses it, too. Nothing clever in it: no fused kernels, no quantisation, no expert cache. Parameters are the
tensors of `models/tensors.py`, each expert's on their own. Never imported by the running engine.

Shape letters: B batch, T new tokens, S cached + new tokens, N = B * T, d hidden, H query heads, K key/value heads,
D head_dim, E experts, k experts per token, F width of an expert, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallthinker.models.description import (
    Activation,
    Attention,
    Ffn,
    LayerInputs,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Model,
    Norm,
    Rope,
    Router,
    YarnScaling,
)
from smallthinker.models.tensors import (
    BESIDE_NORMS,
    DOWN,
    EMBEDDING,
    FINAL_NORM,
    GATE,
    HEAD,
    INPUT_GATE,
    INPUT_OUT_NORM,
    INPUT_PROJ,
    LAYER_EMBEDDINGS,
    LAYER_INPUTS_NORM,
    LAYER_INPUTS_PROJ,
    ROUTER,
    UP,
    tensors,
)

KVCache = list[tuple[Tensor, Tensor]]  # per layer: keys and values, [B, K, S, D]
Named = Callable[[str], Tensor]


class ReferenceModel(nn.Module):
    """`weight(name)` is a tensor by its name, an expert's by "layers.3.gate.5"; new ones are zero, norms' one."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.weights = nn.ParameterDict()
        for tensor in tensors(model):
            for name, shape in tensor.parts:
                is_norm = "norm" in tensor.role and not tensor.role.endswith("_bias")
                self.weights[_key(name)] = nn.Parameter((torch.ones if is_norm else torch.zeros)(shape))

    def weight(self, name: str) -> Tensor:
        weight: Tensor = self.weights[_key(name)]
        return weight

    def named_weights(self) -> Mapping[str, Tensor]:
        return {key.replace("/", "."): weight for key, weight in self.weights.items()}

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> tuple[Tensor, KVCache]:
        """tokens [B, T] int64, cache of the positions before them -> logits [B, T, V] and the grown cache."""
        x, cache, _ = self.hidden(tokens, cache)
        return self.head(x), cache

    def hidden(
        self, tokens: Tensor, cache: KVCache | None = None
    ) -> tuple[Tensor, KVCache, list[tuple[Tensor, Tensor]]]:
        """Like forward, before the head; also router logits [N, E] and expert ids [N, k] of layers with a router."""
        x = F.embedding(tokens, self.weight(EMBEDDING)) * self.model.embedding_scale
        given = None if self.model.layer_inputs is None else self._layer_inputs(tokens, x, self.model.layer_inputs)
        grown: KVCache = []
        routing = []
        for number, layer in enumerate(self.model.layers):

            def of(role: str, number: int = number) -> Tensor:
                return self.weight(f"layers.{number}.{role}")

            residual, scale, norms = x, layer.residual_scale, layer.norms
            mixed = normed = norm(x, norms.before_mixer, of, "input_layernorm")
            if layer.mixer is not None:
                assert isinstance(layer.mixer, Attention), "this reference knows attention alone"
                past = None if cache is None else cache[number]
                source = layer.mixer.kv_of
                mixed, held = attention(normed, layer.mixer, of, past, None if source is None else grown[source])
                grown.append(held)
                x = x + scale * norm(mixed, norms.after_mixer, of, "attention_out_norm")
            if layer.ffn is not None:
                read = normed if norms.parallel else norm(x, norms.before_ffn, of, "post_attention_layernorm")
                out, route = feed_forward(read, layer.ffn, of, residual, x)
                if route is not None:
                    routing.append(route)
                x = x + scale * norm(out, norms.after_ffn, of, "ffn_out_norm")
            if layer.input_gate is not None:
                assert given is not None
                gated = _activated(linear(x, of, INPUT_GATE), given[:, :, number], layer.input_gate.activation)
                x = x + norm(linear(gated, of, INPUT_PROJ), layer.input_gate.after, of, INPUT_OUT_NORM)
            if layer.output_scale:
                x = x * of("output_scale")
        return norm(x, self.model.final_norm, self.weight, FINAL_NORM), grown, routing

    def _layer_inputs(self, tokens: Tensor, x: Tensor, how: LayerInputs) -> Tensor:
        """tokens [B, T], and embedded [B, T, d] -> [B, T, layers, size]."""
        shape = (*tokens.shape, self.model.num_layers, how.size)
        of_state = (linear(x, self.weight, LAYER_INPUTS_PROJ) * how.projection_scale).view(shape)
        of_token = F.embedding(tokens, self.weight(LAYER_EMBEDDINGS)).view(shape) * how.embedding_scale
        return (norm(of_state, how.norm, self.weight, LAYER_INPUTS_NORM) + of_token) * how.scale

    def head(self, x: Tensor) -> Tensor:
        head = self.model.head
        bias = self.weight("lm_head_bias") if head.bias else None
        logits = F.linear(x, self.weight(EMBEDDING if head.tied else HEAD), bias) * head.scale
        return _softcapped(logits, head.softcap)


def _key(name: str) -> str:
    return name.replace(".", "/")  # torch reserves the dot


def norm(x: Tensor, how: Norm | None, of: Named, role: str) -> Tensor:
    """In float32 at least, then times the weight."""
    if how is None:
        return x
    wide = x if x.dtype == torch.float64 else x.float()
    if how.kind == "layer":
        wide = wide - wide.mean(-1, keepdim=True)
    out = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + how.eps)).to(x.dtype)
    if how.has_weight:
        out = out * (of(role) + 1 if how.plus_one else of(role))
        if how.bias:
            out = out + of(f"{role}_bias")
    return out


def linear(x: Tensor, of: Named, role: str, bias: bool = False) -> Tensor:
    return F.linear(x, of(role), of(f"{role}_bias") if bias else None)


def frequencies(rope: Rope, length: int) -> tuple[Tensor, float]:
    """Radians a position of each pair, float64 [size / 2], and what cos and sin are multiplied by. length: positions of
    the whole sequence."""
    exponents = torch.arange(0, rope.size, 2, dtype=torch.float64) / (rope.over or rope.size)
    freqs, scaling = rope.theta**-exponents, rope.scaling
    if rope.turning is not None:
        freqs[rope.turning :] = 0
    if isinstance(scaling, LinearScaling):
        return freqs / scaling.factor, 1.0
    if isinstance(scaling, Llama3Scaling):
        turns = scaling.original_context * freqs / (2 * math.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return freqs * kept + freqs / scaling.factor * (1 - kept), 1.0
    if isinstance(scaling, YarnScaling):

        def dimension(turns: float) -> float:
            ratio = scaling.original_context / (turns * 2 * math.pi)
            return rope.size * math.log(ratio) / (2 * math.log(rope.theta))

        low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
        if scaling.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rope.size - 1)
        ramp = ((torch.arange(rope.size // 2, dtype=torch.float64) - low) / max(high - low, 1e-3)).clamp(0, 1)
        return freqs / scaling.factor * ramp + freqs * (1 - ramp), scaling.attention_factor
    if isinstance(scaling, LongRopeScaling):
        factors = scaling.long if length > scaling.original_context else scaling.short
        return freqs / torch.tensor(factors, dtype=torch.float64), scaling.attention_factor
    return freqs, 1.0


def rotate(x: Tensor, positions: Tensor, rope: Rope, length: int) -> Tensor:
    """Rotary positions. x: [B, H, T, D]; positions: [T]."""
    freqs, factor = frequencies(rope, length)
    angles = positions.double()[:, None] * freqs.to(x.device)  # float64: float32 loses 1e-3 radians past 16,000
    cos, sin = (angles.cos() * factor).to(x), (angles.sin() * factor).to(x)
    turned, rest = x[..., : rope.size], x[..., rope.size :]
    if rope.pairing == "interleaved":
        a, b = turned[..., 0::2], turned[..., 1::2]
        return torch.cat([torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2), rest], -1)
    a, b = turned.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


def attention(
    h: Tensor,
    how: Attention,
    of: Named,
    past: tuple[Tensor, Tensor] | None,
    given: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """h [B, T, d], already normed -> what is added to it, and keys and values of all positions. given: another layer's,
    for one that has none of its own."""
    B, T, _ = h.shape
    start = 0 if past is None else past[0].shape[2]
    positions = torch.arange(start, start + T, device=h.device)

    def heads(x: Tensor, n: int) -> Tensor:
        return x.view(B, T, n, -1).transpose(1, 2)

    def normed(x: Tensor, role: str, n: int) -> Tensor:
        if how.qk_norm_of == "projection":
            return heads(norm(x, how.qk_norm, of, role), n)
        return norm(heads(x, n), how.qk_norm, of, role)

    def clipped(x: Tensor) -> Tensor:
        return x.clamp(-how.clip, how.clip) if how.clip else x

    def projected(role: str) -> Tensor:
        return linear(h, of, role, how.bias)

    gate = None
    queries = projected("q_proj")
    if how.gated:  # each head's query, then its gate
        queries, gate = queries.view(B, T, how.heads, -1).chunk(2, -1)
        queries, gate = queries.flatten(2), gate.flatten(2)
    q = clipped(normed(queries, "q_norm", how.heads))
    if how.rope is not None:
        q = rotate(q, positions, how.rope, start + T)
    if given is None:
        keys = projected("k_proj")
        v = heads(keys if how.values == "keys" else projected("v_proj"), how.kv_heads)
        k, v = clipped(normed(keys, "k_norm", how.kv_heads)), clipped(norm(v, how.v_norm, of, "v_norm"))
        if how.rope is not None:
            k = rotate(k, positions, how.rope, start + T)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    else:
        k, v = given
    if how.growth is not None:
        steps = torch.floor((positions + how.growth.offset) / how.growth.every).to(q)
        q = q * (1 + how.growth.beta * torch.log1p(steps))[:, None]
    scale = how.head_dim**-0.5 if how.scale is None else how.scale
    group = how.heads // how.kv_heads
    scores = _softcapped(q @ k.repeat_interleave(group, 1).transpose(-1, -2) * scale, how.softcap)
    scores = scores.masked_fill(~_visible(positions, k.shape[2], how), -math.inf)
    if how.sinks:
        scores = torch.cat([scores, of("sinks").view(1, -1, 1, 1).expand(B, -1, T, 1)], -1)
    probs = scores.softmax(-1)[..., : k.shape[2]]
    out = (probs @ v.repeat_interleave(group, 1)).transpose(1, 2).reshape(B, T, -1)
    if gate is not None:
        out = out * gate.sigmoid()
    return linear(out, of, "o_proj", how.out_bias), (k, v)


def _visible(positions: Tensor, keys: int, how: Attention) -> Tensor:
    """[T, S]: which key positions each query sees."""
    at = torch.arange(keys, device=positions.device)[None]
    visible = at <= positions[:, None]
    if how.window:
        visible &= at > positions[:, None] - how.window
    if how.chunk:
        visible &= at // how.chunk == positions[:, None] // how.chunk
    return visible


def _softcapped(x: Tensor, cap: float) -> Tensor:
    return cap * torch.tanh(x / cap) if cap else x


def route(r: Tensor, how: Router, of: Named) -> tuple[Tensor, Tensor, Tensor]:
    """What the router reads [N, d] -> its logits [N, E], the chosen experts' weights [N, k], their ids [N, k]."""
    r = norm(r, how.norm, of, "router_norm")
    logits = F.linear(r, of(ROUTER)) * how.logit_scale
    if how.bias == "logits":
        logits = logits + of("router_bias")
    scores = logits.softmax(-1) if how.score == "softmax" else logits.sigmoid()
    choice = scores + of("router_bias") if how.bias == "choice" else logits
    if how.groups > 1:
        grouped = choice.view(len(choice), how.groups, -1)
        best = grouped.topk(2, -1).values.sum(-1).topk(how.kept_groups, -1).indices
        kept = torch.zeros(grouped.shape[:2], dtype=torch.bool, device=r.device).scatter(1, best, True)
        choice = grouped.masked_fill(~kept[..., None], -math.inf).flatten(1)
    ids = choice.topk(how.k, -1).indices
    if how.over == "chosen" and how.score == "softmax":
        weights = logits.gather(1, ids).softmax(-1)
    else:
        weights = scores.gather(1, ids)
    if how.normalise:
        weights = weights / weights.sum(-1, keepdim=True)
    weights = weights * how.scale
    if how.expert_scale:
        weights = weights * of("router_expert_scale")[ids]
    return logits, weights, ids


def feed_forward(
    read: Tensor, how: Ffn, of: Named, residual: Tensor, mixed: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """read [B, T, d], already normed; residual: the layer's input; mixed: the state after its mixer -> what is added,
    and the router's logits and ids."""
    m = read.flatten(0, 1)
    router, chosen = how.router, None
    if router is None:
        out = sum(_expert(m, how, of, slice) for slice in range(how.slices))
        assert isinstance(out, Tensor)
    else:
        states = {"residual": residual, "ffn_input": read, "mixed": mixed}
        logits, weights, ids = route(states[router.reads].flatten(0, 1), router, of)
        chosen = logits, ids
        out = torch.zeros_like(m)
        for expert in range(router.experts):  # each sees only its own tokens
            token, place = (ids == expert).nonzero(as_tuple=True)
            if len(token):
                weight = weights[token, place, None]
                part = m[token] * weight if router.applied_to == "input" else m[token]
                given = _expert(part, how, of, expert)
                out = out.index_add(0, token, given if router.applied_to == "input" else given * weight)
    if how.shared is not None:
        extra = _beside(m, how.shared, of, "shared")
        out = out + (extra * F.linear(m, of("shared_expert_gate")).sigmoid() if how.shared_gate else extra)
    if how.beside is not None:
        x = norm(mixed.flatten(0, 1), how.beside.before, of, BESIDE_NORMS[0])
        extra = norm(_beside(x, how.beside.ffn, of, "beside"), how.beside.after, of, BESIDE_NORMS[1])
        out = norm(out, how.beside.after_experts, of, BESIDE_NORMS[2]) + extra
    return out.view_as(read), chosen


def _expert(m: Tensor, how: Ffn, of: Named, expert: int) -> Tensor:
    def projected(x: Tensor, role: str) -> Tensor:
        return F.linear(x, of(f"{role}.{expert}"), of(f"{role}_bias.{expert}") if how.bias else None)

    up = projected(m, UP)
    return projected(_activated(projected(m, GATE) if how.gated else None, up, how.activation), DOWN)


def _beside(m: Tensor, how: Ffn, of: Named, prefix: str) -> Tensor:
    gate = linear(m, of, f"{prefix}_{GATE}", how.bias) if how.gated else None
    inner = _activated(gate, linear(m, of, f"{prefix}_{UP}", how.bias), how.activation)
    return linear(inner, of, f"{prefix}_{DOWN}", how.bias)


def _activated(gate: Tensor | None, up: Tensor, how: Activation) -> Tensor:
    if how.kind == "clamped_swiglu":
        assert gate is not None
        gate, up = gate.clamp(max=how.limit), up.clamp(-how.limit, how.limit)
        return (up + 1) * gate * torch.sigmoid(how.alpha * gate)
    x = up if gate is None else gate
    active = _ACTIVATIONS[how.kind](x)
    return active if gate is None else active * up


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu2": lambda x: torch.relu(x).square(),
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}
