"""A GGUF file run where it lies: the same records, weights and outputs as of a store, at any budget."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from family_checkpoints import make_checkpoint
from gguf_families import ARCHITECTURES, write
from gguf_files import rounded_checkpoint, write_gguf
from reading import read_all
from tiny_models import make_store, tiny_config

from smallthinker import host
from smallthinker.cli import main
from smallthinker.engine import Engine
from smallthinker.errors import CheckpointError, ConfigError, RequestError, StoreReadError
from smallthinker.expert_store import gguf_store
from smallthinker.expert_store.convert import convert
from smallthinker.expert_store.format import Formats
from smallthinker.expert_store.gguf_store import GgufStore
from smallthinker.expert_store.inspect import describe
from smallthinker.expert_store.sources import gguf_checkpoint
from smallthinker.expert_store.store import Store
from smallthinker.llm import LLM
from smallthinker.memory_plan import MIB
from smallthinker.prediction.needs import Process, find_model, memory_plan
from smallthinker.text import packed_vocabulary
from smallthinker.text.tokenizer import Tokenizer

PROMPT = list(b"the sea came in and")


pytestmark = pytest.mark.filterwarnings("ignore:.*GGUF can't say more")


def tiny_file(folder: Path, kind: str, *, transposed: bool = False, **overrides: Any) -> Path:
    """A GGUF file of a random SmallThinker, whose weights are rounded to the kind; its checkpoint lies beside it."""
    make_store(tiny_config(**overrides), folder)
    rounded_checkpoint(folder / "checkpoint", kind, transposed_down=transposed)
    return write_gguf(folder / "checkpoint", folder / "tiny.gguf", kind, transposed_down=transposed)


def logits(path: Path, **options: Any) -> list[np.ndarray]:
    with Engine(path, **options) as engine:
        return [engine.prefill(PROMPT)[0], *(engine.decode(token) for token in b"went out again")]


def assert_same_bits(found: list[np.ndarray], expected: list[np.ndarray], what: object = None) -> None:
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.view(np.uint32), other.view(np.uint32)), what


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_records_and_dense_weights_are_those_of_a_store_made_of_the_file(kind: str, tmp_path: Path) -> None:
    path = tiny_file(tmp_path, kind, transposed=True)
    with Store.open(convert(path, tmp_path / "converted", kind.lower())) as store, Store.open(path) as found:
        assert isinstance(found, GgufStore) and found.formats == store.formats
        assert found.dense_bytes == store.dense_bytes and found.on_disk_bytes <= store.on_disk_bytes
        expected = read_all(store)
        for reader in ("buffered", "direct", "mmap"):
            assert read_all(found, reader) == expected
        alone = {name: found.dense(name).copy() for name in found.dense_names()}
        found.load_dense()
        for name in store.dense_names():
            assert np.array_equal(found.dense(name), store.dense(name)), name
            assert np.array_equal(alone[name], store.dense(name)), name
        assert found.router_checksums() == store.router_checksums()
        assert found.records(4096).record_bytes == store.record_bytes
        assert describe(found)["bits_per_parameter"] == describe(store)["bits_per_parameter"]


def test_loading_and_reading_experts_leave_nothing_of_the_file_in_the_page_cache(tmp_path: Path) -> None:
    path = tiny_file(tmp_path, "Q4_0", hidden_size=256, moe_ffn_hidden_size=512)
    with path.open("rb") as file:
        whole = (file.fileno(), 0, path.stat().st_size)
        os.fsync(file.fileno())
        host.drop_file_cache(*whole)
        if host.cached_pages(*whole) != 0:
            pytest.skip("pages of this folder's files can't be dropped, or not be counted")
        with Store.open(path) as store:
            store.load_dense()
            assert host.cached_pages(*whole) == 0
            edges = 2 * 3 * store.num_experts  # slices begin and end within pages
            for reader in ("buffered", "mmap", "direct"):
                read_all(store, reader)  # two reads at once may keep the page that they share
                assert host.cached_pages(*whole) < edges // 4, reader
                host.drop_file_cache(*whole)


@pytest.mark.parametrize("chunk_bytes", [4096, 5000, 1 << 20])
def test_pieces_of_any_size_make_the_same_records(chunk_bytes: int, tmp_path: Path) -> None:
    path = tiny_file(tmp_path, "Q4_0", hidden_size=96, moe_ffn_hidden_size=224)
    with Store.open(path) as store:
        expected = read_all(store)
        records = store.records(chunk_bytes)
        assert records.max_piece_bytes <= max(1.5 * chunk_bytes, 16 * 224 * 18 / 32)
        store.records = lambda _: records  # type: ignore[method-assign]
        assert read_all(store) == expected


@pytest.mark.parametrize("transposed", [False, True])
def test_outputs_are_the_same_bits_at_any_budget_and_with_any_reader(transposed: bool, tmp_path: Path) -> None:
    path = tiny_file(tmp_path, "Q8_0", transposed=transposed)
    with Store.open(path) as store:
        assert store.formats.whole is not transposed
        everything, floor = store.num_experts, store.config.experts_per_token
    baseline = logits(path, max_slots=everything, threads=1)
    for slots in (everything // 2, floor):
        for reader in ("direct", "mmap", "buffered"):
            options = {"max_slots": slots, "reader": reader, "threads": 2, "chunk": 7}
            assert_same_bits(logits(path, **options), baseline, options)
    assert_same_bits(logits(path, max_slots=floor, storage="emmc"), baseline)
    if transposed:  # llama.cpp's order of `down` has another kernel behind a ReLU gate
        assert_same_bits(logits(convert(path, tmp_path / "converted", "q8_0")), baseline)


@pytest.mark.parametrize(
    "name", ["smollm2", "mixtral whole", "gpt_oss limits as published", "phi3", "gemma3 scaled as heads", "glm4_moe"]
)
def test_families_run_where_they_lie_as_from_a_store(name: str, tmp_path: Path) -> None:
    """Experts with biases, dense networks whole and in slices, rows that rotary positions moved, joined matrices."""
    folder = make_checkpoint(name, tmp_path / "checkpoint").folder
    path = write(folder, tmp_path / "tiny.gguf", ARCHITECTURES[name], "Q8_0")
    with Store.open(path) as store:
        floor = store.config.experts_per_token
        sliced = {layer.ffn.slices for layer in store.config.layers if layer.ffn and layer.ffn.router is None}
        only_dense = len(store.config.certain_layers) == store.config.num_layers
        assert not only_dense or sliced == {1}
    found = logits(path, max_slots=floor)
    assert_same_bits(logits(path), found)
    if not only_dense:  # sums of slices are rounded otherwise than that of a whole network
        assert_same_bits(logits(convert(path, tmp_path / "converted", "q8_0")), found)


def test_each_matrix_may_have_its_own_type(tmp_path: Path) -> None:
    folder = make_checkpoint("qwen3_moe", tmp_path / "checkpoint").folder
    plain = gguf.GGUFReader(write(folder, tmp_path / "plain.gguf", gguf.MODEL_ARCH.QWEN3MOE, "F32"))
    raw: dict[str, Any] = {}
    for name, kind in (("blk.1.ffn_down_exps", "Q4_0"), ("blk.0.ffn_up_exps", "F16"), ("token_embd", "BF16")):
        tensor = next(tensor for tensor in plain.tensors if tensor.name == f"{name}.weight")
        qtype = gguf.GGMLQuantizationType[kind]
        raw[tensor.name] = gguf.quantize(np.array(tensor.data), qtype), qtype
    path = write(folder, tmp_path / "mixed.gguf", gguf.MODEL_ARCH.QWEN3MOE, "Q8_0", raw)
    with Store.open(path) as store:
        others = {"layers.1.down": "q4_0", "layers.0.up": "f16", "embed_tokens": "bf16"}
        assert (store.quant, store.formats.others) == ("q8_0", others)
        formats, floor = Formats("q8_0", dict(store.formats.others)), store.config.experts_per_token
    expected = logits(convert(path, tmp_path / "converted", formats))
    assert_same_bits(logits(path), expected)
    assert_same_bits(logits(path, max_slots=floor), expected)


def test_experts_in_k_quants_of_two_kinds_give_the_same_bits_at_any_budget(tmp_path: Path) -> None:
    """As llama.cpp's files of the kind Q4_K_M have them: Q6_K for some of the matrices."""
    tiny_file(tmp_path, "Q8_0", hidden_size=256, moe_ffn_hidden_size=256)
    random, raw = np.random.default_rng(0), dict[str, Any]()
    for tensor in gguf.GGUFReader(tmp_path / "tiny.gguf").tensors:
        if "_exps" in tensor.name:
            kind = gguf.GGMLQuantizationType["Q6_K" if "down" in tensor.name else "Q4_K"]
            rows = tuple(int(size) for size in tensor.shape[:0:-1])
            blocks = random.integers(0, 256, (*rows, 1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
            scales = np.s_[-2:] if kind.name == "Q6_K" else np.s_[:4]
            blocks[..., scales] = np.full(blocks[..., scales].shape[-1] // 2, 0.002, np.float16).view(np.uint8)
            raw[tensor.name] = blocks.reshape(*rows, -1), kind
    path = write_gguf(tmp_path / "checkpoint", tmp_path / "k.gguf", "Q8_0", tensors=raw)
    with Store.open(path) as store:
        assert store.formats.of_experts(1) == ("q4_k", "q4_k", "q6_k") and store.formats.of("q_proj", 0) == "q8_0"
        floor = store.config.experts_per_token
    expected = logits(path)
    assert np.isfinite(expected).all()
    assert_same_bits(logits(path, max_slots=floor), expected)


def test_a_model_in_parts_is_read_from_all_of_them(tmp_path: Path) -> None:
    whole = tiny_file(tmp_path, "Q4_0", transposed=True)
    parts = write_gguf(tmp_path / "checkpoint", tmp_path / "p.gguf", "Q4_0", transposed_down=True, part_tensors=5)
    with Store.open(whole) as one, Store.open(parts) as many:
        assert len(many.weight_files) > 2
        assert read_all(many) == read_all(one)
    assert_same_bits(logits(parts, max_slots=8), logits(whole))
    many.weight_files[1].unlink()
    with pytest.raises(CheckpointError, match="belong side by side"):
        Store.open(parts)


def test_nothing_is_written_beside_a_file_and_a_read_only_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_file(tmp_path / "models", "Q8_0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = sorted((tmp_path / "models").iterdir())
    path.chmod(0o444)
    path.parent.chmod(0o555)
    try:
        with LLM(path, memory=None) as llm:
            assert llm.generate("hello", max_tokens=4, ignore_eos=True).stats
        with Store.open(path) as store:
            assert store.write_hint("hint", b"what was learned")
            assert store.hint_path("hint").read_bytes() == b"what was learned"
            assert store.hint_path("hint").is_relative_to(tmp_path / "cache" / "smallthinker")
            monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
            assert not store.write_hint("hint", b"what was learned")
    finally:
        path.parent.chmod(0o755)
    assert sorted((tmp_path / "models").iterdir()) == before


def test_chat_takes_the_files_own_template_and_the_tokenizer_can_be_asked_for_again(tmp_path: Path) -> None:
    path = tiny_file(tmp_path, "Q8_0")
    with LLM(path) as llm:
        assert llm.tokenizer.render_chat([{"role": "user", "content": "hello"}]) == "user: hello\nassistant:"
    with Store.open(path) as store:
        assert store.small_files.read("tokenizer.json") == store.small_files.read("tokenizer.json")
        with pytest.raises(FileNotFoundError):
            store.small_files.read("nothing.json")


def test_a_file_that_was_cut_short_after_it_was_opened_is_one_line(tmp_path: Path) -> None:
    path = tiny_file(tmp_path, "Q8_0")
    with Engine(path, max_slots=8) as engine:
        os.truncate(path, path.stat().st_size - 100_000)
        with pytest.raises(StoreReadError, match=rf"{path}: byte \d+: "):
            engine.prefill(PROMPT)
    with pytest.raises(CheckpointError, match="a file of"):
        Store.open(path)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16"])
@pytest.mark.parametrize("matrix", ["ffn_up_exps", "ffn_down_exps"])
def test_an_experts_scale_that_is_not_finite_is_refused_when_it_is_read(kind: str, matrix: str, tmp_path: Path) -> None:
    path = tiny_file(tmp_path, kind, transposed=matrix == "ffn_down_exps")
    with closing(GgufStore(path)) as store:
        at = next(
            f.tensor.start for f in store._source.model.places.values() if f.tensor.name == f"blk.1.{matrix}.weight"
        )
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\x00\x7c")
    with (
        pytest.raises(
            StoreReadError,
            match=rf"{path}: byte {at}: tensor 'blk\.1\.{matrix}\.weight', expert \d+: .*infinity; .*copy",
        ),
        Store.open(path) as damaged,
    ):
        read_all(damaged)


def test_messages_name_the_tensor_of_a_byte_and_none_where_there_is_none(tmp_path: Path) -> None:
    with closing(GgufStore(tiny_file(tmp_path, "Q4_0"))) as store:
        name_at = store.records(4096).name_at
        assert name_at is not None
        tensor = store._source.model.places["layers.1.gate.0"].tensor
        assert name_at(0, tensor.start) == f"tensor '{tensor.name}', expert 0: "
        assert name_at(0, tensor.start + tensor.nbytes - 1) == f"tensor '{tensor.name}', expert {tensor.shape[0] - 1}: "
        assert name_at(0, 0) == ""  # of the header: a read begins on a block, before its tensor


def test_a_dense_scale_that_is_not_finite_is_refused_while_it_loads(tmp_path: Path) -> None:
    path = tiny_file(tmp_path, "Q8_0")
    with closing(GgufStore(path)) as store:
        at = next(f.tensor.start for f in store._source.model.places.values() if "attn_q" in f.tensor.name)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\x00\x7e")
    with pytest.raises(StoreReadError, match=r"tensor '.*': expected finite scales .*copy or download it again"):
        Engine(path)


def test_types_that_no_kernel_reads_are_refused_with_their_tensor(tmp_path: Path) -> None:
    folder = make_checkpoint("wide", tmp_path / "checkpoint").folder
    blocks = np.zeros((64, 2 * 66), np.uint8), gguf.GGMLQuantizationType.IQ2_XXS
    path = write(folder, tmp_path / "tiny.gguf", gguf.MODEL_ARCH.LLAMA, "Q8_0", {"blk.0.ffn_down.weight": blocks})
    with pytest.raises(ConfigError, match=r"'blk\.0\.ffn_down\.weight': expected one of the types .*, found IQ2_XXS;"):
        Store.open(path)
    with closing(GgufStore(tiny_file(tmp_path / "other", "Q4_0"))) as store:
        assert store.on_disk_bytes > 0


def test_the_floor_that_is_named_works(tmp_path: Path) -> None:
    path = tiny_file(tmp_path, "Q8_0")
    with pytest.raises(Exception, match="below the floor of") as refused:
        Engine(path, memory=MIB)
    with Engine(path, memory=refused.value.floor_bytes) as engine:
        assert engine.plan.io_bytes >= 4 * engine.store.records(engine.disk_profile.chunk_bytes).max_piece_bytes
        engine.prefill(PROMPT)


def test_a_plan_is_the_one_that_the_engine_makes_and_notes_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_file(tmp_path, "Q8_0")
    monkeypatch.setattr(host, "resident_bytes", lambda: 50 * MIB)  # else each process holds something else
    monkeypatch.setattr(host, "peak_memory_bytes", lambda: 50 * MIB)
    with Engine(path, memory=200 * MIB, context=64) as engine:
        process = Process(64, "f16", engine.plan.io_bytes, 50 * MIB)
        assert memory_plan(find_model(str(path)), process, 200 * MIB) == engine.plan
    with pytest.raises(RequestError, match="most of this file is q8_0, found q4_0"):
        find_model(str(path), "q4_0")
    monkeypatch.undo()
    assert main(["run", "-m", str(path), "hello", "--max-tokens", "2"]) == 0
    assert f"note: {path}: smallthinker.attention.sliding_window" in capsys.readouterr().err
    assert main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "GGUF"
    assert main(["verify", str(path)]) == 0
    assert f"later reads are compared with {path}.checksums" in capsys.readouterr().out


def test_a_command_s_first_word_may_be_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_file(tmp_path, "F16")
    options = ["--max-tokens", "4", "--seed", "1"]
    assert main(["run", "-m", str(path), "hello", *options]) == 0
    expected = capsys.readouterr().out
    assert main(["run", str(path), "hello", *options]) == 0
    assert capsys.readouterr().out == expected
    assert main(["run", str(path), *options, "hello"]) == 0  # as in the README: options between them
    assert capsys.readouterr().out == expected
    with pytest.raises(SystemExit, match="2"):
        main(["run", str(path), *options, "hello", "--no-such"])
    assert "--no-such: no such option" in capsys.readouterr().err
    assert main(["plan", str(tmp_path / "none.gguf")]) == 2
    assert "none.gguf: nothing is there; give" in capsys.readouterr().err
    assert main(["run", str(tmp_path / "none.gguf"), "hello"]) == 2
    assert "none.gguf: nothing is there" in capsys.readouterr().err
    assert main(["chat", str(path), "-m", str(path)]) == 2
    assert "expected one model" in capsys.readouterr().err


def test_a_plan_counts_what_opening_the_file_keeps_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, held, opened = tiny_file(tmp_path, "F16"), [50 * MIB], Store.open

    def open_and_hold(path: Path) -> Store:
        held[0] = 80 * MIB
        return opened(path)

    monkeypatch.setattr(host, "resident_bytes", lambda: held[0])
    monkeypatch.setattr(Store, "open", open_and_hold)
    assert find_model(str(path)).tokenizer_bytes == 30 * MIB


def test_the_second_start_makes_nothing_of_a_files_words_that_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_store, "_MANY_WORDS", 0)
    monkeypatch.setattr(packed_vocabulary, "LEAST_BYTES", 0)
    path = tiny_file(tmp_path, "Q8_0")
    with Store.open(path) as store:
        first = Tokenizer(store.small_files, store.config.vocab_size, store)
        config, files, facts = store.config, store.small_files, store.hint_path("tokenizer-facts.json")
    monkeypatch.setattr(gguf_checkpoint, "GgufTokenizer", None)
    with Store.open(path) as store:
        second = Tokenizer(store.small_files, store.config.vocab_size, store)
        assert store.config == config
        assert store.small_files.read("tokenizer_config.json") == files.read("tokenizer_config.json")
    text = "the sea <|endoftext|> é\n"
    assert second.encode_with_spans(text) == first.encode_with_spans(text)
    monkeypatch.undo()
    kept = json.loads(facts.read_bytes())
    for bad in ({}, {"facts": {"eos_token_ids": [-1]}}, {"source": "another"}):
        facts.write_text(json.dumps(kept | {key: kept[key] | bad[key] if key == "facts" else bad[key] for key in bad}))
        with Store.open(path) as store:
            assert store.config == config
    for text in ("", "[]", "{}", "null", facts.read_text()[:-1]):
        facts.write_text(text)
        with Store.open(path) as store:
            assert store.config == config
            assert Tokenizer(store.small_files, store.config.vocab_size, store).encode("the sea") == first.encode(
                "the sea"
            )


def test_a_file_that_changed_since_has_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_store, "_MANY_WORDS", 0)
    path = tiny_file(tmp_path, "Q8_0")
    with Store.open(path) as store:
        before = store.config.tokens.eos
        assert store.hint_path("tokenizer-facts.json").exists()
    raw = path.read_bytes()
    at = raw.index(b"tokenizer.ggml.eos_token_id") + len(b"tokenizer.ggml.eos_token_id") + 4
    status = path.stat()
    path.write_bytes(raw[:at] + bytes([5]) + raw[at + 1 :])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with Store.open(path) as store:
        assert 261 in set(store.config.tokens.eos) - set(before)
