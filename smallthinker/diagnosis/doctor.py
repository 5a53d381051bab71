"""Whether a model would run here, what was chosen and why, and what to mend: facts, judged.

Prints nothing; how it reads is doctor_report's. Works where the kernels can't even be loaded.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from smallthinker import host
from smallthinker.errors import MemoryBudgetError, RequestError, SmallThinkerError
from smallthinker.expert_store.device.disk_facts import DiskFacts, disk_facts
from smallthinker.figures import rounded
from smallthinker.host.machine_facts import cores, kernel_features, memory, versions

if TYPE_CHECKING:
    from smallthinker.expert_store.store import Store

MIB = 1 << 20
_LITTLE_SWAP_LEFT = 0.1


@dataclass(frozen=True)
class Finding:
    """error: no model, or not this one, would run. warning: it would, worse than it could."""

    severity: Literal["error", "warning"]
    what: str
    remedy: str


def diagnose(path: Path | None = None) -> dict[str, Any]:
    """Facts, and `findings`; `would_run` is False where one of them is an error. path: a store, to be judged too, or a
    folder or file whose disk is; None is the current folder. Sizes in bytes.

    Raises RequestError where there is nothing at the path.
    """
    findings: list[Finding] = []
    facts = versions() | cores() | memory() | {"kernel": kernel_features()}
    facts["isa"] = isa = _instruction_sets(findings)
    _judge_machine(facts, findings)
    experts = _experts_file(path) if path is not None and isa is not None else None
    disk = _disk(path or Path(), experts)
    _judge_disk(disk, experts is not None, findings)
    facts |= {"disk": disk.to_dict(), "store": None}
    if isa is not None:
        _answer_once(findings)
        if path is not None and experts is not None:
            facts["store"] = _store(path, facts, findings)
    facts["chosen"] = _chosen(facts)
    facts["findings"] = [asdict(finding) for finding in findings]
    facts["would_run"] = all(finding.severity != "error" for finding in findings)
    return facts


def _instruction_sets(findings: list[Finding]) -> dict[str, Any] | None:
    try:
        from smallthinker import _kernels
    except ImportError as e:  # not built for this Python, or SMALLTHINKER_ISA names what this CPU can't run
        forced = "SMALLTHINKER_ISA" in str(e)
        remedy = "unset SMALLTHINKER_ISA" if forced else "install again with this Python: pip install --force-reinstall"
        findings.append(Finding("error", f"the kernels can't be loaded: {e}", remedy))
        return None
    chosen, available = _kernels.isa(), _kernels.available_isas()
    is_forced = bool(os.environ.get("SMALLTHINKER_ISA"))
    if chosen != available[-1]:
        what = f"SMALLTHINKER_ISA forces the {chosen} kernels, this CPU can run {available[-1]}"
        findings.append(Finding("warning", what, "unset SMALLTHINKER_ISA"))
    elif _kernels.built_isas() == ["portable"]:
        what = f"this build has no fast kernels ({_kernels.COMPILER} compiled it); expect a fraction of the speed"
        findings.append(Finding("warning", what, "install a wheel, or compile with GCC or clang"))
    elif chosen == "portable":
        what = "this CPU has none of the instruction sets that the fast kernels need; expect a fraction of the speed"
        findings.append(Finding("warning", what, "use a CPU with AVX2 or NEON, or a virtual machine that shows it"))
    return {
        "built": _kernels.built_isas(),
        "available": available,
        "chosen": chosen,
        "compiler": _kernels.COMPILER,
        "why": "forced by SMALLTHINKER_ISA" if is_forced else "the best that this CPU can run",
    }


def _experts_file(path: Path) -> Path | None:
    from smallthinker.expert_store.format import EXPERTS_FILE  # which loads the kernels
    from smallthinker.expert_store.store import is_gguf

    file = path if is_gguf(path) else path / EXPERTS_FILE
    return file if file.is_file() else None


def _judge_machine(facts: dict[str, Any], findings: list[Finding]) -> None:
    def warn(what: str, remedy: str) -> None:
        findings.append(Finding("warning", what, remedy))

    available = facts["memory_available_bytes"]
    for letter in ("v", "d"):
        limit = facts["ulimits"].get(letter)
        if limit is not None and limit < available:
            what = (
                f"ulimit -{letter} is {limit / MIB:,.0f} MiB, less than what is available; no default budget knows that"
            )
            warn(what, f"ulimit -{letter} unlimited, or --memory well below it")
    promised = (facts["overcommit"] or {}).get("left_bytes")
    if promised is not None and promised < available:
        what = f"vm.overcommit_memory is 2, and only {promised / MIB:,.0f} MiB may still be promised"
        warn(what, f"sysctl vm.overcommit_memory=0, or --memory {promised // MIB}MiB or less")
    swap, swap_free = facts["swap_bytes"], facts["swap_free_bytes"]
    if swap and swap_free < _LITTLE_SWAP_LEFT * swap:
        what = (
            f"swap is nearly full, {swap_free / MIB:,.0f} of {swap / MIB:,.0f} MiB left: the machine is short of memory"
        )
        warn(what, "close other programs, or give a smaller --memory")
    if sys.platform == "linux" and facts["kernel"]["huge_pages"] is False:
        warn(
            "memory gets no huge pages: decoding is some 8 % slower, and fast disks give a third less",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled, as root",
        )


def _disk(path: Path, file: Path | None) -> DiskFacts:
    try:
        return disk_facts(path, file)
    except OSError as e:
        raise RequestError(
            f"{path}: expected a store, a folder or a file, found none that can be looked at: {e.strerror or e}"
        ) from None


def _judge_disk(disk: DiskFacts, is_store: bool, findings: list[Finding]) -> None:
    def warn(what: str, remedy: str) -> None:
        findings.append(Finding("warning", what, remedy))

    place = "the store" if is_store else "a store here"
    if disk.is_network:
        warn(f"{place} is on a network file system ({disk.file_system})", "copy it to a disk of this machine")
    elif disk.is_container_layer:
        warn(f"{place} is in a container's layer ({disk.file_system})", "put it on a volume")
    elif disk.is_in_memory:
        warn(
            f"{place} is in memory already ({disk.file_system})", "put it on a disk, so that the memory is the cache's"
        )
    elif disk.direct_reads is False:
        what = f"no reads past the page cache here ({disk.file_system}): half a core for each 1.3 GB/s that is read"
        warn(what, "put the store on ext4 or XFS")
    if disk.is_rotational:
        warn(f"{place} is on a hard disk ({disk.device}): some 100 reads a second", "put it on an SSD")
    if is_store and not disk.is_writable:
        what = "the store's folder can't be written: each start probes the disk anew and forgets which experts are hot"
        warn(what, "let this user write there, or copy the store")


def _answer_once(findings: list[Finding]) -> None:
    """One token of the bundled model: nothing else shows that kernels, threads, files and memory all work."""
    from smallthinker.demo import DEMO_REMEDY
    from smallthinker.llm import DEMO_STORE, LLM

    if not DEMO_STORE.exists():
        findings.append(Finding("warning", "no answer was tried: the demo model isn't installed", DEMO_REMEDY))
        return
    try:
        with LLM() as llm:
            llm.generate("Once upon a time", max_tokens=1, seed=0)
    except (SmallThinkerError, OSError, MemoryError) as e:
        what = f"the bundled model gave no answer: {' '.join(str(e).split())}"
        findings.append(
            Finding("error", what, "mend what it names; else report it with what `smallthinker doctor --report` prints")
        )


def _store(path: Path, facts: dict[str, Any], findings: list[Finding]) -> dict[str, Any] | None:
    from smallthinker.expert_store.device.disk_profile import load_profile
    from smallthinker.expert_store.store import Store

    try:
        with Store.open(path) as store:
            floor, context = floor_bytes(store)
            profile = load_profile(store)
    except SmallThinkerError as e:
        what = f"the store can't be opened: {' '.join(str(e).split())}"
        findings.append(Finding("error", what, "mend what it names, or convert it again"))
        return None
    available = _room_bytes(facts)
    if floor > available:
        what = (
            f"the store needs {floor / MIB:,.0f} MiB at least for a context of {context} tokens, "
            f"{available / MIB:,.0f} MiB can be had"
        )
        findings.append(
            Finding("error", what, "close other programs, raise the limits above, or give a smaller --context")
        )
    return {
        "path": str(path.resolve()),
        "quant": store.quant,
        "dense_bytes": store.dense_bytes,
        "experts_bytes": store.num_experts * store.record_bytes,
        "num_experts": store.num_experts,
        "is_compressed": store.is_compressed,
        "context": context,
        "floor_bytes": floor,
        "room_bytes": available,
        "fits": floor <= available,
        "disk_profile": None if profile is None else profile.to_dict(),
    }


def _room_bytes(facts: dict[str, Any]) -> int:
    """The largest budget of this process that can be kept: what it has already, and the least of what is available and
    what the limits leave."""
    import psutil

    left = [facts["memory_available_bytes"]]
    process = psutil.Process().memory_info()
    limit = facts["ulimits"].get("v")
    if limit is not None:
        left.append(max(limit - int(process.vms), 0))
    promised = (facts["overcommit"] or {}).get("left_bytes")
    if promised is not None:
        left.append(promised)
    return host.held_bytes() + int(min(left))


def floor_bytes(store: Store) -> tuple[int, int]:
    """The least budget that runs this store from this process, and the context that it is for, the default one.

    Raises TokenizerError.
    """
    from smallthinker.expert_store.device.disk_profile import DiskProfile, load_profile
    from smallthinker.expert_store.queues import queue_bytes
    from smallthinker.memory_plan import PAGE_TABLE_SHARE, STARTING_BYTES, choose_context, plan_memory
    from smallthinker.router.predictor import find_predictor
    from smallthinker.text.tokenizer import Tokenizer

    before = host.resident_bytes()
    tokenizer = Tokenizer(store.small_files, store.config.vocab_size, store)
    resident = host.resident_bytes()
    del tokenizer
    predictor = find_predictor(store)
    context = choose_context(store.config, None)
    try:
        plan_memory(
            store.config,
            budget_bytes=0,
            context=context,
            dense_bytes=store.dense_bytes + (0 if predictor is None else predictor.nbytes),
            record_bytes=store.record_bytes,
            io_bytes=queue_bytes(store, load_profile(store) or DiskProfile()),
            interpreter_bytes=before + STARTING_BYTES + store.dense_bytes // PAGE_TABLE_SHARE,
            tokenizer_bytes=resident - before,
        )
    except MemoryBudgetError as e:
        return e.floor_bytes, context
    raise AssertionError("a budget of nothing is below every floor")


def _chosen(facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a run would take that is told nothing, and why."""
    isa, store = facts["isa"], facts["store"]
    profile = None if store is None else store["disk_profile"]
    if profile is not None:
        reader = profile["kind"]
        reader_why = f"a probe found {rounded(profile['bandwidth_bytes_per_sec'] / 1e6)} MB/s so"
    elif facts["disk"]["direct_reads"]:
        reader, reader_why = "direct", "until the first run has probed the disk, which takes 2 seconds"
    else:
        reader, reader_why = "buffered", "no direct reads were seen to work here"
    threads, physical, usable = facts["default_threads"], facts["physical_cores"], facts["usable_cores"]
    is_bound = usable is not None and physical is not None and usable < physical
    return {
        "kernels": {"value": None if isa is None else isa["chosen"], "why": "" if isa is None else isa["why"]},
        "threads": {
            "value": threads,
            "why": "the cores that this process may use"
            if is_bound
            else "the physical cores: more don't add bandwidth",
        },
        "reader": {"value": reader, "why": reader_why},
        "budget_bytes": {"value": None, "why": "no kernels"} if isa is None else _default_budget(facts),
    }


def _default_budget(facts: dict[str, Any]) -> dict[str, Any]:
    from smallthinker.memory_plan import DEFAULT_MARGIN

    budget = host.held_bytes() + int(facts["memory_available_bytes"] * (1 - DEFAULT_MARGIN))
    limit = facts["memory_limit_bytes"]
    if limit is not None and limit < budget:
        return {"value": limit, "why": "the cgroup's limit"}
    return {"value": budget, "why": f"what is available, less {100 * DEFAULT_MARGIN:.0f} %"}
