"""Which format each matrix gets: the one, or the mix, that was asked for; or its own, of the file that it is in.

Blocks that a file has are the weights that somebody chose; kept, they are exact. Knows nothing about bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from math import prod

from smallthinker.errors import ConfigError
from smallthinker.expert_store.format import (
    ALWAYS_F32,
    BLOCK,
    BLOCK_QUANTS,
    MADE_QUANTS,
    QUANTS,
    Formats,
    Quant,
    check_quant,
    column_multiple,
    record_layouts,
)
from smallthinker.expert_store.sources.checkpoint import WeightSource
from smallthinker.expert_store.sources.gguf_checkpoint import IN_PLACE_REMEDY, GgufCheckpoint, GgufModel
from smallthinker.models.description import Model
from smallthinker.models.tensors import (
    DOWN,
    EXPERT_ROLES,
    GATE,
    HEAD,
    LAYER_EMBEDDINGS,
    UP,
    Tensor,
    head_role,
    tensors,
)

DEFAULT_QUANT = "q4"
"""What docs/quality.md finds best at four bits: q4_k_s, or q4_0 where the model can't use that; see `_four_bits`."""
KEEP = "keep"
MIXES: Mapping[str, Mapping[str, Quant]] = {
    "q4_k_s": {"": "q4_k", HEAD: "q6_k", LAYER_EMBEDDINGS: "q6_k"},
    "q4_k_m": {"": "q4_k", HEAD: "q6_k", "v_proj": "q6_k", DOWN: "q6_k", LAYER_EMBEDDINGS: "q6_k"},
    "mxfp4": {"": "q8_0", GATE: "mxfp4", UP: "mxfp4", DOWN: "mxfp4"},
}
"""The format of each role, and of all others. HEAD is whichever matrix gives the logits."""
_OF_SMALL_BLOCKS: Mapping[Quant, Quant] = {"q4_k": "q4_0", "q6_k": "q8_0"}
"""For columns that aren't whole blocks of 256; f16 for those that aren't of 32 either."""
_OF_NEURONS: Mapping[Quant, Quant] = {"q4_k": "q4_0", "q6_k": "q4_0"}
"""In a mix, for networks of which only live neurons are read: of formats that can lie in rows."""


MADE = (
    DEFAULT_QUANT,
    *MADE_QUANTS,
    *(name for name, roles in MIXES.items() if all(quant in MADE_QUANTS for quant in roles.values())),
)
"""What can be made of numbers."""


def check_made(quant: str) -> None:
    """Raises ConfigError, naming the choices."""
    if quant not in MADE:
        raise ConfigError(f"quantisation: expected one of {', '.join(MADE)}, found {quant!r}")


def formats_of(model: Model, quant: str) -> Formats:
    """What a format or a mix gives each matrix. Raises ConfigError for an unknown one."""
    if quant == DEFAULT_QUANT:
        quant = _four_bits(model)
    roles: Mapping[str, Quant] = MIXES.get(quant) or {"": check_quant(quant)}
    matrices, of, live = _matrices(model), dict[str, Quant](), _layers_of_live_neurons(model)
    for tensor in matrices:
        role = HEAD if tensor.role == head_role(model) else tensor.role
        wanted = roles.get(role, roles[""])
        if quant in MIXES and role in EXPERT_ROLES and tensor.layer in live:
            wanted = _OF_NEURONS.get(wanted, wanted)
        if tensor.shape[-1] % column_multiple(wanted):
            wanted = _OF_SMALL_BLOCKS.get(wanted, wanted)
        of[tensor.name] = "f16" if tensor.shape[-1] % BLOCK and wanted in BLOCK_QUANTS else wanted
    return Formats(*_named(matrices, of))


def choose_formats(source: WeightSource, quant: str | None, notice: Callable[[str], None]) -> Formats:
    """quant: a format or a mix; KEEP: each its own; None: matrices in blocks keep theirs, of a GGUF file that has some
    all matrices do, and numbers become DEFAULT_QUANT. So does what no kernel reads, and `notice` is told.

    Raises ConfigError for an unknown format.
    """
    if quant is not None and quant != KEEP:
        check_made(quant)
        formats = formats_of(source.config, quant)
        if quant not in (*MIXES, DEFAULT_QUANT) and str(formats) != quant:
            notice(
                f"{source.path}: not all matrices have columns in multiples of 256, as {quant} wants them: {formats}"
            )
        return formats
    matrices = _matrices(source.config)
    own = {tensor.name: _own_format(source, tensor) for tensor in matrices}
    lost = [name for name, format in own.items() if format is None]
    if lost:
        become = _four_bits(source.config)
        notice(f"{source.path}: {len(lost)} matrices can't stay as they are, {lost[0]} first: they become {become}")
    has_blocks = any(format in BLOCK_QUANTS for format in own.values())
    numbers_stay = quant == KEEP or (has_blocks and isinstance(source, GgufCheckpoint))
    of: dict[str, Quant] = {}
    made = formats_of(source.config, DEFAULT_QUANT)
    for tensor in matrices:
        format = own[tensor.name]
        stays = format is not None and (numbers_stay or format in BLOCK_QUANTS)
        of[tensor.name] = format if format is not None and stays else made.of(tensor.role, tensor.layer)
    return Formats(*_named(matrices, of))


def formats_in(model: GgufModel) -> Formats:
    """Of a file that is run where it lies. Raises ConfigError for a type that the kernels can't read so."""
    matrices, of = _matrices(model.config), dict[str, Quant]()
    turned: set[bool] = set()
    for tensor in matrices:
        found = [model.places[name] for name, _ in tensor.parts]
        kinds = {one.tensor.kind.name.lower() for one in found}
        known = [quant for quant in QUANTS if {quant} == kinds]
        if not known:
            raise ConfigError(
                f"{model.where}: tensor '{found[0].tensor.name}': expected one of the types "
                f"{', '.join(QUANTS).upper()}, which run where they lie, found {', '.join(sorted(kinds)).upper()}; "
                f"{IN_PLACE_REMEDY}"
            )
        of[tensor.name] = known[0]
        if tensor.role == DOWN:
            turned |= {one.place.transposed for one in found}
    # behind a ReLU gate only live neurons' columns of `down` are read, if they lie as rows
    formats = Formats(*_named(matrices, of), whole=turned != {True})
    formats.check(model.config)
    return formats


def _matrices(model: Model) -> list[Tensor]:
    """Those whose format can be chosen."""
    return [tensor for tensor in tensors(model) if len(tensor.shape) > 1 and tensor.role not in ALWAYS_F32]


def _four_bits(model: Model) -> str:
    """Blocks of 256 lose half of what q4_0 loses. But they can't lie as rows, of which dead neurons' stay unread, and
    columns that are no multiple of 256 can't have them."""
    return "q4_0" if _layers_of_live_neurons(model) or model.hidden_size % column_multiple("q4_k") else "q4_k_s"


def _layers_of_live_neurons(model: Model) -> frozenset[int]:
    """Those of which only live neurons are read, of formats that can lie in rows."""
    layouts = enumerate(record_layouts(model, Formats("f16")))
    return frozenset(at for at, layout in layouts if layout and any(part.layout == "rows" for part in layout.sections))


def _own_format(source: WeightSource, tensor: Tensor) -> Quant | None:
    """Of all its experts' matrices, if it is one."""
    found = {source.own_format(name) for name, _ in tensor.parts}
    return found.pop() if len(found) == 1 else None


def _named(matrices: list[Tensor], of: dict[str, Quant]) -> tuple[Quant, dict[str, Quant]]:
    """The most frequent one, and those that differ: by role where all layers have the same."""
    weights: Counter[Quant] = Counter()
    of_roles: dict[str, set[Quant]] = {}
    for tensor in matrices:
        weights[of[tensor.name]] += 0 if tensor.role == LAYER_EMBEDDINGS else prod(tensor.shape)  # nobody multiplies it
        of_roles.setdefault(tensor.role, set()).add(of[tensor.name])
    most = weights.most_common(1)[0][0]
    others: dict[str, Quant] = {}
    for tensor in matrices:
        if of[tensor.name] != most:
            others[tensor.role if len(of_roles[tensor.role]) == 1 else tensor.name] = of[tensor.name]
    return most, others
