"""The journal: what it holds after any end, and whose it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallthinker.batch.journal import Journal, journal_path
from smallthinker.errors import RequestError

JOB = {"MODEL": "a", "--seed": 1}


def filled(output: Path) -> bytes:
    with Journal(output, JOB, 6) as journal:
        journal.add((i, {"text": f"answer {i}"}) for i in (3, 0))
        journal.add([(5, {"text": "\n\u00e9"})])
    return journal_path(output).read_bytes()


@given(cut=st.integers(0, 400), tail=st.binary(max_size=20))
def test_whatever_tears_its_end_leaves_whole_rows_and_it_goes_on(
    tmp_path_factory: pytest.TempPathFactory, cut: int, tail: bytes
) -> None:
    output = tmp_path_factory.mktemp("journal") / "out"
    whole = filled(output)
    head = whole.index(b"\n") + 1
    journal_path(output).write_bytes(whole[: max(head, len(whole) - cut)] + tail)
    for _ in range(2):
        with Journal(output, JOB, 6) as journal:
            for index in range(6):
                if index in journal:
                    assert journal.answer(index)["text"] == {3: "answer 3", 0: "answer 0", 5: "\n\u00e9"}.get(
                        index, "new"
                    )
                else:
                    journal.add([(index, {"text": "new" if index not in (0, 3) else f"answer {index}"})])
                    journal.answer(index)
                if index == 5 and journal.answer(5)["text"] == "new":
                    return
            assert journal.done == 6


@pytest.mark.parametrize("line", [b"[7, {}]", b"[-1, {}]", b"[true, {}]", b'["0", {}]', b"[0]", b"{}", b"[0, 1]"])
def test_a_line_of_no_row_is_none(tmp_path: Path, line: bytes) -> None:
    import zlib

    filled(tmp_path / "out")
    with journal_path(tmp_path / "out").open("ab") as file:
        file.write(b"%08x %s\n" % (zlib.crc32(line), line))
    with Journal(tmp_path / "out", JOB, 6) as journal:
        assert journal.done == 3


def test_another_job_s_journal_is_refused_with_what_differs_and_what_to_do(tmp_path: Path) -> None:
    filled(tmp_path / "out")
    with pytest.raises(RequestError, match=r"another --seed \(1, now 2\).*--force to begin anew"):
        Journal(tmp_path / "out", JOB | {"--seed": 2}, 6)
    with Journal(tmp_path / "out", JOB | {"--seed": 2}, 6, anew=True) as journal:
        assert journal.done == 0


@pytest.mark.parametrize("other", [{"--seed": 2}, {"MODEL": "b" * 200}, {"MODEL": ""}])
@pytest.mark.parametrize("tail", [b"", b"torn"])
def test_a_journal_without_a_finished_row_is_begun_anew_by_another_job(
    tmp_path: Path, other: dict[str, str], tail: bytes
) -> None:
    with Journal(tmp_path / "out", JOB, 6):
        pass
    with journal_path(tmp_path / "out").open("ab") as file:
        file.write(tail)
    with Journal(tmp_path / "out", JOB | other, 6) as journal:
        assert journal.done == 0
        journal.add([(2, {"text": "one"})])
    with Journal(tmp_path / "out", JOB | other, 6) as journal:
        assert journal.done == 1 and journal.answer(2) == {"text": "one"}
    with pytest.raises(RequestError, match="begun with another"):
        Journal(tmp_path / "out", JOB, 6)


def test_two_processes_never_write_one_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "out", JOB, 6), pytest.raises(RequestError, match="another process is at work"):
        Journal(tmp_path / "out", JOB, 6)
