"""What a Hugging Face folder says beside its weights, as a store keeps it: all that acts on an answer, in one form.

Owns which of the library's files and keys act, wherever transformers 4 and 5 write them: config.json, the ends of an
answer, added and special tokens, chat templates. What is state of a training or of a batch (padding, truncation,
sampling defaults) is left behind. So a folder that was loaded and saved again gives the same bytes. Knows nothing about
weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallthinker.errors import CheckpointError, ConfigError, printable, shown
from smallthinker.expert_store.format import CONFIG_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE
from smallthinker.expert_store.synthetic.byte_tokenizer import END_OF_TEXT
from smallthinker.files import parse_json, read_small
from smallthinker.models.description import Model
from smallthinker.models.keys import token_ids
from smallthinker.models.registry import read_model, to_config
from smallthinker.text.panics import panics_as_errors

if TYPE_CHECKING:
    from tokenizers import AddedToken

GENERATION_FILE = "generation_config.json"
TEMPLATE_FILE = "chat_template.jinja"
PROCESSOR_TEMPLATE_FILE = "chat_template.json"
MORE_TEMPLATES = "additional_chat_templates"
SPECIAL_TOKENS_FILE, ADDED_TOKENS_FILE = "special_tokens_map.json", "added_tokens.json"  # transformers 4's
SETTINGS_FILES = (
    CONFIG_FILE, GENERATION_FILE, TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, SPECIAL_TOKENS_FILE, ADDED_TOKENS_FILE,
    TEMPLATE_FILE, PROCESSOR_TEMPLATE_FILE,
)  # fmt: skip

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# What absent names mean to the published tokenizer class; null means none.
_PUBLISHED_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
_ABSENT_NAMES = ("eos_token", "unk_token", "pad_token")
_MORE_TOKENS = ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens")
_TOKEN_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
_DEFAULT_TEMPLATE = "default"


def read_config(folder: Path) -> Model:
    """The model, with the ends of an answer of config.json and of generation_config.json. Raises ConfigError."""
    config = read_model(folder / CONFIG_FILE)
    path = folder / GENERATION_FILE
    try:
        ends = token_ids("eos_token_id", _object(path).get("eos_token_id"))
    except (CheckpointError, ConfigError) as e:
        raise ConfigError(str(e) if isinstance(e, CheckpointError) else f"{path}: {e}") from None
    for id in ends:
        if id >= config.vocab_size:
            raise ConfigError(f"{path}: eos_token_id: {id} is outside the vocabulary of {config.vocab_size}")
    tokens = replace(config.tokens, eos=tuple(dict.fromkeys(config.tokens.eos + ends)))
    return replace(config, tokens=tokens)


def settings_files(folder: Path, config: Model) -> dict[str, bytes]:
    """config.json and the tokenizer's files for the store, by name. Raises CheckpointError."""
    path = folder / TOKENIZER_CONFIG_FILE
    settings = _object(path)
    added: dict[str, Any] = {}
    if "added_tokens_decoder" not in settings:  # as transformers 5 has it, the older files count only then
        settings |= _object(folder / SPECIAL_TOKENS_FILE)
        added = _object(folder / ADDED_TOKENS_FILE)
    kind = settings.get("tokenizer_class", _object(folder / CONFIG_FILE).get("tokenizer_class"))
    tokenizer = _object(folder / TOKENIZER_FILE)
    if kind in _PUBLISHED_CLASSES and END_OF_TEXT in _contents(tokenizer):
        settings = dict.fromkeys(_ABSENT_NAMES, END_OF_TEXT) | settings
    named = {key: token for key in _NAMED_TOKENS if (token := settings.get(key)) is not None}
    special = dict(_special_tokens(path, settings, named))
    files = {
        CONFIG_FILE: json.dumps(to_config(config), indent=1).encode("ascii"),
        TOKENIZER_FILE: _tokenizer(
            folder, tokenizer, settings.get("added_tokens_decoder"), added, special, config.vocab_size
        ),
    }
    kept: dict[str, Any] = {key: _content(path, key, token) for key, token in named.items()}
    templates = _templates(folder, settings.get("chat_template"))
    if set(templates) == {_DEFAULT_TEMPLATE}:
        kept["chat_template"] = templates[_DEFAULT_TEMPLATE]
    elif templates:
        kept["chat_template"] = [{"name": name, "template": text} for name, text in sorted(templates.items())]
    if kept:
        files[TOKENIZER_CONFIG_FILE] = json.dumps(kept, indent=1).encode("ascii")
    return files


def _contents(tokenizer: Mapping[str, Any]) -> list[Any]:
    """Of the added tokens of a tokenizer.json that nobody has checked."""
    added = tokenizer.get("added_tokens")
    return [token.get("content") for token in added if isinstance(token, dict)] if isinstance(added, list) else []


def _tokenizer(
    folder: Path,
    raw: Mapping[str, Any],
    decoder: Any,
    added: Mapping[str, Any],
    special: Mapping[str, AddedToken],
    vocab_size: int,
) -> bytes:
    """tokenizer.json with what other files say of added tokens, without a batch's padding and truncation."""
    from tokenizers import AddedToken, Tokenizer

    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; download the tokenizer too")
    try:
        with panics_as_errors():
            tokenizer = Tokenizer.from_str(json.dumps({**raw, "truncation": None, "padding": None}))
    except Exception as e:  # the library raises bare Exception
        raise CheckpointError(
            f"{path}: not a tokenizer that the tokenizers library can load: {printable(str(e), 80)}"
        ) from None
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    by_id = dict(_numbered_tokens(folder, decoder))
    for content, id in added.items():
        if type(id) is not int:
            raise _fault(folder / ADDED_TOKENS_FILE, content, "an id", id)
        if content not in known:
            is_special = content in special
            by_id[id] = AddedToken(content, normalized=not is_special, special=is_special)
    try:
        with panics_as_errors():
            tokenizer.add_tokens([by_id[id] for id in sorted(by_id)])
            flags = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
            tokenizer.add_tokens([token for content, token in special.items() if not flags.get(content)])
    except Exception as e:
        raise CheckpointError(
            f"{folder / TOKENIZER_CONFIG_FILE}: cannot add its tokens: {printable(str(e), 80)}"
        ) from None
    for id, token in by_id.items():
        if (found := tokenizer.token_to_id(token.content)) != id:
            what = f"the id of {shown(token.content)} as in {TOKENIZER_FILE}, {found}"
            raise _fault(folder / TOKENIZER_CONFIG_FILE, "added_tokens_decoder", what, id)
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if highest >= vocab_size:
        raise _fault(path, "token ids", f"ids below vocab_size, {vocab_size}", highest)
    final: dict[str, Any] = json.loads(tokenizer.to_str())
    vocab = final["model"]["vocab"]
    for token in final["added_tokens"]:
        if token["content"] not in known and isinstance(vocab, dict):
            vocab[token["content"]] = token["id"]  # else the library counts on from the vocabulary's size as it loads
    for step in _byte_levels(final["pre_tokenizer"]):
        step["trim_offsets"] = True
    for step in _byte_levels(final["decoder"]):
        step |= {"add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return json.dumps(final).encode("ascii")


def _byte_levels(part: Any) -> Iterator[dict[str, Any]]:
    """Byte-level steps of a tokenizer. A few of their settings don't act, and transformers 5 writes others."""
    if isinstance(part, dict):
        if part.get("type") == "ByteLevel":
            yield part
        for steps in ("pretokenizers", "decoders"):
            for step in part.get(steps, ()):
                yield from _byte_levels(step)


def _numbered_tokens(folder: Path, decoder: Any) -> Iterator[tuple[int, AddedToken]]:
    path, key = folder / TOKENIZER_CONFIG_FILE, "added_tokens_decoder"
    if decoder is None:
        return
    if not isinstance(decoder, dict):
        raise _fault(path, key, "an object", decoder)
    for id, token in decoder.items():
        if not (id.isascii() and id.isdecimal() and len(id) < 10) or not isinstance(token, dict):
            raise _fault(path, key, "ids and objects", {id: token})
        yield int(id), _token(path, key, token)


def _special_tokens(
    path: Path, settings: Mapping[str, Any], named: Mapping[str, Any]
) -> Iterator[tuple[str, AddedToken]]:
    """By content: the named ones and those that are listed, in the order in which transformers adds them."""
    found = list(named.items())
    for key in _MORE_TOKENS:
        more = settings.get(key)
        if isinstance(more, dict) and key != "additional_special_tokens":
            more = list(more.values())
        if not isinstance(more, list | None):
            raise _fault(path, key, "a list of tokens", more)
        found += [(key, token) for token in more or ()]
    for key, token in found:
        content = _content(path, key, token)
        flags = token if isinstance(token, dict) else {}
        is_special = key in named or token is content or flags.get("special", False)
        yield content, _token(path, key, {"normalized": False, **flags, "content": content, "special": is_special})


def _token(path: Path, key: str, raw: Mapping[str, Any]) -> AddedToken:
    from tokenizers import AddedToken

    flags = {flag: raw[flag] for flag in _TOKEN_FLAGS if flag in raw}
    if any(type(flag) is not bool for flag in flags.values()):
        raise _fault(path, key, f"true or false for {', '.join(_TOKEN_FLAGS)}", raw)
    return AddedToken(_content(path, key, raw), **flags)


def _content(path: Path, key: str, token: Any) -> str:
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str) or not content or any("\ud800" <= c <= "\udfff" for c in content):
        raise _fault(path, key, "a token", token)
    return content


def _templates(folder: Path, configured: Any) -> dict[str, str]:
    """By name. Files of their own count before what the tokenizer's configuration holds, as in transformers."""
    found = {path.stem: _text(path) for path in sorted((folder / MORE_TEMPLATES).glob("*.jinja"))}
    if (folder / TEMPLATE_FILE).exists():
        found.setdefault(_DEFAULT_TEMPLATE, _text(folder / TEMPLATE_FILE))
    if found:
        return found
    path = folder / TOKENIZER_CONFIG_FILE
    if configured is None:
        path = folder / PROCESSOR_TEMPLATE_FILE
        configured = _object(path).get("chat_template")
    if isinstance(configured, str):
        configured = [{"name": _DEFAULT_TEMPLATE, "template": configured}]
    elif isinstance(configured, dict):
        configured = [{"name": name, "template": text} for name, text in configured.items()]
    if configured is not None and not isinstance(configured, list):
        raise _fault(path, "chat_template", "a text, or a list of names and templates", configured)
    for item in configured or ():
        if not isinstance(item, dict) or not all(isinstance(item.get(key), str) for key in ("name", "template")):
            raise _fault(path, "chat_template", "a text, or a list of names and templates", item)
        found[item["name"]] = item["template"]
    return found


def _object(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is no file."""
    if not path.exists():
        return {}
    try:
        raw = parse_json(_bytes(path))
    except ValueError as e:
        if isinstance(e, CheckpointError):
            raise
        raise CheckpointError(f"{path}: not valid JSON: {e}") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {shown(raw)}")
    return raw


def _text(path: Path) -> str:
    try:
        return _bytes(path).decode("utf-8")
    except UnicodeDecodeError as e:
        raise CheckpointError(f"{path}: byte {e.start}: expected a template in UTF-8") from None


def _bytes(path: Path) -> bytes:
    try:
        return read_small(path)
    except OSError as e:
        raise CheckpointError(f"{path}: cannot read: {e.strerror or e}") from e


def _fault(path: Path, key: str, expected: str, found: object) -> CheckpointError:
    return CheckpointError(f"{path}: {printable(key, 80)}: expected {expected}, found {shown(found)}; correct the file")
