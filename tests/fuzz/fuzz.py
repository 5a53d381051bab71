"""Coverage-guided lies: `python tests/fuzz/fuzz.py TARGET [FOLDER] [-max_total_time=60] [libFuzzer's options]`.

Needs atheris. Begins with what corpus.zip has of earlier runs; FOLDER gets what this one finds besides.

Ends at the first input that gives anything but an answer or one of the project's errors, that takes over ten seconds,
or for which the process's memory grows beyond what any of these small files can ask for.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from pathlib import Path
from zipfile import ZipFile

import atheris

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
with atheris.instrument_imports(include=["smallthinker"], enable_loader_override=False):
    from targets import TARGETS, Files, call

_MORE_BYTES = 1 << 30  # of addresses, beyond what importing and the first run took


class Fuzzed:
    """A liar whose choices are a fuzzer's bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = atheris.FuzzedDataProvider(data)

    def integer(self, low: int, high: int) -> int:
        return self._data.ConsumeIntInRange(low, high)

    def data(self, most: int) -> bytes:
        return self._data.ConsumeBytes(self._data.ConsumeIntInRange(0, most))


def main() -> None:
    name = sys.argv.pop(1)
    folder = Path(tempfile.mkdtemp())
    target, files, kept = TARGETS[name], Files(folder), folder / "kept"
    with ZipFile(Path(__file__).with_name("corpus.zip")) as corpus:
        corpus.extractall(kept, [entry for entry in corpus.namelist() if entry.startswith(f"{name}/")])
    (kept / name).mkdir(parents=True, exist_ok=True)

    def once(data: bytes) -> None:
        call(target, Fuzzed(data), files)

    once(b"")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _MORE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    options = ["-timeout=10", "-rss_limit_mb=0", "-len_control=0", "-max_len=4096"]
    atheris.Setup([sys.argv[0], *options, *sys.argv[1:], str(kept / name)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
