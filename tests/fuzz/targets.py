"""What reads files of others, as functions of a liar: each ends, or raises one of the project's own errors.

`TARGETS` by name; fuzz.py and test_lying_files.py call them.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from client_targets import body, grammar
from gguf_files import write_gguf
from lies import Draw, edited, gguf_bytes, json_bytes, pick, safetensors_bytes, scattered
from tiny_models import HYBRID_ATTENTION, tiny_config

from smallthinker.cache.saved_conversations import SavedConversations
from smallthinker.cache.sequence_state import SequenceShape, SequenceState
from smallthinker.engine import Engine
from smallthinker.errors import SmallThinkerError
from smallthinker.expert_store.convert import convert
from smallthinker.expert_store.device.disk_profile import DiskProfile
from smallthinker.expert_store.device.storage_profile import BUNDLED, load_profile, profile_toml
from smallthinker.expert_store.format import dense_table, expert_table
from smallthinker.expert_store.header import read_header
from smallthinker.expert_store.own_formats import formats_of
from smallthinker.expert_store.sources.checkpoint import Checkpoint
from smallthinker.expert_store.sources.checkpoint_settings import read_config, settings_files
from smallthinker.expert_store.sources.gguf_checkpoint import GgufCheckpoint
from smallthinker.expert_store.sources.gguf_header import read_gguf_header
from smallthinker.expert_store.store import Store
from smallthinker.expert_store.synthetic.synth import synth
from smallthinker.memory_plan import choose_context, scratch_bytes
from smallthinker.models.registry import checkpoint_tensors, parse_model, read_model, to_config
from smallthinker.models.supported import check_supported
from smallthinker.router.trace import Trace, load_trace, save_trace
from smallthinker.text.chat_prompt import chat_prompt
from smallthinker.text.chat_template import load_chat_template
from smallthinker.text.tokenizer import Tokenizer

_MOST_LISTED = 500  # tensors of a described model: there may be millions
_MESSAGES = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hi <|im_end|>"},
    {"role": "assistant", "content": "<think>x</think>y", "tool_calls": []},
    {"role": "user", "content": "go on"},
]


class Files:
    """Valid files, made once in `folder`, and a place to write what lies."""

    def __init__(self, folder: Path) -> None:
        import numpy as np

        self.folder, self.place = folder, folder / "lie"
        self.place.mkdir(parents=True)
        config = tiny_config(**HYBRID_ATTENTION)
        (folder / "config.json").write_text(json.dumps(to_config(config)))
        self.checkpoint = synth(str(folder / "config.json"), folder / "checkpoint", "none")
        self.store = convert(self.checkpoint, folder / "store", "q4_0")
        self.trace, rng = folder / "trace.safetensors", np.random.default_rng(0)
        ids = np.argsort(rng.random((6, 4, 8)))[:, :, :2].astype(np.uint8)
        save_trace(Trace(ids, rng.random((6, 4, 8)).astype(np.float16), np.array([0, 3]), 4096, "tiny"), self.trace)
        with Engine(self.store, kv_dir=folder / "kv", context=128) as engine:
            engine.prefill(list(range(40)))
        (self.conversation,) = (folder / "kv").iterdir()
        gguf_file = write_gguf(self.checkpoint, folder / "tiny.gguf", "Q4_0")
        raw = gguf_file.read_bytes()
        header = read_gguf_header(io.BytesIO(raw), "tiny", len(raw))
        self.metadata = dict(header.metadata)
        self.gguf_tensors = [
            (t.name, t.shape[::-1], int(t.kind), raw[t.start : t.start + t.nbytes]) for t in header.tensors.values()
        ]
        self.configs = [self.raw_config, json.loads((self.store / "config.json").read_text()), *family_configs()]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.store, 300)

    @cached_property
    def grammars(self) -> Any:
        from smallthinker.generation.grammar import Grammars

        return Grammars(self.tokenizer, tiny_config(**HYBRID_ATTENTION))

    @property
    def raw_config(self) -> Any:
        return json.loads((self.folder / "config.json").read_text())

    def linked(self, of: Path, *without: str) -> Path:
        """The place, emptied, with a checkpoint's or store's files but for these."""
        shutil.rmtree(self.place)
        self.place.mkdir()
        for path in of.iterdir():
            if path.name not in without:
                (self.place / path.name).symlink_to(path)
        return self.place


def family_configs() -> list[Any]:
    """A config.json of every family, in several of its kinds."""
    from family_checkpoints import BASE, CASES

    raws = [{"model_type": kind, **BASE, **more} for kind, more in CASES.values()]
    return raws + [to_config(parse_model(raw)) for raw in raws]


def split_safetensors(path: Path) -> tuple[Any, bytes]:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def gguf(draw: Draw, files: Files) -> None:
    path = files.place / "model.gguf"
    path.write_bytes(gguf_bytes(draw, files.metadata, files.gguf_tensors))
    source = GgufCheckpoint(path)
    try:
        source.small_files()
        for name in list(source.model.places)[:: draw.integer(5, 19)]:
            source.read(name)
            source.blocks(name, "q4_0")
    finally:
        source.close()


def gguf_conversion(draw: Draw, files: Files) -> None:
    """Blocks with any scale, NaN and infinite ones too."""
    path = files.place / "model.gguf"
    tensors = [(name, sizes, kind, scattered(draw, data, 2)) for name, sizes, kind, data in files.gguf_tensors]
    never = type("Truth", (), {"integer": lambda self, low, high: low, "data": lambda self, most: b""})()
    path.write_bytes(gguf_bytes(never, files.metadata, tensors))
    convert(path, files.place / "out", pick(draw, ("q4_0", "q8_0", "f16")), force=True, notice=lambda note: None)


def safetensors(draw: Draw, files: Files) -> None:
    header, data = split_safetensors(pick(draw, (files.trace, files.store / "dense.safetensors")))
    path = files.place / "x.safetensors"
    path.write_bytes(safetensors_bytes(draw, header, data))
    read_header(path)


def checkpoint(draw: Draw, files: Files) -> None:
    name = "model.safetensors"
    folder = files.linked(files.checkpoint, name, f"{name}.index.json")
    header, data = split_safetensors(files.checkpoint / name)
    if draw.integer(0, 3) == 3:  # by an index
        names = [tensor for tensor in header if tensor != "__metadata__"]
        index = {"metadata": {"total_size": len(data)}, "weight_map": dict.fromkeys(names, "a.safetensors")}
        (folder / f"{name}.index.json").write_bytes(json_bytes(draw, index))
        name = "a.safetensors"
    (folder / name).write_bytes(safetensors_bytes(draw, header, data))
    with Checkpoint(folder) as source:
        for tensor in list(source._places)[:: draw.integer(1, 9)]:
            source.read(tensor)


def store(draw: Draw, files: Files) -> None:
    name = pick(draw, ("dense.safetensors", "experts.safetensors", "config.json"))
    folder = files.linked(files.store, name)
    if name == "config.json":
        (folder / name).write_bytes(json_bytes(draw, json.loads((files.store / name).read_text())))
    else:
        (folder / name).write_bytes(safetensors_bytes(draw, *split_safetensors(files.store / name)))
    with Store.open(folder) as found:
        for tensor in found.dense_names():
            found.dense(tensor)


def config(draw: Draw, files: Files) -> None:
    path = files.place / "config.json"
    path.write_bytes(json_bytes(draw, pick(draw, files.configs)))
    model = read_config(files.place) if draw.integer(0, 1) else read_model(path, in_store=True)
    assert parse_model(to_config(model)) == model
    list(islice(checkpoint_tensors(model), _MOST_LISTED))
    check_supported(model)
    formats = formats_of(model, "q4_0")
    list(islice(dense_table(model, formats), _MOST_LISTED))
    list(islice(expert_table(model, formats), _MOST_LISTED))
    context = choose_context(model, None)
    assert scratch_bytes(model, 128, context) > 0 and SequenceShape.of(model, context, 128, "f16").nbytes > 0


def tokenizer(draw: Draw, files: Files) -> None:
    names = ("tokenizer.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
    name = pick(draw, names)
    folder = files.linked(files.checkpoint, *names)
    for each in set(names):
        path = files.checkpoint / each
        seed = json.loads(path.read_text()) if path.exists() else {"eos_token_id": [1, 2]}
        (folder / each).write_bytes(json_bytes(draw, seed) if each == name else json.dumps(seed).encode())
    made = settings_files(folder, read_config(folder))
    for each, content in made.items():
        (folder / each).unlink(missing_ok=True)
        (folder / each).write_bytes(content)
    found = Tokenizer(folder, 300)
    ids = found.encode("Hello, <|im_start|> wörld 日本\n")
    found.decode(ids)
    chat_prompt(found, _MESSAGES[:2])


def raw_tokenizer(draw: Draw, files: Files) -> None:
    """A tokenizer.json as a store has it, with parts of every kind that the library knows."""
    folder = files.linked(files.store, "tokenizer.json")
    seed = json.loads((files.store / "tokenizer.json").read_text())
    for part, kinds in PARTS.items():
        if draw.integer(0, 2) == 2:
            seed[part] = pick(draw, kinds)
    (folder / "tokenizer.json").write_bytes(json_bytes(draw, seed))
    found = Tokenizer(folder, 300)
    text = draw.data(40).decode("utf-8", "replace")
    found.decode(found.encode(text))
    found.decode([draw.integer(0, 299) for _ in range(4)])


PARTS: dict[str, list[Any]] = {
    "normalizer": [
        {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x"},
        {"type": "Replace", "pattern": {"String": ""}, "content": "x"},
        {"type": "Prepend", "prepend": "\u2581"},
        {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFC"},
                {"type": "Lowercase"},
                {"type": "Strip", "strip_left": True, "strip_right": True},
            ],
        },
        {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
        {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
    ],
    "pre_tokenizer": [
        {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
        {"type": "Split", "pattern": {"Regex": "."}, "behavior": "MergedWithNext", "invert": True},
        {"type": "Digits", "individual_digits": True},
        {
            "type": "Sequence",
            "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}],
        },
        {"type": "FixedLength", "length": 5},
    ],
    "decoder": [
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        {
            "type": "Sequence",
            "decoders": [
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Replace", "pattern": {"String": "x"}, "content": ""},
            ],
        },
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "BPEDecoder", "suffix": "</w>"},
        {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True},
    ],
    "post_processor": [
        {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        },
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        {"type": "BertProcessing", "sep": ["x", 1], "cls": ["y", 2]},
    ],
    "model": [
        {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"},
        {"type": "Unigram", "unk_id": 0, "vocab": [["a", -1.0], ["b", -2.0]], "byte_fallback": False},
        {
            "type": "WordPiece",
            "unk_token": "a",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {"a": 0, "##a": 1},
        },
        {
            "type": "BPE",
            "dropout": 0.5,
            "unk_token": None,
            "continuing_subword_prefix": "##",
            "end_of_word_suffix": "</w>",
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": True,
            "vocab": {"a": 0, "b": 1, "ab": 2},
            "merges": [["a", "b"]],
        },
    ],
}


TEMPLATES = (
    "{% for m in messages %}{{ m.role }}: {{ m['content'] | trim }}\n{% endfor %}{{ eos_token }}",
    "{%- set ns = namespace(x=0) -%}{%- for m in messages %}{% set ns.x = ns.x + loop.index %}{{ ns.x ** 3 }}"
    "{% endfor %}",
    "{% macro f(x, n=2) %}{{ x * n }}{% if n < 5 %}{{ f(x, n + 1) }}{% endif %}{% endmacro %}{{ f('a') }}",
    "{{ messages | map(attribute='content') | join(', ') | upper | replace('A', 'bb') | wordcount }}",
    "{{ '%5d' | format(3) }}{{ range(9) | list | batch(2) | list | tojson(indent=2) }}{{ 'a,b'.split(',')[::-1] }}",
    "{% if tools is not none %}{{ tools | tojson }}{% endif %}{{ strftime_now('%d') }}{{ raise_exception('no') }}",
    "{% for k, v in messages[0].items() %}{% if loop.first %}{% continue %}{% endif %}{{ k ~ v }}{% endfor %}",
)
_PIECES = (
    b"{{ ", b" }}", b"{% ", b" %}", b"for x in range(99999) ", b"| list", b"* 9999999", b"** 999", b"'a' ", b".join(",
    b"messages", b"[0]", b"['content']", b"| format(", b"'%9999d'", b".__class__", b"lipsum", b"cycler", b"namespace",
    b"(", b")", b"~", b"| tojson", b"| sort", b"| groupby('role')", b"| indent(99999)", b"| sum", b"{% set x = ",
    b"{% endfor %}", b"{% if ", b"{% endif %}", b"{% macro f() %}", b"{{ f() }}", b"{% endmacro %}",
    b".replace('', 'aaaaaaaa')", b"| batch(1)", b".split('')", b"not", b" is ", b" in ", b"-1", b"1e308", b"\xff",
)  # fmt: skip


def template(draw: Draw, files: Files) -> None:
    folder = files.linked(files.store, "tokenizer_config.json")
    source = pick(draw, TEMPLATES).encode()
    for _ in range(draw.integer(0, 5)):
        at = draw.integer(0, len(source))
        source = source[:at] + pick(draw, _PIECES) + source[at + draw.integer(0, 6) :]
    text = source.decode("utf-8", "replace")
    settings = edited(draw, {"eos_token": "<|im_end|>", "chat_template": text}, 1)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    load_chat_template(folder).render(_MESSAGES, {})


def trace(draw: Draw, files: Files) -> None:
    path = files.place / "t.safetensors"
    path.write_bytes(safetensors_bytes(draw, *split_safetensors(files.trace)))
    load_trace(path)


def profile(draw: Draw, files: Files) -> None:
    path = files.place / "p.toml"
    if draw.integer(0, 3) < 3:
        path.write_bytes(scattered(draw, profile_toml(load_profile(pick(draw, list(BUNDLED)))).encode(), 6))
        found = load_profile(path)
        assert found.read_sec(4096, 4096) >= 0 and found.bytes_per_sec(1 << 20, 4) > 0
    with contextlib.suppress(ValueError, KeyError):  # what its one caller takes
        raw = edited(draw, DiskProfile().to_dict(), 3)
        if isinstance(raw, dict):
            DiskProfile.from_dict(raw)


def conversation(draw: Draw, files: Files) -> None:
    folder = files.place / "kv"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / files.conversation.name).write_bytes(safetensors_bytes(draw, *split_safetensors(files.conversation)))
    header, _ = split_safetensors(files.conversation)
    model = tiny_config(**HYBRID_ATTENTION)
    shape = SequenceShape.of(model, 128, 128, "f16")
    saved = SavedConversations(folder, header["__metadata__"]["model"], shape, 128, 300, 1 << 20)
    found = saved.longest(list(range(41)), 0)
    if found is not None:
        saved.load(found[0], SequenceState(shape))


Target = Callable[[Draw, Files], None]
TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (
        gguf, gguf_conversion, safetensors, checkpoint, store, config, tokenizer, raw_tokenizer, template, trace,
        profile, conversation, body, grammar,
    )
}  # fmt: skip


def call(target: Target, draw: Draw, files: Files) -> None:
    """Raises whatever isn't the project's own."""
    with contextlib.suppress(SmallThinkerError):
        target(draw, files)
