"""What a repository on a hub offers to run: its safetensors, and each GGUF model with all its parts.

Owns what names of files say: which belong together, and the quantisation. Knows nothing about what is in them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Literal

from smallthinker.errors import CheckpointError
from smallthinker.expert_store.format import QUANTS
from smallthinker.expert_store.own_formats import MADE, MIXES
from smallthinker.expert_store.sources.checkpoint import INDEX_FILE, MAX_INDEX_BYTES, SINGLE_FILE, shard_names
from smallthinker.expert_store.sources.gguf_checkpoint import GGUF_SUFFIX, part_names
from smallthinker.hub.repository import Hub, HubFile

_PLAIN_NAME = re.compile(rf"\w[\w. +-]*{re.escape(GGUF_SUFFIX)}", re.ASCII)
_NO_MODEL = re.compile(r"mmproj|imatrix", re.IGNORECASE)  # a picture's encoder; what a quantiser measured
_QUANT = re.compile(
    r"(?<![a-z0-9])(i?q\d(?:_[a-z0-9]+)*|tq\d_\d|bf16|fp?16|fp?32|mxfp4(?:_moe)?|nvfp4)(?![a-z0-9_])", re.IGNORECASE
)
_MOST_NAMED = 12  # in a message
# Of what quantisers call their files, in the order in which one is taken that nobody chose: about four and a half bits
# a weight read little and lose little; more bits before fewer, and what isn't quantised last.
_PREFERRED = (
    "q4_k_m", "q4_k_xl", "q4_k_l", "q4_k_s", "q4_0", "iq4_xs", "iq4_nl", "mxfp4_moe", "mxfp4", "q4_1", "q5_k_m",
    "q5_k_s", "q5_0", "q6_k", "q8_0", "bf16", "f16", "q3_k_l", "q3_k_m", "q3_k_s", "f32",
)  # fmt: skip


@dataclass(frozen=True)
class Offer:
    """One of the models of a repository, all of them the same but for rounding. name: of the first or only GGUF file,
    "safetensors" for a folder's weights; quant: what the file's name says, or "". files: the weights alone."""

    name: str
    kind: Literal["safetensors", "gguf"]
    quant: str
    files: tuple[HubFile, ...]

    @property
    def nbytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def may_run(self) -> bool:
        """Not a GGUF file whose name says a type that no kernel reads."""
        return not self.quant or self.quant.startswith(tuple(QUANTS))


def offers(hub: Hub) -> list[Offer]:
    """Safetensors first, then GGUF models by name; empty where there is neither. Raises CheckpointError for an index
    of shards that names what isn't there, DownloadError."""
    found = []
    if weights := _safetensors(hub):
        found.append(Offer("safetensors", "safetensors", "", weights))
    return found + [Offer(name, "gguf", quant_of(name), files) for name, files in gguf_models(hub.files).items()]


def gguf_models(files: Mapping[str, HubFile]) -> dict[str, tuple[HubFile, ...]]:
    """All parts of each model, by the name of its first or only file. A model without all its parts is none."""
    models = {}
    for name in files:
        path = PurePosixPath(name)
        if not _PLAIN_NAME.fullmatch(path.name) or not name.isprintable() or _NO_MODEL.search(path.name):
            continue
        try:
            parts = [str(path.with_name(part)) for part in part_names(path.name)]
        except CheckpointError:  # a later part
            continue
        if all(part in files for part in parts):
            models[name] = tuple(files[part] for part in parts)
    return dict(sorted(models.items()))


def quant_of(name: str) -> str:
    """What the name of a GGUF file says of its quantisation, in small letters, or ""."""
    said = _QUANT.findall(PurePosixPath(name).name)
    return re.sub("^fp", "f", said[-1].lower()) if said else ""


def choices(found: Sequence[Offer], gguf: str | None, quant: str | None, repo: str) -> list[Offer]:
    """What may be taken, the best first: what `gguf`, a name or a shell pattern, or `quant` means; without them
    safetensors, else the GGUF models in the order of preference; all of one kind. Raises CheckpointError where there is
    nothing, or not exactly one of what was asked for."""
    folder = [offer for offer in found if offer.kind == "safetensors"]
    files = [offer for offer in found if offer.kind == "gguf"]
    is_mix = quant in MIXES and any(offer.quant == quant for offer in files)  # there it is made already
    converts = quant is None or (quant in MADE and not is_mix)
    if gguf is None and folder and converts:
        return folder
    if gguf is not None:
        exact = [offer for offer in files if gguf in (offer.name, PurePosixPath(offer.name).name)]
        chosen = exact or [offer for offer in files if fnmatchcase(offer.name, gguf)]
        what = f"for '{gguf}'"
    elif quant is not None:
        chosen, what = [offer for offer in files if offer.quant == quant], f"of {quant}"
    else:
        return sorted(files, key=_preference)
    if len(chosen) != 1:
        names = [offer.name for offer in files]
        listed = ", ".join(names[:_MOST_NAMED]) + (", ..." if len(names) > _MOST_NAMED else "")
        raise CheckpointError(
            f"{repo}: expected one GGUF model {what}, found {len(chosen)}; `gguf` takes one of {listed or 'none'}"
            + ("; smallthinker convert makes any format of one" if quant in MADE and not chosen else "")
        )
    return chosen


def _preference(offer: Offer) -> tuple[int, int]:
    known = offer.quant in _PREFERRED
    return _PREFERRED.index(offer.quant) if known else len(_PREFERRED), offer.nbytes


def _safetensors(hub: Hub) -> tuple[HubFile, ...]:
    if INDEX_FILE not in hub.files:
        return (hub.files[SINGLE_FILE],) if SINGLE_FILE in hub.files else ()
    where = f"{hub.repo}: {INDEX_FILE}"
    names = shard_names(hub.read(hub.files[INDEX_FILE], MAX_INDEX_BYTES), where)
    missing = [name for name in names if name not in hub.files]
    if missing:
        raise CheckpointError(f"{where}: names {missing[0]}, which the repository doesn't have")
    return tuple(hub.files[name] for name in names)
