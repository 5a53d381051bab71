"""What only one operating system can do, each with a portable fallback: direct reads, page-aligned memory, dropping
cached pages, atomic folder exchange, available and peak memory, what the machine is.

Knows nothing about models or stores. Importing it works everywhere; where a function's best way is missing, its
docstring or a comment says what happens on Windows and macOS instead. Sizes are bytes.
"""

from smallthinker.files import lock_folder, unlock_folder
from smallthinker.host.direct_io import (
    DIRECT_ALIGN,
    address,
    aligned_buffer,
    cached_pages,
    drop_file_cache,
    is_cached,
    open_buffered,
    open_direct,
    read_at,
    whole_pages,
)
from smallthinker.host.folders import cache_folder, exchange_folders, sync_folder
from smallthinker.host.memory import (
    Memory,
    available_memory_bytes,
    cgroup_memory,
    check_address_space,
    drop_library_pages,
    held_bytes,
    machine_memory,
    memory_limit_bytes,
    memory_of_cgroup,
    peak_memory_bytes,
    resident_bytes,
    trim_heap,
    uncharged_bytes,
)
from smallthinker.host.processor import (
    CpuSeconds,
    busy_note,
    cores_of_others,
    cpu_name,
    cpu_seconds,
    last_level_cache_bytes,
    physical_cores,
    yield_to_others,
)

__all__ = [
    "DIRECT_ALIGN",
    "CpuSeconds",
    "Memory",
    "address",
    "aligned_buffer",
    "available_memory_bytes",
    "busy_note",
    "cache_folder",
    "cached_pages",
    "cgroup_memory",
    "check_address_space",
    "cores_of_others",
    "cpu_name",
    "cpu_seconds",
    "drop_file_cache",
    "drop_library_pages",
    "exchange_folders",
    "held_bytes",
    "is_cached",
    "last_level_cache_bytes",
    "lock_folder",
    "machine_memory",
    "memory_limit_bytes",
    "memory_of_cgroup",
    "open_buffered",
    "open_direct",
    "peak_memory_bytes",
    "physical_cores",
    "read_at",
    "resident_bytes",
    "sync_folder",
    "trim_heap",
    "uncharged_bytes",
    "unlock_folder",
    "whole_pages",
    "yield_to_others",
]
