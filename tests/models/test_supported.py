"""Every field of a description is either computed or refused by its name."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from typing import Any

import pytest
from tiny_models import tiny_config

from smallthinker.arithmetic import Arithmetic
from smallthinker.errors import ConfigError
from smallthinker.models import description as d
from smallthinker.models.description import Model
from smallthinker.models.supported import check_supported

NORM, OTHER_NORM = d.Norm(1e-6), d.Norm(1e-5)
ROPE = d.Rope(10000.0, 16)
FFN = d.Ffn(32, d.Activation("silu"))

# Values that a field may have besides that of the tiny model, or none where another test changes it.
COMPUTED: dict[type, dict[str, list[Any]]] = {
    Model: {
        "family": ["other"], "vocab_size": [400], "hidden_size": [96], "context": [64], "layers": [],
        "final_norm": [OTHER_NORM], "head": [], "tokens": [], "embedding_scale": [8.0],
        "layer_inputs": [d.LayerInputs(32, NORM, 4.0, 0.1, 0.5)],
    },
    d.Layer: {
        "mixer": [], "ffn": [FFN], "norms": [], "residual_scale": [0.5], "output_scale": [True], "input_gate": [],
    },
    d.Attention: {
        "heads": [8], "kv_heads": [1], "head_dim": [32], "rope": [None], "window": [8], "scale": [0.25, 1.0, None],
        "qk_norm": [OTHER_NORM, None], "qk_norm_of": ["projection"], "bias": [True], "out_bias": [True], "clip": [8.0],
        "chunk": [16], "v_norm": [NORM], "sinks": [True], "softcap": [50.0], "growth": [d.Growth(0.1, 8192, 1)],
        "values": ["keys"], "kv_of": [0],
    },
    d.Rope: {
        "theta": [5.0], "size": [8], "turning": [0, 3], "pairing": ["interleaved"], "over": [16, 32],
        "scaling": [
            d.LinearScaling(2.0), d.Llama3Scaling(8.0, 1.0, 4.0, 8192), d.YarnScaling(4.0, 8192, 1.1),
            d.LongRopeScaling((1.0,) * 8, (2.0,) * 8, 4096, 1.1),
        ],
    },
    d.Norms: {
        "before_mixer": [OTHER_NORM, None], "before_ffn": [OTHER_NORM, None], "after_mixer": [NORM],
        "after_ffn": [NORM], "parallel": [True],
    },
    d.Norm: {"eps": [1e-5], "kind": ["layer"], "has_weight": [False], "plus_one": [True], "bias": [True]},
    d.Ffn: {
        "width": [64], "activation": [], "gated": [False], "bias": [True], "router": [None], "slices": [3],
        "shared": [FFN], "beside": [d.Beside(FFN, NORM, None, NORM)],
    },
    d.Activation: {"kind": ["relu", "silu", "gelu", "gelu_tanh", "relu2"]},
    d.Router: {
        "experts": [16], "k": [1], "reads": ["ffn_input", "mixed"], "norm": [NORM], "logit_scale": [0.5],
        "score": ["softmax"], "over": ["all"], "normalise": [False],
        "bias": ["logits", "choice"], "groups": [2], "kept_groups": [], "scale": [2.5], "expert_scale": [True],
        "applied_to": ["input"],
    },
    d.Head: {"tied": [False], "scale": [0.5], "softcap": [30.0], "bias": [True]},
    d.SpecialTokens: {"bos": [1, None], "eos": [(1,)]},
}  # fmt: skip
# And values that it may not have.
REFUSED: dict[type, dict[str, list[Any]]] = {
    d.Layer: {
        "mixer": [
            None, d.LatentAttention(4, 0, 32, 16, ROPE, 16, NORM), d.GatedDeltaNet(2, 2, 16, 16, 4, NORM),
            d.Mamba2(2, 16, 1, 16, 4, False, None), d.ShortConv(64, 3),
        ],
        "ffn": [None],
    },
    d.Attention: {"gated": [True], "kv_of": [1]},
    d.Ffn: {
        "shared_gate": [True], "beside": [d.Beside(replace(FFN, slices=2)), d.Beside(replace(FFN, bias=True))],
        "shared": [d.Ffn(32, d.Activation("clamped_swiglu", 7.0, 1.7)), replace(FFN, bias=True)],
    },
    d.Activation: {"limit": [7.0], "alpha": [1.7]},
}  # fmt: skip
# The path to a value of each type: fields, and which of several layers.
PATHS: dict[type, list[str | int]] = {
    Model: [],
    d.Layer: ["layers", 1],
    d.Attention: ["layers", 1, "mixer"],
    d.Rope: ["layers", 1, "mixer", "rope"],
    d.Norms: ["layers", 1, "norms"],
    d.Norm: ["layers", 1, "norms", "before_ffn"],
    d.Ffn: ["layers", 1, "ffn"],
    d.Activation: ["layers", 1, "ffn", "activation"],
    d.Router: ["layers", 1, "ffn", "router"],
    d.Head: ["head"],
    d.SpecialTokens: ["tokens"],
}
CHANGES = [(kind, field, value) for kind, of in REFUSED.items() for field, values in of.items() for value in values]


def changed(at: Any, path: list[str | int], field: str, value: Any) -> Any:
    """The same with another value of the field, at the end of the path."""
    if not path:
        return replace(at, **{field: value})
    step, *rest = path
    if isinstance(step, int):
        return (*at[:step], changed(at[step], rest, field, value), *at[step + 1 :])
    return replace(at, **{step: changed(getattr(at, step), rest, field, value)})


@pytest.mark.parametrize("kind", PATHS)
def test_every_field_is_known_to_these_tests(kind: type) -> None:
    assert {field.name for field in fields(kind)} == COMPUTED[kind].keys() | REFUSED.get(kind, {}).keys()


@pytest.mark.parametrize(("kind", "field", "value"), CHANGES)
def test_what_no_kernel_computes_is_refused_by_name(kind: type, field: str, value: Any) -> None:
    model = changed(tiny_config(), PATHS[kind], field, value)
    path = re.escape(re.sub(r"\.(\d+)", r"[\1]", ".".join(map(str, [*PATHS[kind], field]))))
    in_value = r"(\.\w+)+" if isinstance(value, (d.Norm, d.Ffn, d.Beside)) else ""  # of which one field is wrong
    with pytest.raises(
        ConfigError, match=rf"^{path}({in_value})?: expected .*; this engine has no arithmetic for that"
    ):
        check_supported(model)


@pytest.mark.parametrize("kind", PATHS)
def test_the_rest_is_computed(kind: type) -> None:
    check_supported(tiny_config())
    for field, values in COMPUTED[kind].items():
        for value in values:
            check_supported(changed(tiny_config(), PATHS[kind], field, value))


@pytest.mark.parametrize(
    ("name", "changes"),
    [("router", {"router": d.Router(8, 2, "residual", "softmax", "all", True)}), ("slices", {"slices": 2}),
     ("shared", {"shared": FFN}), ("shared_gate", {"shared_gate": True})],
)  # fmt: skip
def test_a_shared_network_is_one_that_every_token_uses(name: str, changes: dict[str, Any]) -> None:
    check_supported(changed(tiny_config(), PATHS[d.Ffn], "shared", FFN))
    with pytest.raises(ConfigError, match=rf"layers\[1\].ffn.shared.{name}: expected .* \(of a shared network\)"):
        check_supported(changed(tiny_config(), PATHS[d.Ffn], "shared", replace(FFN, **changes)))


def test_keys_are_those_of_an_earlier_layer_that_sees_as_much_and_has_its_own() -> None:
    model = changed(tiny_config(num_hidden_layers=3), PATHS[d.Attention], "kv_of", 0)
    check_supported(changed(model, ["layers", 2, "mixer"], "kv_of", 0))
    for of, field, value in ((1, "kv_of", 1), (0, "kv_heads", 4), (0, "head_dim", 32), (0, "window", 8)):
        other = changed(model, ["layers", 2, "mixer"], "kv_of", of)
        if field != "kv_of":
            other = changed(other, ["layers", 2, "mixer"], field, value)
        with pytest.raises(ConfigError, match=rf"layers\[2\].mixer.kv_of: expected a layer whose {field} is"):
            check_supported(other)


def test_the_arithmetic_refuses_before_it_touches_a_weight() -> None:
    class NoWeights:
        config = changed(tiny_config(), PATHS[d.Attention], "gated", True)

    with pytest.raises(ConfigError, match=r"layers\[1\].mixer.gated: expected False, found True"):
        Arithmetic(NoWeights(), None, None)  # type: ignore[arg-type]
