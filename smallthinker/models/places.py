"""Where a model's tensors lie in a family's files: what turns a table of names into tensors, rows and columns.

Files keep a tensor as it is, or each expert's on its own, or all experts' stacked, or several roles' joined to one, or
a dense network's whole matrix, of which the description has slices. Knows nothing about how a file is read.

Shape letters: d hidden, E experts, S slices, F width of one, R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from smallthinker.models.description import Attention, Model
from smallthinker.models.tensors import DOWN, EXPERT_BIASES, EXPERT_ROLES, Tensor, tensors


@dataclass(frozen=True)
class Stored:
    """How files keep a role's tensor: under `name`, with {layer} and {expert} where they have numbers.

    joined: the roles that this tensor holds, one after another by rows; taking_turns: row by row instead. transposed:
    its matrices are [C, R]. rotary_neighbours: in each head, rows that rotary positions turn together lie next to each
    other, as llama.cpp has them. added: by how much what the file has is more than the model's.
    """

    name: str
    joined: tuple[str, ...] = ()
    taking_turns: bool = False
    transposed: bool = False
    rotary_neighbours: bool = False
    added: float = 0.0


Names = Mapping[str, str | Stored]
"""By role. A layer without a router has the names of "dense_gate", "dense_up" and "dense_down" where there are any."""


@dataclass(frozen=True)
class Place:
    """A tensor, or an expert's matrix, of this `shape` in the file's tensor `name` of `stored_shape`, which is seen as
    one matrix: all its axes but the last together are its rows.

    rows, cols: of that matrix; transposed: `shape` has them the other way round. head: rows lie head by head of so
    many, rotary pairs side by side. is_zero: not what the file has, but zeros. added: to what is wanted.
    """

    name: str
    stored_shape: tuple[int, ...]
    shape: tuple[int, ...]
    rows: range
    cols: range
    transposed: bool = False
    head: int = 0
    is_zero: bool = False
    added: float = 0.0

    @property
    def turned(self) -> Place:
        """The same in a file that has each of its matrices the other way round, every one of them whole."""
        *lead, rows, cols = self.stored_shape
        first = self.rows.start // rows * cols
        shape, turned = (*lead, cols, rows), not self.transposed
        return replace(self, stored_shape=shape, rows=range(first, first + cols), cols=range(rows), transposed=turned)


def places(model: Model, names: Names | None) -> Iterator[tuple[str, Place]]:
    """Every tensor, or expert's matrix, by its name ("layers.3.q_proj", "layers.3.gate.5"). names: None for a model
    whose files have the names of `tensors.py`."""
    shapes = {(tensor.role, tensor.layer): tensor.shape for tensor in tensors(model)}
    for tensor in tensors(model):
        if names is None:
            for name, shape in tensor.parts:
                rows = range(1) if len(shape) == 1 else range(shape[0])
                yield name, Place(name, shape, shape, rows, range(shape[-1]))
        else:
            stored = _stored(model, tensor.role, tensor.layer, names)
            joined = {role: shapes[role, tensor.layer] for role in stored.joined or (tensor.role,)}
            for number, (name, shape) in enumerate(tensor.parts):
                yield name, _place(model, tensor, number, shape, stored, joined)


def file_tensors(model: Model, names: Names | None) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors that a file of this model must have, each once."""
    seen = set()
    for _, place in places(model, names):
        if place.name not in seen:
            seen.add(place.name)
            yield place.name, place.stored_shape


def file_name(model: Model, names: Names | None, name: str) -> str:
    """Of the file's tensor in which this one lies."""
    if names is None:
        return name
    layer, role, expert = None, name, ""
    if "." in name:
        _, number, role, *rest = name.split(".")
        layer, expert = int(number), rest[0] if rest else ""
    return _stored(model, role, layer, names).name.format(layer=layer, expert=expert)


def _stored(model: Model, role: str, layer: int | None, names: Names) -> Stored:
    dense = f"dense_{role}"
    stored = names[dense if dense in names and _is_dense(model, layer) else role]
    return Stored(stored) if isinstance(stored, str) else stored


def _is_dense(model: Model, layer: int | None) -> bool:
    ffn = None if layer is None else model.layers[layer].ffn
    return ffn is not None and ffn.router is None


def _place(
    model: Model,
    tensor: Tensor,
    number: int,
    shape: tuple[int, ...],
    stored: Stored,
    joined: Mapping[str, tuple[int, ...]],
) -> Place:
    """Of part `number` of a tensor. joined: shapes of all that lie in the file's tensor with it, in order."""
    dense, in_stack = _is_dense(model, tensor.layer), "{expert}" not in stored.name
    alone = {role: _alone(role, of, dense, in_stack) for role, of in joined.items()}
    own, is_bias = alone[tensor.role], tensor.role in EXPERT_BIASES
    axis = len(own) - 1 if is_bias or len(own) == 1 else len(own) - 2  # along which roles are joined
    before = list(alone).index(tensor.role)
    sizes = [of[axis] for of in alone.values()]
    start, total = sum(sizes[:before]), sum(sizes)
    out = range(before, total, len(sizes)) if stored.taking_turns else range(start, start + sizes[before])
    whole = (*own[:axis], total, *own[axis + 1 :])
    if axis == len(own) - 1:
        rows, cols = range(own[0] if len(own) > 1 else 1), out
    else:
        rows, cols = out, range(own[-1])
    if dense and tensor.role == DOWN:
        cols = cols[number * shape[1] : (number + 1) * shape[1]]
    elif dense and tensor.role in EXPERT_ROLES:
        rows = rows[number * shape[0] : (number + 1) * shape[0]]
    elif dense and is_bias and tensor.role != f"{DOWN}_bias":
        cols = cols[number * shape[0] : (number + 1) * shape[0]]
    elif is_bias and len(whole) == 2:
        rows = rows[number : number + 1]
    if stored.transposed:
        whole = (*whole[:-2], whole[-1], whole[-2])
        rows, cols = cols, rows
    if len(whole) == 3:
        first = number * whole[1]
        rows = range(rows.start + first, rows.stop + first, rows.step)
    mixer = None if tensor.layer is None else model.layers[tensor.layer].mixer
    return Place(
        stored.name.format(layer=tensor.layer, expert=number),
        whole,
        shape,
        rows,
        cols,
        stored.transposed,
        head=mixer.head_dim if stored.rotary_neighbours and isinstance(mixer, Attention) else 0,
        is_zero=dense and tensor.role == f"{DOWN}_bias" and number > 0,
        added=stored.added,
    )


def _alone(role: str, shape: tuple[int, ...], dense: bool, in_stack: bool) -> tuple[int, ...]:
    """The shape that a file's tensor would have if it held nothing but this role's."""
    if dense and role in EXPERT_ROLES:
        slices, rows, cols = shape
        return (rows, slices * cols) if role == DOWN else (slices * rows, cols)
    if dense and role in EXPERT_BIASES:
        return (shape[1],) if role == f"{DOWN}_bias" else (shape[0] * shape[1],)
    return shape if in_stack or role not in (*EXPERT_ROLES, *EXPERT_BIASES) else shape[1:]
