"""Nothing grows: thousands of generations of one model, and of loads and closes, in one process each.

    python tests/nightly/growth.py [--generations 10000] [--loads 1000]

What a process holds (memory that isn't a file's, descriptors, threads) is looked at twenty times on the
way. Exit code 1 where the least of the last five looks is more than a few MiB above the least of the second five, by
when all is warm, or a descriptor or a thread more. Prints a line for each look, and one line of JSON at the end.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import random
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from smallthinker import LLM, host

MIB = 1 << 20
MOST_GROWTH = 4 * MIB
LOOKS = 20
WORDS = ("the", "sea", "was", "calm", "and", "captain", "said", "to", "his", "men", "that", "it", "would", "be")
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


class Held(NamedTuple):
    done: int
    mib: float
    descriptors: int
    threads: int


def look(done: int) -> Held:
    gc.collect()
    host.trim_heap()
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    return Held(done, round(host.held_bytes() / MIB, 2), descriptors, threading.active_count())


def looked_at(count: int, once: Callable[[int], None], name: str) -> list[Held]:
    found = []
    for i in range(count):
        once(i)
        if (i + 1) % max(count // LOOKS, 1) == 0:
            found.append(look(i + 1))
            print(name, *found[-1]._asdict().items(), flush=True)
    return found


def generations(count: int) -> list[Held]:
    """Of every kind, with prompts of any length: texts, chats, schemas, several at once, streams that are dropped."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder, LLM(context=256, threads=1, sequences=2, kv_dir=folder,
                                                        kv_dir_bytes="8MiB") as llm:  # fmt: skip

        def once(i: int) -> None:
            prompt = " ".join(rng.choices(WORDS, k=rng.randint(1, 60)))
            options: dict[str, Any] = {"max_tokens": rng.randint(1, 12), "seed": i, "temperature": rng.choice([0, 0.8])}
            kind = rng.randrange(6)
            if kind == 0:
                llm.generate(prompt, json_schema=SCHEMA, **options)
            elif kind == 1:
                llm.chat([{"role": "user", "content": prompt}], **options)
            elif kind == 2:
                requests = [llm.submit(f"{prompt} {n}", **options) for n in range(3)]
                for request in requests:
                    request.result()
            elif kind == 3:
                with llm.stream(prompt, **options) as stream:
                    next(stream, None)
            elif kind == 4:
                llm.embed(prompt)
            else:
                llm.generate(prompt, logprobs=3, stop=["captain"], **options)

        return looked_at(count, once, "generations")


def loads(count: int) -> list[Held]:
    """Of which some write an answer, some none, and some are refused."""

    def once(i: int) -> None:
        if i % 10 == 9:
            try:
                LLM(memory="1MiB")
            except ValueError:
                return
        with LLM(context=128, threads=1 + i % 2, reader=("direct", "mmap", "buffered")[i % 3]) as llm:
            if i % 2:
                llm.generate("Once upon a time", max_tokens=2, seed=i)

    return looked_at(count, once, "loads")


class Ends(NamedTuple):
    warm: Held
    end: Held

    @property
    def grew(self) -> bool:
        warm, end = self
        more_bytes = (end.mib - warm.mib) * MIB
        return more_bytes > MOST_GROWTH or end.descriptors > warm.descriptors or end.threads > warm.threads


def ends(found: list[Held]) -> Ends:
    """The least that was held when all was warm, and at the end: what is freed a moment later is no growth."""

    def least(looks: list[Held]) -> Held:
        return Held(*map(min, zip(*looks, strict=True)))

    return Ends(least(found[LOOKS // 4 : LOOKS // 2]), least(found[-LOOKS // 4 :]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Generations, and loads and closes, without growth.")
    parser.add_argument("--generations", type=int, default=10_000, metavar="N")
    parser.add_argument("--loads", type=int, default=1000, metavar="N")
    args = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:  # a fresh process for each
        found = {
            "generations": ends(pool.apply(generations, (args.generations,))),
            "loads": ends(pool.apply(loads, (args.loads,))),
        }
    print(json.dumps({name: [each._asdict() for each in both] for name, both in found.items()}))
    sys.exit(any(both.grew for both in found.values()))


if __name__ == "__main__":
    main()
