"""Which format each matrix gets: the one that was asked for, or its own, that of the file it comes from or lies in.

Blocks that a file has are the weights that somebody chose; kept, they are exact. Knows nothing about bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import prod

from smallthinker.errors import ConfigError
from smallthinker.expert_store.format import ALWAYS_F32, BLOCK_QUANTS, MADE_QUANTS, QUANTS, Formats, Quant, check_quant
from smallthinker.expert_store.sources.checkpoint import WeightSource
from smallthinker.expert_store.sources.gguf_checkpoint import IN_PLACE_REMEDY, GgufCheckpoint, GgufModel
from smallthinker.models.description import Model
from smallthinker.models.tensors import DOWN, Tensor, tensors

DEFAULT_QUANT: Quant = "q4_0"
KEEP = "keep"


def choose_formats(source: WeightSource, quant: str | None, notice: Callable[[str], None]) -> Formats:
    """quant: of all matrices; KEEP: each its own; None: matrices in blocks keep theirs, of a GGUF file that has some
    all matrices do, and numbers become DEFAULT_QUANT. So does what no kernel reads, and `notice` is told.

    Raises ConfigError for an unknown format.
    """
    if quant is not None and quant != KEEP:
        return Formats(check_quant(quant, MADE_QUANTS))
    matrices = _matrices(source.config)
    own = {tensor.name: _own_format(source, tensor) for tensor in matrices}
    lost = [name for name, format in own.items() if format is None]
    if lost:
        notice(
            f"{source.path}: {len(lost)} matrices can't stay as they are, {lost[0]} first: they become {DEFAULT_QUANT}"
        )
    has_blocks = any(format in BLOCK_QUANTS for format in own.values())
    numbers_stay = quant == KEEP or (has_blocks and isinstance(source, GgufCheckpoint))
    of: dict[str, Quant] = {}
    for name, format in own.items():
        stays = format is not None and (numbers_stay or format in BLOCK_QUANTS)
        of[name] = format if format is not None and stays else DEFAULT_QUANT
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


def _own_format(source: WeightSource, tensor: Tensor) -> Quant | None:
    """Of all its experts' matrices, if it is one."""
    found = {source.own_format(name) for name, _ in tensor.parts}
    return found.pop() if len(found) == 1 else None


def _named(matrices: list[Tensor], of: dict[str, Quant]) -> tuple[Quant, dict[str, Quant]]:
    """The most frequent one, and those that differ: by role where all layers have the same."""
    weights: Counter[Quant] = Counter()
    of_roles: dict[str, set[Quant]] = {}
    for tensor in matrices:
        weights[of[tensor.name]] += prod(tensor.shape)
        of_roles.setdefault(tensor.role, set()).add(of[tensor.name])
    most = weights.most_common(1)[0][0]
    others: dict[str, Quant] = {}
    for tensor in matrices:
        if of[tensor.name] != most:
            others[tensor.role if len(of_roles[tensor.role]) == 1 else tensor.name] = of[tensor.name]
    return most, others
