"""Builds the table of results, README.md beside this file, from every results file (*.jsonl) beside it.

python docs/results/build.py [--check]

--check writes nothing and exits with 1 where the table is not what the files make. Needs smallthinker[bench].
"""

from __future__ import annotations

import sys
from pathlib import Path

from smallthinker.benchmark.submission import header, read_submission, row
from smallthinker.errors import SmallThinkerError

HERE = Path(__file__).resolve().parent
TABLE = HERE / "README.md"
TEXT = """# Results

What people measured with `smallthinker bench`. Medians; a ceiling is the roofline of the very runs. Cold: a process's
first answer, nothing of the store in the page cache. Warm: its second. Each row is a file here with every run in it;
compare one with your own by `smallthinker bench compare A B`.

{table}

To add a row, measure at least three times (`smallthinker bench MODEL --repeats 3 -o DIR`), check the file with
`smallthinker bench --submit DIR/results.jsonl`, put it here under a name of its own, run
`python docs/results/build.py` and open a pull request. A file is JSON lines as
[schema.json](../../smallthinker/benchmark/schema.json) describes them; it holds no host name and no path, but the name
of the model's folder.
"""


def table() -> str:
    """Rows in the order of the files' names. Raises SmallThinkerError, naming the file."""
    rows = [
        f"{row(read_submission(path)).rstrip('|')}| [{path.stem}]({path.name}) |"
        for path in sorted(HERE.glob("*.jsonl"))
    ]
    names, rule = header().splitlines()
    return "\n".join([f"{names} file |", f"{rule}---|", *rows])


def main() -> int:
    try:
        text = TEXT.format(table=table())
    except SmallThinkerError as e:
        print(e, file=sys.stderr)
        return 1
    if "--check" not in sys.argv[1:]:
        TABLE.write_text(text, encoding="utf-8")
    elif not TABLE.exists() or TABLE.read_text(encoding="utf-8") != text:
        print(f"{TABLE}: not what the results make; run python docs/results/build.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
