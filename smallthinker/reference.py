"""The reference model: the forward pass of SmallThinker (arXiv 2507.20984), in plain torch.

It defines what "correct" means for the engine and is what training uses. Parameter names are the checkpoint's own.
Nothing clever in it: no fused kernels, no quantisation, no expert cache. Never imported by the running engine.

Shape letters: B batch, T new tokens, S cached + new tokens, d hidden_size, H query heads, K key/value heads,
D head_dim, E experts, k experts per token, F moe_ffn_hidden_size, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallthinker.config import ModelConfig

KVCache = list[tuple[Tensor, Tensor]]  # per layer: keys and values, [B, K, S, D]


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)
        return x32.to(x.dtype) * self.weight


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Rotary positions, half-split pairing. x: [B, H, T, D]; positions: [T]."""
    half = x.shape[-1] // 2
    inv_freq = theta ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)
    angles = positions.double()[:, None] * inv_freq  # float64: float32 loses 1e-3 radians past 16,000 positions
    cos, sin = angles.cos().to(x), angles.sin().to(x)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.use_rope, self.theta, self.window = config.use_rope[layer], config.rope_theta, config.window(layer)
        d = config.hidden_size
        self.q_proj = nn.Linear(d, self.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(d, self.kv_heads * self.dim, bias=False)
        self.v_proj = nn.Linear(d, self.kv_heads * self.dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.dim, d, bias=False)

    def forward(self, h: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        B, T, _ = h.shape
        start = 0 if past is None else past[0].shape[2]
        positions = torch.arange(start, start + T, device=h.device)
        q = self.q_proj(h).view(B, T, self.heads, self.dim).transpose(1, 2)
        k = self.k_proj(h).view(B, T, self.kv_heads, self.dim).transpose(1, 2)
        v = self.v_proj(h).view(B, T, self.kv_heads, self.dim).transpose(1, 2)
        if self.use_rope:
            q, k = rotate(q, positions, self.theta), rotate(k, positions, self.theta)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        key_positions = torch.arange(k.shape[2], device=h.device)
        visible = key_positions[None] <= positions[:, None]  # [T, S]
        if self.window:
            visible &= key_positions[None] > positions[:, None] - self.window
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).reshape(B, T, -1)), (k, v)


class Expert(nn.Module):
    def __init__(self, hidden_size: int, ffn_size: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, ffn_size, bias=False)
        self.up = nn.Linear(hidden_size, ffn_size, bias=False)
        self.down = nn.Linear(ffn_size, hidden_size, bias=False)

    def forward(self, m: Tensor) -> Tensor:
        out: Tensor = self.down(F.relu(self.gate(m)) * self.up(m))
        return out


class SparseMoE(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.top_k, self.softmax = config.moe_num_active_primary_experts, config.router_softmax
        self.primary_router = nn.Linear(config.hidden_size, config.moe_num_primary_experts, bias=False)
        self.experts = nn.ModuleList(
            Expert(config.hidden_size, config.moe_ffn_hidden_size) for _ in range(config.moe_num_primary_experts)
        )

    def route(self, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Raw residual [N, d] -> router logits [N, E], expert weights [N, k], expert ids [N, k]."""
        logits = self.primary_router(r)
        top, ids = logits.topk(self.top_k, dim=-1)
        if self.softmax:
            return logits, top.softmax(-1), ids
        gate = top.sigmoid()
        return logits, gate / gate.sum(-1, keepdim=True), ids

    def forward(self, m: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """m: [N, d]. Each expert sees only its own tokens."""
        flat_ids = ids.flatten()
        order = flat_ids.argsort(stable=True)
        counts = torch.bincount(flat_ids, minlength=len(self.experts)).tolist()
        token = order // self.top_k  # [N * k], grouped by expert
        parts = [
            expert(part)
            for expert, part in zip(self.experts, torch.split(m.index_select(0, token), counts), strict=True)
            if part.shape[0]
        ]
        contribution = torch.cat(parts) * weights.flatten()[order, None]
        return torch.zeros_like(m).index_add(0, token, contribution)


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.block_sparse_moe = SparseMoE(config)

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor, Tensor]:
        B, T, d = x.shape
        router_logits, weights, ids = self.block_sparse_moe.route(x.reshape(B * T, d))  # before attention and norm
        attended, past = self.self_attn(self.input_layernorm(x), past)
        x = x + attended
        m = self.post_attention_layernorm(x).reshape(B * T, d)
        x = x + self.block_sparse_moe(m, weights, ids).view(B, T, d)
        return x, past, router_logits, ids


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class ReferenceModel(nn.Module):
    """SmallThinkerForCausalLM. `load_state_dict` takes a checkpoint's own tensor names.

    A tied model has no lm_head parameter of its own: drop a stored `lm_head.weight` before loading.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> tuple[Tensor, KVCache]:
        """tokens [B, T] int64, cache of the positions before them -> logits [B, T, V] and the grown cache."""
        x, cache, _ = self.hidden(tokens, cache)
        return self.head(x), cache

    def hidden(
        self, tokens: Tensor, cache: KVCache | None = None
    ) -> tuple[Tensor, KVCache, list[tuple[Tensor, Tensor]]]:
        """Like forward, before the head; also each layer's router logits [B*T, E] and expert ids [B*T, k]."""
        x = self.model.embed_tokens(tokens)
        grown: KVCache = []
        routing = []
        for layer, block in enumerate(self.model.layers):
            x, past, router_logits, ids = block(x, None if cache is None else cache[layer])
            grown.append(past)
            routing.append((router_logits, ids))
        return self.model.norm(x), grown, routing

    def head(self, x: Tensor) -> Tensor:
        weight = self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight
        return F.linear(x, weight)
