"""Which family a config.json is of: the one list of what this engine runs.

Knows nothing about what a family's keys mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from smallthinker.errors import ConfigError, shown, shown_or_nothing
from smallthinker.files import parse_json, read_small
from smallthinker.models.description import Model
from smallthinker.models.families import (
    described,
    gemma3,
    gemma4,
    glm4_moe,
    gpt_oss,
    llama,
    llama4,
    ministral3,
    mistral,
    mixtral,
    olmoe,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    smallthinker,
    smollm3,
)
from smallthinker.models.gguf_keys import ARCHITECTURE_KEY, GgufFacts, GgufKeys
from smallthinker.models.places import Place, file_name, file_tensors, places

_MODULES = (
    smallthinker, described, llama, mistral, qwen2, qwen3, qwen3_moe, olmoe, mixtral, smollm3, gemma3, gpt_oss, phi3,
    glm4_moe, ministral3, llama4, gemma4,
)  # fmt: skip
FAMILIES: dict[str, ModuleType] = {family.MODEL_TYPE: family for family in _MODULES}
"""By model_type: modules with ARCHITECTURE, from_config, to_config and CHECKPOINT_NAMES (None: the description's own);
UNUSED_TENSORS, patterns of names, where checkpoints have more; for who has GGUF files, GGUF_NAMES and UNUSED_IN_GGUF;
where GGUF has a name for them, GGUF_ARCHITECTURE and from_gguf, and gguf_notes where files don't say all they could."""


_WHOLE_MODEL = "ForConditionalGeneration"
_OF_THE_WHOLE = ("bos_token_id", "eos_token_id", "quantization_config", "tie_word_embeddings")
_HEAD = "lm_head.weight"
_OTHER_PARTS = r"(model\.)?(audio|vision|multi_modal|embed_vision|embed_audio)[\w.]*"


def read_model(path: str | Path, *, in_store: bool = False) -> Model:
    """The model of a config.json, a checkpoint's or a store's. Raises ConfigError, with the path and the key."""
    path = Path(path)
    try:
        raw = parse_json(read_small(path))
    except OSError as e:
        raise ConfigError(f"{path}: cannot read the model configuration: {e.strerror or e}") from e
    except ValueError as e:
        raise ConfigError(f"{path}: not valid JSON: {e}") from e
    try:
        return parse_model(raw, in_store=in_store)
    except ConfigError as e:
        raise ConfigError(f"{path}: {e}") from None


def parse_model(raw: Any, *, in_store: bool = False) -> Model:
    """The model of a parsed config.json. Raises ConfigError, naming the key."""
    if not isinstance(raw, Mapping):
        raise ConfigError(f"expected a JSON object, found {type(raw).__name__}")
    raw = _text_model(raw)
    model: Model = _family(raw).from_config(raw, in_store=in_store)
    return model


def to_config(model: Model) -> dict[str, Any]:
    """The config.json of a checkpoint of this model; `parse_model` gives back an equal one."""
    config: dict[str, Any] = FAMILIES[model.family].to_config(model)
    return config


def text_tensor(name: str) -> str | None:
    """What a tensor of a model that also sees or hears is called in a checkpoint of its text model; None for one of its
    other parts. Other models' names stay."""
    name = re.sub(r"^(model\.)?language_model\.(model\.)?", "" if name.endswith(_HEAD) else "model.", name)
    return None if re.match(_OTHER_PARTS, name) else name


def checkpoint_name(model: Model, name: str) -> str:
    """Of the tensor of a checkpoint in which one of the model's lies ("layers.3.q_proj", "layers.3.gate.5")."""
    return file_name(model, FAMILIES[model.family].CHECKPOINT_NAMES, name)


def checkpoint_tensors(model: Model) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of every tensor that a checkpoint of this model must have."""
    return file_tensors(model, FAMILIES[model.family].CHECKPOINT_NAMES)


def checkpoint_places(model: Model) -> Iterator[tuple[str, Place]]:
    """Where in a checkpoint each of the model's tensors lies, and each expert's matrix."""
    return places(model, FAMILIES[model.family].CHECKPOINT_NAMES)


def is_unused(model: Model, name: str) -> bool:
    """Whether a checkpoint's tensor is one that some have and that this model doesn't use."""
    return _is_one_of(model, name, getattr(FAMILIES[model.family], "UNUSED_TENSORS", ()))


def _is_one_of(model: Model, name: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern.replace("{layers}", str(model.num_layers)), name) for pattern in patterns)


def is_unused_in_gguf(model: Model, name: str) -> bool:
    """Whether a GGUF file's tensor is one that some have and that this model doesn't use."""
    return _is_one_of(model, name, getattr(FAMILIES[model.family], "UNUSED_IN_GGUF", ()))


def gguf_places(model: Model) -> Iterator[tuple[str, Place]]:
    """Where in llama.cpp's files each of the model's tensors lies, and each expert's matrix."""
    return places(model, FAMILIES[model.family].GGUF_NAMES)


def gguf_model(metadata: Mapping[str, Any], facts: GgufFacts, where: str) -> tuple[Model, tuple[str, ...]]:
    """The model of a GGUF file's metadata, and what was taken for granted. where: the file. Raises ConfigError."""
    family, architecture = gguf_family(metadata, where)
    keys = GgufKeys(metadata, architecture, where)
    raw = family.from_gguf(keys, facts)
    keys.reject_unknown()
    try:
        model = parse_model(raw)
    except ConfigError as e:
        raise ConfigError(f"{where}: metadata of '{architecture}', as a config.json: {e}") from None
    notes = getattr(FAMILIES[model.family], "gguf_notes", None)
    return model, () if notes is None else notes(GgufKeys(metadata, architecture, where), model)


def gguf_family(metadata: Mapping[str, Any], where: str) -> tuple[ModuleType, str]:
    """Whose file it is, and what it calls itself. Raises ConfigError for another model's."""
    known = {family.GGUF_ARCHITECTURE: family for family in FAMILIES.values() if hasattr(family, "GGUF_ARCHITECTURE")}
    architecture = metadata.get(ARCHITECTURE_KEY)
    if not isinstance(architecture, str) or architecture not in known:
        raise ConfigError(
            f"{where}: {ARCHITECTURE_KEY}: expected one of {', '.join(known)}, found {shown_or_nothing(architecture)}; "
            "this engine runs no other models"
        )
    return known[architecture], architecture


def _text_model(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a model that also sees or hears, which keeps its text model's configuration apart."""
    text, architectures = raw.get("text_config"), raw.get("architectures")
    is_whole = isinstance(architectures, list) and _one_name(architectures) and architectures[0].endswith(_WHOLE_MODEL)
    if not is_whole or not isinstance(text, Mapping) or not isinstance(text.get("model_type"), str):
        return raw
    family = FAMILIES.get(text["model_type"])
    if family is None:
        raise ConfigError(f"text_config.model_type: found {shown(text['model_type'])}; expected {', '.join(FAMILIES)}")
    common = {key: raw[key] for key in _OF_THE_WHOLE if raw.get(key) is not None}
    return {**text, **common, "architectures": [family.ARCHITECTURE]}


def _family(raw: Mapping[str, Any]) -> ModuleType:
    known = {family.ARCHITECTURE: family for family in FAMILIES.values()}
    architectures, kind = raw.get("architectures"), raw.get("model_type")
    if architectures is None and isinstance(kind, str) and kind in FAMILIES:
        return FAMILIES[kind]
    family = known.get(architectures[0]) if isinstance(architectures, list) and _one_name(architectures) else None
    if family is None:
        found = "missing" if architectures is None else f"found {shown(architectures)}"
        raise ConfigError(f"architectures: {found}; expected the one of {', '.join(FAMILIES)}")
    # SmallThinker's published class has no type of its own, so transformers writes ""
    if kind not in (None, "", family.MODEL_TYPE):
        raise ConfigError(f"model_type: expected '{family.MODEL_TYPE}', found {shown(kind)}")
    return family


def _one_name(names: list[Any]) -> bool:
    return len(names) == 1 and isinstance(names[0], str)
