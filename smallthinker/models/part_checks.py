"""What of a model's parts contradicts itself, by the names that most configurations have.

Every function raises ConfigError. Knows nothing about which parts this engine computes (`supported.py`).
"""

from __future__ import annotations

from smallthinker.errors import ConfigError
from smallthinker.models.parts import BLOCK, TILE, Attention, Ffn, Llama3Scaling, LongRopeScaling, Rope, YarnScaling


def check_attention(mixer: Attention) -> None:
    for what, size in (("heads", mixer.heads), ("kv_heads", mixer.kv_heads), ("head_dim", mixer.head_dim)):
        at_least_one(what, size)
    if mixer.heads % mixer.kv_heads:
        raise ConfigError(f"num_key_value_heads: {mixer.kv_heads} does not divide num_attention_heads {mixer.heads}")
    if mixer.head_dim % 2:
        raise ConfigError(f"head_dim: expected an even number (rotary pairs), found {mixer.head_dim}")
    if mixer.rope is not None and (mixer.rope.size % 2 or mixer.rope.size > mixer.head_dim):
        raise ConfigError(
            f"rotary dimensions: expected an even number of at most {mixer.head_dim} (head_dim), found "
            f"{mixer.rope.size}"
        )
    if mixer.rope is not None:
        _check_rope(mixer.rope)
    for what, limit in (("clip", mixer.clip), ("softcap", mixer.softcap)):
        if limit < 0:
            raise ConfigError(f"{what}: expected 0 (none) or more, found {limit}")
    if mixer.growth is not None:
        at_least_one("growth every", mixer.growth.every)
    check_blocks("head_dim times num_attention_heads", mixer.heads * mixer.head_dim)


def _check_rope(rope: Rope) -> None:
    """What could not be computed with: division by zero, logarithms of nothing."""
    scaling = rope.scaling
    at_least_one("rotary dimensions", rope.size)
    _above("rope theta", rope.theta, 1.0)
    if rope.turning is not None and not 0 <= rope.turning <= rope.size // 2:
        raise ConfigError(f"rope turning: expected 0 to {rope.size // 2} pairs, found {rope.turning}")
    if scaling is None:
        return
    if isinstance(scaling, LongRopeScaling):
        for what, factors in (("short factors", scaling.short), ("long factors", scaling.long)):
            if len(factors) != rope.size // 2:
                raise ConfigError(f"rope scaling: expected {rope.size // 2} {what}, found {len(factors)}")
            _above(f"rope scaling {what}", min(factors), 0.0)
        return
    _above("rope scaling factor", scaling.factor, 0.0)
    if isinstance(scaling, Llama3Scaling):
        _above("rope scaling high_freq_factor", scaling.high_freq_factor, scaling.low_freq_factor)
    if isinstance(scaling, YarnScaling):
        at_least_one("rope scaling original_context", scaling.original_context)
        _above("rope scaling beta_slow", scaling.beta_slow, 0.0)
        _above("rope scaling beta_fast", scaling.beta_fast, 0.0)


def _above(what: str, found: float, least: float) -> None:
    if not found > least:
        raise ConfigError(f"{what}: expected more than {least:g}, found {found:g}")


def check_ffn(ffn: Ffn) -> None:
    check_blocks("width of a feed-forward network", ffn.width, TILE)
    at_least_one("slices", ffn.slices)
    activation = ffn.activation
    if activation.kind == "clamped_swiglu" and not (ffn.gated and activation.limit > 0 and activation.alpha > 0):
        raise ConfigError(
            "clamped_swiglu: expected a gate, a limit and an alpha above 0, found "
            f"{activation.limit}, {activation.alpha}"
        )
    router = ffn.router
    if router is not None:
        at_least_one("experts", router.experts)
        at_least_one("experts per token", router.k)
        at_least_one("groups of experts", router.groups)
        at_least_one("kept groups of experts", router.kept_groups)
    if router is not None and router.k > router.experts:
        raise ConfigError(f"experts per token: {router.k} is more than the {router.experts} experts of a layer")
    if router is not None and router.groups > 1:
        size, rest = divmod(router.experts, router.groups)
        if rest or size < 2:  # a group is as good as its best two
            raise ConfigError(
                f"groups of experts: expected a divisor of {router.experts} experts that leaves two or more to each, "
                f"found {router.groups}"
            )
        if router.k > router.kept_groups * size:
            raise ConfigError(
                f"experts per token: {router.k} is more than the {router.kept_groups * size} of the kept groups"
            )
    if router is not None and router.kept_groups > router.groups:
        raise ConfigError(f"kept groups of experts: {router.kept_groups} is more than the {router.groups} groups")
    if ffn.shared is not None:
        check_ffn(ffn.shared)
    if ffn.beside is not None:
        check_ffn(ffn.beside.ffn)


def at_least_one(what: str, size: int) -> None:
    if size < 1:
        raise ConfigError(f"{what}: expected at least 1, found {size}")


def check_blocks(what: str, size: int, block: int = BLOCK) -> None:
    at_least_one(what, size)
    if size % block:
        raise ConfigError(f"{what}: expected a multiple of {block}, found {size}")
