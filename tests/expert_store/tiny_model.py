from __future__ import annotations

from typing import Any

# rows that are no multiple of 16 (vocabulary, experts) and an untied head: every kind of padding and tensor
TINY: dict[str, Any] = {
    "architectures": ["SmallThinkerForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "moe_num_primary_experts": 3,
    "moe_num_active_primary_experts": 2,
    "moe_ffn_hidden_size": 96,
    "vocab_size": 300,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "eos_token_id": [297, 299],
}
