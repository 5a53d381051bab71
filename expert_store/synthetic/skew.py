"""How uneven a synthetic model's use of its experts is: a bias per expert, in proportion to what tokens make of it.

Owns the numbers: which bias each router row has, and how large the residual stream is in each layer. The bias rides on
one coordinate of the residual stream, the first: every token's embedding has the same value there, no attention and no
expert adds to it, and each router row weighs it as its expert's bias demands. So the bias is the same for all tokens
in every layer, and takes one dimension. Knows nothing about packed bytes.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from smallthinker.models.description import Model

_TOKENS = 256


def router_spreads(
    config: Model, skew: float, embedding_std: float, router_gain: float, expert_gain: float, noise: bytes
) -> list[float]:
    """Per layer, the standard deviation over tokens of a router's logit, for a bias of `skew` times that.

    Gains are standard deviations of outputs for inputs of 1: of a router, of one expert. What a layer adds depends on
    how sharply the router weighs its experts, so the layers are gone through with normal logits made of `noise`, one
    byte for each of 256 tokens and each expert. Attention adds too little to count.
    """
    normal = np.array([NormalDist().inv_cdf((byte + 0.5) / 256) for byte in range(256)])
    of_all = normal[np.frombuffer(noise, np.uint8)].reshape(_TOKENS, config.experts_per_layer)
    variance, spreads = embedding_std**2, []
    for layer in config.layers:
        spread = router_gain * math.sqrt(variance)
        spreads.append(spread)
        if layer.ffn is None or layer.ffn.router is None:  # all its slices together are one expert
            variance += expert_gain**2
            continue
        experts, k = layer.ffn.experts, layer.ffn.k
        of_tokens, biases = of_all[:, :experts], skew * normal_biases(experts)
        chosen = -np.sort(-spread * (of_tokens + biases), axis=1)[:, :k]
        gates = np.exp(chosen - chosen[:, :1]) if layer.router.score == "softmax" else 1 / (1 + np.exp(-chosen))
        weights = gates / gates.sum(1, keepdims=True)
        variance += expert_gain**2 * float((weights**2).sum(1).mean())
    return spreads


def noise_bytes(config: Model) -> int:
    """How many bytes of noise `router_spreads` takes."""
    return _TOKENS * config.experts_per_layer


def normal_biases(experts: int) -> npt.NDArray[np.float64]:
    """Quantiles of a normal distribution, ascending, scaled to a standard deviation of 1; zero for a lone expert."""
    quantiles = np.array([NormalDist().inv_cdf((i + 0.5) / experts) for i in range(experts)])
    return quantiles / (quantiles.std() or 1.0)
