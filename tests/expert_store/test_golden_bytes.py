"""Format stability: bytes that were written once must be read, and written, the same for ever.

tests/vectors/packing.safetensors: float32 weights [20, 64] and their packed bytes in every layout and quantisation.
tests/vectors/golden_store: a whole store. To be made again only with a new format version: see `make_vectors`; or, of a
format whose levels are searched, with another search. Then old bytes are read as before, as the demo model's are.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from smallthinker import _kernels
from smallthinker.expert_store import writer
from smallthinker.expert_store.format import Layout, Quant
from smallthinker.expert_store.store import Store
from smallthinker.expert_store.synthetic.synth import synth

VECTORS = Path(__file__).parent.parent / "vectors"
GOLDEN = VECTORS / "golden_store"
PACKING = VECTORS / "packing.safetensors"
QUANTS: tuple[Quant, ...] = ("q4_0", "q8_0", "bf16", "f16", "f32")
CASES = [(quant, layout) for quant in QUANTS for layout in ("tiles", "rows")]


def make_vectors() -> None:
    weights = np.random.default_rng(7).standard_normal((20, 64)).astype(np.float32)
    weights[3] = 0
    packed = {f"{quant}.{layout}": _kernels.pack(quant, layout, weights) for quant, layout in CASES}  # type: ignore[arg-type]
    save_file({"weights": weights, **packed}, PACKING)
    writer.installed_version = lambda: "golden"
    synth(str(VECTORS / "golden_config.json"), GOLDEN, "q4_0", force=True)


def decode(quant: Quant, layout: Layout, data: npt.NDArray[np.uint8], rows: int, cols: int) -> npt.NDArray[np.float64]:
    """docs/format.md, word by word: slow, and sharing nothing with the kernels."""
    weights = np.zeros((rows, cols))
    raw = data.tobytes()

    def f16(offset: int) -> float:
        return float(np.frombuffer(raw, "<f2", 1, offset)[0])

    for row in range(rows):
        for col in range(cols):
            block, i = divmod(col, 32)
            if quant in ("bf16", "f16", "f32"):
                index = (row // 16 * cols + col) * 16 + row % 16 if layout == "tiles" else row * cols + col
                if quant == "bf16":  # the upper half of an f32
                    weights[row, col] = np.frombuffer(bytes(2) + raw[2 * index : 2 * index + 2], "<f4")[0]
                else:
                    weights[row, col] = np.frombuffer(raw, "<f2" if quant == "f16" else "<f4")[index]
            elif layout == "tiles":
                start = (row // 16 * (cols // 32) + block) * (288 if quant == "q4_0" else 544)
                scale, vectors, r = f16(start + 2 * (row % 16)), start + 32, row % 16
                if quant == "q4_0":
                    byte = raw[vectors + i % 16 // 4 * 64 + 4 * r + i % 4]
                    weights[row, col] = scale * ((byte & 15 if i < 16 else byte >> 4) - 8)
                else:
                    weights[row, col] = scale * (raw[vectors + i // 4 * 64 + 4 * r + i % 4] - 128)
            elif quant == "q4_0":
                start = row * (cols // 2 + cols // 16)
                byte = raw[start + block * 16 + i % 16]
                scale = f16(start + cols // 2 + 2 * block)
                weights[row, col] = scale * ((byte & 15 if i < 16 else byte >> 4) - 8)
            else:
                start = row * (cols + cols // 16)
                byte = raw[start + col]
                weights[row, col] = f16(start + cols + 2 * block) * (byte - 256 if byte > 127 else byte)
    return weights


@pytest.mark.parametrize(("quant", "layout"), CASES)
def test_packed_bytes_are_those_of_the_vectors(quant: Quant, layout: Layout) -> None:
    vectors = load_file(PACKING)
    packed = _kernels.pack(quant, layout, vectors["weights"])
    assert packed.tobytes() == vectors[f"{quant}.{layout}"].tobytes()


@pytest.mark.parametrize(("quant", "layout"), CASES)
def test_a_decoder_written_from_the_documentation_agrees_with_the_kernels(quant: Quant, layout: Layout) -> None:
    data = load_file(PACKING)[f"{quant}.{layout}"]
    assert np.array_equal(_kernels.unpack(quant, layout, data, 20, 64), decode(quant, layout, data, 20, 64))


def test_the_golden_store_opens_and_verifies() -> None:
    with Store.open(GOLDEN) as store:
        store.verify()
        assert (store.quant, store.num_experts, store.record_bytes) == ("q4_0", 4, 4096)


def test_a_new_store_has_the_bytes_of_the_golden_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = Store.open(GOLDEN).dense_file.engine_version
    monkeypatch.setattr(writer, "installed_version", lambda: version)
    store = synth(str(VECTORS / "golden_config.json"), tmp_path / "store", "q4_0")
    for file in GOLDEN.iterdir():
        assert (store / file.name).read_bytes() == file.read_bytes(), file.name


def test_the_worked_example_of_the_documentation_is_true() -> None:
    config = json.loads((VECTORS / "golden_config.json").read_text())
    assert (config["hidden_size"], config["moe_ffn_hidden_size"]) == (32, 32)
    raw = (GOLDEN / "experts.safetensors").read_bytes()
    assert int.from_bytes(raw[:8], "little") == 4088
    assert len(raw) == 5 * 4096
    assert raw[4096:4100].hex(" ") == "54 28 54 28"
    assert raw[4128:4136].hex(" ") == "fa d9 b6 31 ae 88 17 46"
    assert raw[4672:4677].hex(" ") + raw[4688:4690].hex(" ") == "13 af f3 bb 42" + "54 28"
    assert raw[5248:5252].hex(" ") + raw[5264:5266].hex(" ") == "97 75 1b 8f" + "54 2c"
    gate = _kernels.unpack("q4_0", "tiles", np.frombuffer(raw, np.uint8, 576, 4096).copy(), 32, 32)
    up = _kernels.unpack("q4_0", "rows", np.frombuffer(raw, np.uint8, 576, 4672).copy(), 32, 32)
    assert gate[0, [0, 16, 3]].tolist() == [0.067626953125, 0.2366943359375, -0.2366943359375]
    assert up[0, [0, 16]].tolist() == [-0.1690673828125, -0.2366943359375]
    layout = Store.open(GOLDEN).record_layouts[0]
    assert layout is not None
    assert ([section.offset for section in layout.sections], layout.content_bytes) == ([0, 576, 1152], 1728)


if __name__ == "__main__":
    make_vectors()
