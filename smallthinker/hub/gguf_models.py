"""The GGUF models of a repository on a hub: which there are, which one is meant, and what its header says.

Knows nothing about downloading more than headers, or about stores.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from smallthinker.errors import CheckpointError
from smallthinker.expert_store.sources.gguf_checkpoint import GGUF_SUFFIX, GgufModel, part_names
from smallthinker.expert_store.sources.gguf_header import read_gguf_header
from smallthinker.hub.repository import Hub, HubFile

_PLAIN_NAME = re.compile(rf"\w[\w. +-]*{re.escape(GGUF_SUFFIX)}", re.ASCII)
_MOST_NAMED = 12  # in a message


def gguf_models(files: Mapping[str, HubFile]) -> dict[str, tuple[HubFile, ...]]:
    """All parts of each model, by the name of its first or only file. A model without all its parts is none."""
    models = {}
    for name in files:
        path = PurePosixPath(name)
        if not _PLAIN_NAME.fullmatch(path.name) or not name.isprintable():
            continue
        try:
            parts = [str(path.with_name(part)) for part in part_names(path.name)]
        except CheckpointError:  # a later part
            continue
        if all(part in files for part in parts):
            models[name] = tuple(files[part] for part in parts)
    return dict(sorted(models.items()))


def choose_model(models: Mapping[str, tuple[HubFile, ...]], wanted: str | None, quant: str, repo: str) -> str:
    """The model that `wanted`, a name or a shell pattern, means; without it the only one, or the one whose name says
    that it is of this quantisation. Raises CheckpointError unless that is exactly one."""
    names = list(models)
    if wanted is not None:
        found = [name for name in names if wanted in (name, PurePosixPath(name).name)]
        found = found or [name for name in names if fnmatchcase(name, wanted)]
    elif len(names) == 1:
        found = names
    else:
        # "f16" is not meant by "bf16", nor "q4_0" by "q4_0_4_4"
        says = re.compile(rf"(?<![a-z0-9]){re.escape(quant)}(?![a-z0-9_])", re.IGNORECASE)
        found = [name for name in names if says.search(PurePosixPath(name).name)]
    if len(found) != 1:
        listed = ", ".join(names[:_MOST_NAMED]) + (", ..." if len(names) > _MOST_NAMED else "")
        what = f"for '{wanted}'" if wanted is not None else f"of {quant}"
        raise CheckpointError(
            f"{repo}: expected one GGUF model {what}, found {len(found)}; --file takes one of {listed or 'none'}"
        )
    return found[0]


def gguf_on_hub(hub: Hub, parts: tuple[HubFile, ...]) -> GgufModel:
    """The model that the headers describe, the tensors checked against it; fetches no more than headers.

    Raises CheckpointError, ConfigError, DownloadError.
    """
    headers = []
    for file in parts:
        with hub.opened(file) as stream:
            headers.append(read_gguf_header(stream, f"{hub.repo}: {file.name}", file.size))
    return GgufModel(headers)
