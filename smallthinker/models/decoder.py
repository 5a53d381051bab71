"""What configurations of decoder-only models have in common: sizes, norms, special tokens, slices, names of tensors.

Each family's file says what its own absent keys mean and what its layers are; nothing here knows a family.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from smallthinker.errors import ConfigError
from smallthinker.models import description as d
from smallthinker.models.keys import Keys

# Upper bounds keep a hostile file from asking for absurd allocations; each is over ten times what is published.
LIMITS = {
    "hidden_size": 65_536, "intermediate_size": 1_048_576, "num_hidden_layers": 1_024, "num_attention_heads": 1_024,
    "num_key_value_heads": 1_024, "head_dim": 1_024, "vocab_size": 4_194_304, "max_position_embeddings": 1 << 28,
    "sliding_window": 1 << 28, "max_window_layers": 1 << 28, "moe_intermediate_size": 65_536, "num_experts": 4_096,
    "num_local_experts": 4_096, "n_routed_experts": 4_096, "num_experts_per_tok": 256, "n_shared_experts": 256,
    "n_group": 256, "topk_group": 256, "decoder_sparse_step": 1_024, "no_rope_layer_interval": 1_024,
    "sliding_window_pattern": 1_024, "original_max_position_embeddings": 1 << 28, "query_pre_attn_scalar": 65_536,
    "num_mlp_slices": 65_536, "top_k_experts": 256, "num_kv_shared_layers": 1_024, "first_k_dense_replace": 1_024,
    "hidden_size_per_layer_input": 65_536,
}  # fmt: skip
# Keys with one value that any family here has; absent or null means that value.
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,), "cross_attention_hidden_size": (None,), "is_encoder_decoder": (False,),
    "is_causal": (True,), "per_layer_config": ({},), "pruned_heads": ({},), "quantization_config": (None,),
    "use_mrope": (False,),
}  # fmt: skip
_ACTIVATIONS = {
    "silu": d.Activation("silu"), "swish": d.Activation("silu"), "gelu": d.Activation("gelu"),
    "gelu_pytorch_tanh": d.Activation("gelu_tanh"), "gelu_new": d.Activation("gelu_tanh"),
    "relu": d.Activation("relu"), "relu2": d.Activation("relu2"),
}  # fmt: skip

_LAYER = "model.layers.{layer}."
# Tensors of checkpoints, to which a family adds what its networks have.
ATTENTION_NAMES = {
    "embed_tokens": "model.embed_tokens.weight",
    "lm_head": "lm_head.weight",
    "norm": "model.norm.weight",
    "input_layernorm": f"{_LAYER}input_layernorm.weight",
    "post_attention_layernorm": f"{_LAYER}post_attention_layernorm.weight",
    **{f"{part}_proj": f"{_LAYER}self_attn.{part}_proj.weight" for part in "qkvo"},
    **{f"{part}_proj_bias": f"{_LAYER}self_attn.{part}_proj.bias" for part in "qkvo"},
    **{f"{part}_norm": f"{_LAYER}self_attn.{part}_norm.weight" for part in "qk"},
}
DENSE_NAMES = {
    **{part: f"{_LAYER}mlp.{part}_proj.weight" for part in ("gate", "up", "down")},
    **{f"{part}_bias": f"{_LAYER}mlp.{part}_proj.bias" for part in ("gate", "up", "down")},
}
# Where norms stand behind both parts of a layer, too.
SANDWICH_NAMES = {
    "attention_out_norm": f"{_LAYER}post_attention_layernorm.weight",
    "post_attention_layernorm": f"{_LAYER}pre_feedforward_layernorm.weight",
    "ffn_out_norm": f"{_LAYER}post_feedforward_layernorm.weight",
}
EXPERT_NAMES = {
    "router": f"{_LAYER}mlp.gate.weight",
    **{part: f"{_LAYER}mlp.experts.{{expert}}.{part}_proj.weight" for part in ("gate", "up", "down")},
    **{f"dense_{part}": f"{_LAYER}mlp.{part}_proj.weight" for part in ("gate", "up", "down")},
}
# Frequencies that checkpoints had before transformers 4.33.
OLD_FREQUENCIES = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)


class Common(NamedTuple):
    """What every family's configuration says by the same keys."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    norm: d.Norm
    head: d.Head
    tokens: d.SpecialTokens

    def model(
        self,
        family: str,
        layers: Sequence[d.Layer],
        *,
        final_norm: d.Norm | None = None,
        head: d.Head | None = None,
        embedding_scale: float = 1.0,
        layer_inputs: d.LayerInputs | None = None,
    ) -> d.Model:
        """The keywords are for a family with others than these."""
        return d.Model(
            family=family,
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            context=self.context,
            layers=tuple(layers),
            tokens=self.tokens,
            final_norm=final_norm or self.norm,
            head=head or self.head,
            embedding_scale=embedding_scale,
            layer_inputs=layer_inputs,
        )


def common(keys: Keys, bos: int | None = None, *eos: int, own: Collection[str] = ()) -> Common:
    """bos, eos: what absent keys mean. own: keys that the family reads itself, and others must not have. Raises
    ConfigError, naming the key."""
    layers, hidden = keys.positive("num_hidden_layers"), keys.positive("hidden_size", multiple_of=d.BLOCK)
    heads, vocab = keys.positive("num_attention_heads"), keys.positive("vocab_size")
    if keys.get("head_dim") is None and hidden % heads:
        raise ConfigError(f"head_dim: missing, and hidden_size {hidden} is not a multiple of {heads} heads")
    tokens = d.SpecialTokens(
        keys.token("bos_token_id", bos, vocab),
        keys.tokens("eos_token_id", eos, vocab),
    )
    keys.only_these({key: values for key, values in _ONLY.items() if key not in own})
    return Common(
        layers,
        hidden,
        heads,
        keys.positive("num_key_value_heads", null=heads),
        keys.positive("head_dim", null=hidden // heads),
        vocab,
        keys.positive("max_position_embeddings"),
        d.Norm(keys.number("rms_norm_eps", 1e-20, 1.0)),
        d.Head(keys.flag("tie_word_embeddings")),
        tokens,
    )


def common_keys(model: d.Model, architecture: str) -> dict[str, Any]:
    """The way back, of all layers alike in these; heads are those of layers with a window, if there are any."""
    mixers = [layer.attention for layer in model.layers]
    attention = next((mixer for mixer in mixers if mixer.window), mixers[0])
    return {
        "architectures": [architecture],
        "model_type": model.family,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.context,
        "rms_norm_eps": model.final_norm.eps,
        "tie_word_embeddings": model.head.tied,
        "bos_token_id": model.tokens.bos,
        "eos_token_id": list(model.tokens.eos),
    }


def activation(keys: Keys, key: str = "hidden_act") -> d.Activation:
    return keys.one_of(key, _ACTIVATIONS)


def softcap(keys: Keys) -> float:
    """Of the logits; 0 for none."""
    key = "final_logit_softcapping"
    return 0.0 if keys.get(key) is None else keys.number(key, 1e-3, 1e6)


def activation_name(activation: d.Activation) -> str:
    return next(name for name, known in _ACTIVATIONS.items() if known == activation)


def dense(
    keys: Keys,
    hidden: int,
    act: d.Activation,
    bias: bool = False,
    expert_width: int = 0,
    key: str = "intermediate_size",
) -> d.Ffn:
    """The network of `intermediate_size`, or of another key, in slices: as many as `num_mlp_slices` says, which is our
    own key (a store keeps the records that it was written with), or as make records of a good size. expert_width: of
    other layers."""
    width = keys.positive(key, multiple_of=d.TILE)
    slices, block = num_slices(hidden, width, expert_width), _block(width, expert_width)
    if keys.get("num_mlp_slices") is not None:
        slices = keys.positive("num_mlp_slices")
        if width % (block * slices):
            raise ConfigError(
                f"num_mlp_slices: expected one that makes slices of whole blocks of {block} from an "
                f"{key} of {width}, found {slices}"
            )
    return d.Ffn(width // slices, act, bias=bias, slices=slices)


def dense_keys(ffn: d.Ffn) -> dict[str, Any]:
    """The keys of a dense network, or of the one beside experts, but for its activation."""
    ffn = ffn if ffn.beside is None else ffn.beside.ffn
    return {"intermediate_size": ffn.width * ffn.slices, "num_mlp_slices": ffn.slices}


_RECORD_BYTES = 2 << 20  # between 1 and 4 MiB: long enough for a disk, short enough to be many
_BITS = 4.5  # of a weight in q4_0


def num_slices(hidden: int, width: int, expert_width: int = 0) -> int:
    """Of a dense network of this width, so that a slice's three matrices are nearest to 2 MiB at q4_0 and its width is
    whole blocks. Where other layers have experts, all records have one size: then the widest that are no wider."""
    block = _block(width, expert_width)
    blocks, block_bytes = width // block, 3 * hidden * block * _BITS / 8
    counts = [count for count in range(1, blocks + 1) if blocks % count == 0]
    if expert_width:
        return next(count for count in counts if width // count <= expert_width)
    return min(counts, key=lambda count: abs(math.log(blocks // count * block_bytes / _RECORD_BYTES)))


def _block(width: int, expert_width: int) -> int:
    """Of which slices are made that are no wider than experts."""
    return d.TILE if width % d.BLOCK or expert_width % d.BLOCK else d.BLOCK
