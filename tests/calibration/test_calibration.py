"""Calibrating: what is learned is better on text it hasn't seen, and nothing is written that isn't."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from smallthinker.calibration import calibrate as calibration
from smallthinker.cli import main
from smallthinker.engine import Engine
from smallthinker.errors import RequestError, StoreWriteError
from smallthinker.expert_store.format import PREDICTOR_FILE
from smallthinker.llm import DEMO_STORE

pytest.importorskip("torch", reason="torch, the extra smallthinker[torch], isn't installed")

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO_STORE, tmp_path / "demo"))


def text() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md")))


def test_guesses_of_held_out_text_become_better_and_outputs_stay(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from smallthinker.calibration import training

    monkeypatch.setattr(training, "STEPS", 100)  # the rest gains little more
    tokens = list(range(40, 80))

    def logits() -> np.ndarray:
        with Engine(demo, max_slots=40, context=128) as engine:
            engine.prefill(tokens[:8])
            return np.stack([engine.decode(token) for token in tokens[8:]])

    before = logits()
    file = tmp_path / "text.txt"
    file.write_text(text(), encoding="utf-8")
    assert main(["calibrate", str(demo), "--text", str(file), "--tokens", "1500", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["tokens"] == 1500 and facts["held_out"] == 300
    assert Path(facts["file"]).stat().st_size == facts["file_bytes"]
    for name in ("the next token's first layer", "the next layer"):
        assert facts["right"][name]["after"] > facts["right"][name]["before"], name
    assert np.array_equal(before, logits())
    assert main(["calibrate", str(demo), "--text", str(file)]) == 2
    assert "exists already; --force" in capsys.readouterr().err


def test_a_predictor_that_is_no_better_is_not_written(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from smallthinker.calibration import training

    monkeypatch.setattr(training.Source, "learn", lambda self, router, *_, **__: training.Learned(router, 0.5, 0.5))
    result = calibration.calibrate(demo, text(), tokens=300)
    assert result.file is None and "nothing was written" in result.text()
    assert sorted(p.name for p in demo.iterdir()) == sorted(p.name for p in DEMO_STORE.iterdir())


def test_without_torch_one_line_says_which_extra(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"smallthinker\[torch\]"):
        calibration.calibrate(demo, text())


def test_too_little_text_is_refused(demo: Path) -> None:
    with pytest.raises(RequestError, match="at least 256 tokens, found"):
        calibration.calibrate(demo, "short")
    with pytest.raises(RequestError, match="--tokens: expected at least 256, found 3"):
        calibration.calibrate(demo, text(), tokens=3)


def test_an_existing_predictor_is_kept_without_force(demo: Path) -> None:
    (demo / PREDICTOR_FILE).write_bytes(b"x")
    with pytest.raises(StoreWriteError, match="--force"):
        calibration.calibrate(demo, text(), tokens=300)
    assert (demo / PREDICTOR_FILE).read_bytes() == b"x"
