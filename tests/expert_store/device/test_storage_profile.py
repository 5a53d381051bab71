"""Profiles of storage devices: the bundled ones, files that say something else, and what they predict."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallthinker.errors import ProfileError
from smallthinker.expert_store.device.storage_profile import (
    BUNDLED,
    StorageProfile,
    load_profile,
    profile_toml,
    save_profile_toml,
)

EMMC = load_profile("emmc")
profiles = st.builds(
    StorageProfile,
    name=st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=64),
    summary=st.just("a disk"),
    scope=st.sampled_from(["class", "device"]),
    sequential_bytes_per_sec=st.floats(1e6, 1e12) | st.integers(10**6, 10**12),
    random_bytes_per_sec=st.floats(1e6, 1e12),
    random_iops=st.floats(1, 1e8),
    latency_sec=st.floats(1e-7, 1),
    queue_depth=st.integers(1, 1024),
    source=st.just("made up"),
)


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_profile_says_its_name_and_that_it_is_a_class_with_a_source(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.scope == "class" and "not one device" in profile.source


def test_the_bundled_profiles_are_in_the_order_that_their_devices_are_known_for() -> None:
    by_speed = sorted(BUNDLED, key=lambda name: -load_profile(name).bytes_per_sec(512 << 10, 4))
    assert by_speed == ["nvme", "ufs", "sata-ssd", "emmc", "sd-card", "hdd"]


@given(profiles)
def test_a_written_profile_is_read_back_as_it_was(profile: StorageProfile) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        save_profile_toml(profile, Path(folder) / "disk.toml")
        assert load_profile(Path(folder) / "disk.toml") == profile
        assert [path.name for path in Path(folder).iterdir()] == ["disk.toml"]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("latency_sec", '"fast"', "number from"),
        ("latency_sec", "nan", "number from"),
        ("latency_sec", "inf", "number from"),
        ("latency_sec", "-1e-3", "number from"),
        ("latency_sec", "true", "number from"),
        ("latency_sec", "1" + "0" * 400, "number from"),
        ("queue_depth", "1" + "0" * 400, "whole number"),
        ("random_iops", "0", "number from"),
        ("sequential_bytes_per_sec", "1e300", "number from"),
        ("random_bytes_per_sec", "999", "number from"),
        ("queue_depth", "0", "whole number"),
        ("queue_depth", "2.0", "whole number"),
        ("queue_depth", "1025", "whole number"),
        ("scope", '"mine"', "class, device"),
        ("name", '""', "characters"),
        ("name", '"two\\nlines"', "characters"),
        ("name", "7", "characters"),
        ("source", '"' + "x" * 3000 + '"', "characters"),
        ("colour", "7", "unknown key"),
    ],
)
def test_a_wrong_value_is_one_line_with_file_key_expected_and_found(
    tmp_path: Path, key: str, value: str, expected: str
) -> None:
    lines = [line for line in profile_toml(EMMC).splitlines() if not line.startswith(f"{key} =")]
    path = tmp_path / "bad.toml"
    path.write_text("\n".join([*lines, f"{key} = {value}"]))
    with pytest.raises(ProfileError) as raised:
        load_profile(path)
    text = str(raised.value)
    assert "\n" not in text and len(text) < 500
    for part in (str(path), key, expected, "smallthinker probe"):
        assert part in text


@pytest.mark.parametrize(
    "content", [b"", b"name = ", b"\xff\xfe", b"[" * 5000, b"a." * 5000 + b"b = 1", b"x" * (65 << 10)]
)
def test_what_is_no_profile_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ProfileError, match=r"bad\.toml") as raised:
        load_profile(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["emc", "", "no/such.toml", "\0"])
def test_an_unknown_name_is_told_the_known_ones(name: str) -> None:
    with pytest.raises(ProfileError) as raised:
        load_profile(name)
    assert all(known in str(raised.value) for known in BUNDLED)


def test_a_file_of_a_bundled_name_is_meant_by_a_path_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_profile_toml(replace(EMMC, name="own"), "emmc")
    assert load_profile("emmc") == EMMC
    assert load_profile(Path("emmc")).name == load_profile("./emmc").name == "own"


def test_a_profile_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="cannot write"):
        save_profile_toml(EMMC, tmp_path / "no" / "such.toml")


@given(profiles, st.integers(1, 1 << 24), st.integers(1, 64))
def test_a_prediction_respects_every_limit_and_more_or_larger_reads_are_no_slower(
    profile: StorageProfile, nbytes: int, depth: int
) -> None:
    speed = profile.bytes_per_sec(nbytes, depth)
    assert 0 < speed <= profile.random_bytes_per_sec
    assert speed / nbytes <= profile.random_iops * (1 + 1e-9)
    assert speed <= profile.bytes_per_sec(nbytes, depth + 1)
    assert speed <= profile.bytes_per_sec(2 * nbytes, depth) * (1 + 1e-9)
    assert math.isclose(profile.read_sec(nbytes, nbytes), nbytes / profile.bytes_per_sec(nbytes), rel_tol=1e-9)


def test_predictions_are_the_figures_of_the_data_sheets() -> None:
    nvme, card = load_profile("nvme"), load_profile("sd-card")
    assert nvme.bytes_per_sec(4096, 1) / 4096 == pytest.approx(19_000, rel=0.02)
    assert nvme.bytes_per_sec(4096, 32) / 4096 == pytest.approx(600_000, rel=0.02)
    assert card.bytes_per_sec(4096, 1) / 4096 == pytest.approx(1_500, rel=0.02)
    assert card.sequential_sec(90_000_000) == pytest.approx(1.0, rel=0.01)
    assert card.read_sec(0, 4096) == card.sequential_sec(0) == 0


@pytest.mark.parametrize("wrong", [(0, 1), (4096, 0)])
def test_nothing_is_predicted_for_no_bytes_or_no_reads(wrong: Any) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        EMMC.bytes_per_sec(*wrong)
