"""EngineOptions: one set of options for Engine, LLM, the commands and a benchmark's jobs, each with one meaning."""

import argparse
import json
from collections import defaultdict
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallthinker import LLM, EngineOptions, cli
from smallthinker.errors import RequestError
from smallthinker.expert_store.device.storage_profile import load_profile
from smallthinker.options import EngineChanges

KINDS = st.fixed_dictionaries(
    {},
    optional={
        "memory": st.integers(0, 1 << 40) | st.sampled_from(["1GiB", "300M", 1.5e9]),
        "context": st.integers(1, 1 << 20),
        "kv": st.sampled_from(["f16", "q8"]),
        "reader": st.sampled_from(["auto", "direct", "mmap", "buffered"]),
        "verify": st.sampled_from(["first", "always", "never"]),
        "threads": st.integers(1, 256),
        "prefetch": st.booleans(),
        "storage": st.sampled_from(["emmc", Path("disk.toml"), load_profile("emmc")]),
        "kv_dir": st.sampled_from(["saved", Path("saved")]),
        "kv_dir_bytes": st.sampled_from([0, "4GiB"]),
        "lossy_head": st.just(Path("head.pt")),
    },
)


def test_every_option_may_be_named_in_a_call_with_the_type_that_it_has() -> None:
    assert get_type_hints(EngineChanges) == get_type_hints(EngineOptions)
    assert EngineChanges.__optional_keys__ == {field.name for field in fields(EngineOptions)}


@given(KINDS)
def test_options_survive_json(given: dict[str, Any]) -> None:
    options = EngineOptions(**given)
    again = EngineOptions.from_dict(json.loads(json.dumps(options.to_dict())))
    assert again.to_dict() == options.to_dict()
    assert again.storage == options.storage or str(again.storage) == str(options.storage)


def test_changes_go_before_the_options_that_they_change(hybrid_store: Path) -> None:
    options = EngineOptions(context=64, sequences=2)
    with LLM(hybrid_store, options, context=128) as llm:
        assert (llm.plan.context, llm.plan.sequences) == (128, 2)
    assert options.context == 64


def test_what_is_no_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="memori"):
        LLM(tmp_path / "nowhere", memori="1GiB")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="memori"):
        EngineOptions.from_dict({"memori": 1})
    with pytest.raises(RequestError, match=r"^options: expected EngineOptions, found '1GiB'"):
        LLM(tmp_path / "nowhere", "1GiB")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("command", "new"),
    [
        ("run --profile x", "--timings"),
        ("plan --profile=emmc", "--storage"),
        ("bench --profile raw emmc", "--storage"),
        ("bench --context 16", "--prompt"),
        ("bench --tokens 16", "--max-tokens"),
        ("cache-sim x.trace --memory 1GiB", "--expert-memory"),
    ],
)
def test_the_old_name_of_an_option_is_answered_by_its_new_one(
    command: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(command.split())
    error = capsys.readouterr().err
    assert ended.value.code == 2 and f"is now {new}" in error and error.count("\n") == 1


def test_an_option_takes_the_same_kind_of_value_in_every_command() -> None:
    kinds: dict[str, set[tuple[Any, ...]]] = defaultdict(set)

    def walk(parser: argparse.ArgumentParser) -> None:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for inner in action.choices.values():
                    walk(inner)
            elif action.help != argparse.SUPPRESS:  # of a name that another option has now
                value = None if action.nargs == 0 else (action.metavar, action.type, str(action.choices))
                for name in action.option_strings:
                    kinds[name].add(value if name not in ("-o", "--out", "--quant") else None)

    walk(cli._parser())
    assert len(kinds) > 30
    assert not {name: found for name, found in kinds.items() if len(found) > 1}
