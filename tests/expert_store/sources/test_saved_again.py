"""A folder that transformers has loaded and saved again is the same model: it converts to the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import DENSE_ATTENTION, HYBRID_ATTENTION, tiny_config

from smallthinker.errors import CheckpointError, ConfigError
from smallthinker.expert_store.convert import convert
from smallthinker.expert_store.sources.checkpoint import INDEX_FILE, Checkpoint
from smallthinker.expert_store.sources.checkpoint_settings import SETTINGS_FILES, read_config, settings_files
from smallthinker.expert_store.synthetic.byte_tokenizer import byte_tokenizer_files
from smallthinker.expert_store.synthetic.synth import synth
from smallthinker.models.registry import checkpoint_tensors, read_model, to_config
from smallthinker.text.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*rope_scaling:FutureWarning", "ignore::DeprecationWarning")
Change = Callable[[Path], None]
KINDS = {"4b": DENSE_ATTENTION, "21b": HYBRID_ATTENTION}
WORDS = (  # Qwen's
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
FLAGS = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}é"


def edit(path: Path, **changes: Any) -> dict[str, Any]:
    """Change keys of a JSON file, or make one; None removes a key."""
    raw = json.loads(path.read_text("utf-8")) if path.exists() else {}
    raw = {key: value for key, value in (raw | changes).items() if value is not None}
    path.write_text(json.dumps(raw, indent=2), "utf-8")
    return raw


def as_published(folder: Path) -> Path:
    """A synthetic checkpoint's small files as those of the published models are."""
    split = {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False}
    pre_tokenizer = {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL]}
    raw = edit(folder / "tokenizer.json", pre_tokenizer=pre_tokenizer, post_processor=BYTE_LEVEL)
    raw["added_tokens"][0]["special"] = True
    model = {"unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False}
    raw |= {"normalizer": {"type": "NFC"}, "model": raw["model"] | model | {"dropout": None, "byte_fallback": False}}
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    decoder = {
        str(token["id"]): {**FLAGS, "content": token["content"], "special": True} for token in raw["added_tokens"]
    }
    (folder / "tokenizer_config.json").unlink()
    edit(
        folder / "tokenizer_config.json", add_bos_token=False, added_tokens_decoder=decoder, chat_template=TEMPLATE,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"], eos_token="<|im_end|>", pad_token="<|endoftext|>",
        tokenizer_class="Qwen2Tokenizer", clean_up_tokenization_spaces=False, errors="replace", model_max_length=512,
    )  # fmt: skip
    edit(folder / "config.json", model_name="tiny", initializer_range=0.02, torch_dtype="bfloat16", use_cache=False)
    edit(folder / "generation_config.json", do_sample=True, eos_token_id=[298, 299], temperature=0.6, top_p=0.9)
    return folder


@pytest.fixture(scope="module", params=["4b", "21b"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    edit(folder / "config.json", **to_config(tiny_config(**KINDS[request.param])))
    return as_published(synth(str(folder / "config.json"), folder / "checkpoint", "none"))


@pytest.fixture
def again(published: Path, tmp_path: Path) -> Path:
    """A copy, to change by hand."""
    folder = tmp_path / "again"
    folder.mkdir()
    for file in published.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def assert_same_store(one: Path, other: Path, tmp_path: Path) -> None:
    stores = [convert(folder, tmp_path / f"store{i}", "q8_0") for i, folder in enumerate((one, other))]
    files = [{file.name: file.read_bytes() for file in store.iterdir()} for store in stores]
    assert set(files[0]) == set(files[1])
    for name, content in files[0].items():
        if name == "manifest.json":  # says what it was made of
            continue
        assert files[1][name] == content, name


def save_by_transformers(folder: Path, out: Path) -> None:
    """With a configuration and a model class that are registered as the published remote code would be."""
    import torch
    import transformers as hf

    class SmallThinkerConfig(hf.PreTrainedConfig):
        model_type = "smallthinker"

        def __init__(self, **given: Any) -> None:
            absent = {"rope_theta": 1e6, "sliding_window_size": 4096, "tie_word_embeddings": True}
            for key, value in (absent | {"attention_bias": False, "layer_types": None} | given).items():
                if key not in ("rope_scaling", "torch_dtype", "model_type", "dtype"):
                    setattr(self, key, value)
            kinds = ("full_attention", "sliding_attention")
            self.layer_types = [kinds[flag] for flag in given.get("sliding_window_layout", ())]
            self.rope_scaling = given.get("rope_scaling")
            super().__init__(**given)
            self.sliding_window = self.sliding_window_size
            self.sliding_window_pattern = given.get("sliding_window_layout")

    class SmallThinkerForCausalLM(hf.PreTrainedModel, hf.GenerationMixin):
        config_class = SmallThinkerConfig
        _tied_weights_keys: ClassVar = {"lm_head.weight": "model.embed_tokens.weight"}

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            for name, shape in checkpoint_tensors(Checkpoint(folder).config):
                *path, last = name.split(".")
                module: Any = self
                for part in path:
                    if not hasattr(module, part):
                        module.add_module(part, torch.nn.Module())
                    module = getattr(module, part)
                module.register_parameter(last, torch.nn.Parameter(torch.empty(shape)))
            if config.tie_word_embeddings:
                self.lm_head = torch.nn.Module()
                self.lm_head.weight = self.model.embed_tokens.weight
            self.post_init()

    hf.AutoConfig.register("smallthinker", SmallThinkerConfig, exist_ok=True)
    hf.AutoModelForCausalLM.register(SmallThinkerConfig, SmallThinkerForCausalLM, exist_ok=True)
    hf.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").save_pretrained(out)
    hf.AutoTokenizer.from_pretrained(folder).save_pretrained(out)


def test_what_transformers_loads_and_saves_is_the_same_model(published: Path, tmp_path: Path) -> None:
    save_by_transformers(published, tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert saved["rope_parameters"]["rope_type"] == "default" and "layer_types" in saved  # it is what 5.x writes
    assert (tmp_path / "again" / "chat_template.jinja").exists()
    assert_same_store(published, tmp_path / "again", tmp_path)


def by_hand_4(folder: Path) -> None:
    """transformers 4 leaves out what its base class has, a tied head, and keeps what generation had."""
    raw = edit(folder / "config.json", torch_dtype="float32", num_beams=1, top_k=50, temperature=1.0, is_decoder=False)
    if raw["tie_word_embeddings"]:
        edit(folder / "config.json", tie_word_embeddings=None)
    edit(folder / "special_tokens_map.json", eos_token={"content": "<|im_end|>", **FLAGS}, pad_token="<|endoftext|>")
    edit(folder / "added_tokens.json", **{"<|im_end|>": 299})
    edit(folder / "tokenizer_config.json", chat_template=None, extra_special_tokens={}, unk_token="<|endoftext|>")
    (folder / "chat_template.jinja").write_text(TEMPLATE, "utf-8")


def by_hand_5(folder: Path) -> None:
    raw = edit(folder / "config.json", model_type="", torch_dtype=None, dtype="bfloat16", use_cache=None)
    kinds = [("full_attention", "sliding_attention")[flag] for flag in raw["sliding_window_layout"]]
    rope = {"rope_theta": raw["rope_theta"], "rope_type": "default"}
    edit(
        folder / "config.json", rope_theta=None, rope_parameters=rope, layer_types=kinds, attention_bias=False,
        sliding_window=raw["sliding_window_size"], sliding_window_pattern=raw["sliding_window_layout"],
        id2label={"0": "LABEL_0", "1": "LABEL_1"}, label2id={"LABEL_0": 0, "LABEL_1": 1}, is_decoder=False,
    )  # fmt: skip
    edit(
        folder / "tokenizer_config.json", added_tokens_decoder=None, additional_special_tokens=None, add_bos_token=None,
        extra_special_tokens=["<|im_start|>", "<|im_end|>"], backend="tokenizers", is_local=True, chat_template=None,
    )  # fmt: skip
    (folder / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    tokenizer = edit(folder / "tokenizer.json")
    tokenizer["pre_tokenizer"]["pretokenizers"][1]["trim_offsets"] = True
    tokenizer["decoder"] |= {"add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def after_training(folder: Path) -> None:
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 8}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 298}
    padding |= {"pad_type_id": 0, "pad_token": "<|endoftext|>"}
    edit(folder / "tokenizer.json", truncation=truncation, padding=padding)
    edit(folder / "tokenizer_config.json", padding_side="left", truncation_side="left", model_max_length=4)
    edit(folder / "config.json", use_cache=False, gradient_checkpointing=True, output_router_logits=True)
    edit(folder / "generation_config.json", max_length=20, num_beams=4, use_cache=False, repetition_penalty=1.3)


def with_ends_elsewhere(folder: Path) -> None:
    edit(folder / "config.json", eos_token_id=298)
    edit(folder / "generation_config.json", eos_token_id=[299, 298])


def with_named_templates(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", chat_template=[{"name": "default", "template": TEMPLATE}])


def with_a_processor_s_template(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", chat_template=None)
    edit(folder / "chat_template.json", chat_template=TEMPLATE)


def with_a_template_among_others(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", chat_template="an older one")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "default.jinja").write_text(TEMPLATE, "utf-8")


@pytest.mark.parametrize(
    "change",
    [
        by_hand_4, by_hand_5, after_training, with_ends_elsewhere, with_named_templates, with_a_processor_s_template,
        with_a_template_among_others,
    ],
)  # fmt: skip
def test_what_a_library_adds_moves_or_leaves_out_changes_nothing(
    published: Path, again: Path, tmp_path: Path, change: Change
) -> None:
    change(again)
    assert_same_store(published, again, tmp_path)


NEW = {"__type": "AddedToken", "content": "<new>", **FLAGS}


@pytest.mark.parametrize(
    "tokens",
    [
        {"added_tokens_decoder": {"300": {**NEW, "special": False}, "298": {"content": "<|endoftext|>", **FLAGS}}},
        {"added_tokens_decoder": {"301": {**NEW, "special": True}, "300": {**NEW, "content": "<x>", "special": True}}},
        {"additional_special_tokens": ["<new>", "<|im_start|>"]},
        {"extra_special_tokens": ["<new>", {**NEW, "content": "<x>", "lstrip": True}]},
        {"extra_special_tokens": {"image_token": "<new>"}},
        {"model_specific_special_tokens": {"image_token": "<new>"}, "bos_token": {**NEW, "content": "<x>"}},
    ],
)
def test_tokens_that_only_the_tokenizer_s_configuration_has_are_those_of_transformers(
    again: Path, tmp_path: Path, tokens: dict[str, Any]
) -> None:
    from transformers import AutoTokenizer

    edit(again / "config.json", vocab_size=400)
    # the library's plain class, which keeps tokenizer.json as it is
    edit(again / "tokenizer_config.json", additional_special_tokens=None, tokenizer_class="PreTrainedTokenizerFast")
    edit(again / "tokenizer_config.json", **tokens)
    for name, content in settings_files(again, read_config(again)).items():
        (tmp_path / name).write_bytes(content)
    ours, theirs = Tokenizer(tmp_path, 400), AutoTokenizer.from_pretrained(again)
    text = "a <new> b<x><|im_start|>c <|im_end|>"
    assert ours.encode(text, special_tokens=True) == theirs.encode(text)
    assert ours.decode(ours.encode(text, special_tokens=True)) == theirs.decode(
        theirs.encode(text), skip_special_tokens=True
    )
    assert set(ours.encode("<new>", special_tokens=True)) == {theirs.convert_tokens_to_ids("<new>")}


@pytest.mark.parametrize(
    ("file", "changes", "match"),
    [
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"7": NEW}},
            "added_tokens_decoder: expected the id of '<new>'",
        ),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": NEW}}, "added_tokens_decoder: expected ids and obj"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"7": {**NEW, "special": 1}}}, "true or false for"),
        ("tokenizer_config.json", {"eos_token": 7}, "eos_token: expected a token, found 7"),
        ("tokenizer_config.json", {"extra_special_tokens": "<x>"}, "extra_special_tokens: expected a list"),
        ("tokenizer_config.json", {"chat_template": [7]}, "chat_template: expected a text, or a list"),
        ("generation_config.json", {"eos_token_id": 300}, "eos_token_id: 300 is outside the vocabulary of 300"),
        ("generation_config.json", {"eos_token_id": "end"}, "eos_token_id: expected a token id"),
        ("tokenizer.json", {"model": 3}, "the tokenizers library can load"),
        ("config.json", {"vocab_size": 288}, "config.json: eos_token_id: 298 is outside"),
    ],
)
def test_settings_that_contradict_are_one_line_with_file_and_key(
    again: Path, file: str, changes: dict[str, Any], match: str
) -> None:
    edit(again / file, **changes)
    with pytest.raises((CheckpointError, ConfigError), match=match) as refused:
        settings_files(again, read_config(again))
    assert file in str(refused.value) and str(refused.value).isprintable() and len(str(refused.value)) < 400


@pytest.mark.parametrize("file", sorted({*SETTINGS_FILES, INDEX_FILE} - {"chat_template.jinja"}))
@pytest.mark.parametrize(
    "text", ["1" * 5000, f'{{"eos_token_id": {10**400}}}', '{"a":' * 9999, '{"a": 1, "a": 2}', "[NaN]", "[]", "\udcff"]
)
def test_json_that_says_no_one_thing_is_one_line_with_the_file(again: Path, file: str, text: str) -> None:
    edit(again / "tokenizer_config.json", added_tokens_decoder=None, chat_template=None)  # else some files don't count
    (again / file).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises((CheckpointError, ConfigError), match=file.replace(".", r"\.")) as refused:
        Checkpoint(again).small_files()
    assert str(refused.value).isprintable() and len(str(refused.value)) < 400


KEYS = (
    "added_tokens_decoder", "additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens",
    "eos_token", "pad_token", "chat_template", "tokenizer_class", "add_bos_token", "padding_side", "model_max_length",
)  # fmt: skip
TOKENS = st.sampled_from(["<|im_end|>", "<new>", "", "default", "Qwen2Tokenizer", "a", "\ud800", "\x1b[2J"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TOKENS | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["content", "special", "lstrip", "name", "template", "259", "7"]), inner)
    ),
    max_leaves=6,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    file=st.sampled_from(["tokenizer_config.json", "generation_config.json", "special_tokens_map.json"]),
    key=st.sampled_from(KEYS) | st.just("eos_token_id"),
    value=JSON,
)
def test_any_value_of_any_setting_makes_a_whole_store_s_files_or_is_one_line(
    published: Path, again: Path, file: str, key: str, value: Any
) -> None:
    for name in ("tokenizer_config.json", "generation_config.json"):
        (again / name).write_bytes((published / name).read_bytes())
    (again / "special_tokens_map.json").unlink(missing_ok=True)
    path = again / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | {key: value}))
    error, files = "", {}
    try:
        files = settings_files(again, read_config(again))
    except (CheckpointError, ConfigError) as e:
        error = str(e)
    assert len(error) < 400 and error.isprintable()
    out = again / "out"
    out.mkdir(exist_ok=True)
    for name, content in files.items():
        (out / name).write_bytes(content)
    if files:
        assert Tokenizer(out, 300).encode("plain text") == Tokenizer(published, 300).encode("plain text")
        assert read_model(out / "config.json", in_store=True) == read_config(again)


def test_other_templates_are_kept_by_name(again: Path) -> None:
    (again / "additional_chat_templates").mkdir()
    (again / "additional_chat_templates" / "tool_use.jinja").write_text("tools", "utf-8")
    (again / "chat_template.jinja").write_text("plain", "utf-8")
    kept = json.loads(settings_files(again, read_config(again))["tokenizer_config.json"])["chat_template"]
    assert kept == [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]


@pytest.mark.parametrize("template", [5, True, 0.5])
def test_a_chat_template_that_is_a_number_is_refused(tmp_path: Path, template: object) -> None:
    for name, content in byte_tokenizer_files(tiny_config()).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(CheckpointError, match="chat_template: expected a text, or a list of names"):
        settings_files(tmp_path, tiny_config())
