"""What a wheel says of itself, and whether its modules keep to it: for systems that it can't be run on here, too."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from compiling import modules
from targets import Target

_LIBC = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2"}
_LOADERS = {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
_WINDOWS = ("api-ms-win-crt-", "kernel32.dll", "advapi32.dll", "ntdll.dll", "ucrtbase.dll")  # every Windows 10 has them


def check_wheel(wheel: Path, target: Target, python: str) -> None:
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder)
        inside = Path(folder)
        files = sorted(p for p in inside.rglob("*") if p.suffix in (".so", ".pyd", ".dll", ".dylib"))
        expected = sorted(f"smallthinker/{target.module_file(name, python)}" for name in modules())
        _expect(wheel, "modules", [p.relative_to(inside).as_posix() for p in files], expected)
        _expect(wheel, "demo", (inside / "smallthinker_demo").exists(), False)
        (info,) = inside.glob("*.dist-info")
        tags = sorted(line[5:] for line in (info / "WHEEL").read_text().splitlines() if line.startswith("Tag: "))
        interpreter = "cp" + python.replace(".", "")
        _expect(wheel, "tags", tags, sorted(f"{interpreter}-{interpreter}-{tag}" for tag in target.tag.split(".")))
        for file in files:
            {"linux": _check_elf, "windows": _check_pe, "macos": _check_macho}[target.system](file, target, python)
    if target.system == "linux":
        command = [sys.executable, "-m", "auditwheel", "show", str(wheel)]
        shown = " ".join(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
        _expect(wheel, "auditwheel's word", target.tag.partition(".")[0] in shown, True)


def _expect(file: Path, what: str, found: object, expected: object) -> None:
    if found != expected:
        sys.exit(f"{file.name}: {what}: expected {expected}, found {found}")


def _check_elf(file: Path, target: Target, python: str) -> None:
    from elftools.elf.elffile import ELFFile

    with file.open("rb") as opened:
        elf = ELFFile(opened)
        _expect(file, "machine", elf["e_machine"], "EM_X86_64" if target.name.endswith("x86_64") else "EM_AARCH64")
        tags = elf.get_section_by_name(".dynamic").iter_tags()
        needed = {tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"}
        _expect(file, "libraries", needed - _LIBC - _LOADERS, set())


def _check_pe(file: Path, target: Target, python: str) -> None:
    import pefile

    with pefile.PE(str(file)) as module:
        _expect(file, "machine", module.FILE_HEADER.Machine, 0x8664)
        libraries = {entry.dll.decode().lower() for entry in module.DIRECTORY_ENTRY_IMPORT}
        own = f"python{python.replace('.', '')}.dll"
        _expect(file, "Python's DLL", own in libraries, True)
        _expect(file, "libraries", {name for name in libraries if name != own and not name.startswith(_WINDOWS)}, set())
        exported = [
            symbol.name.decode() for symbol in module.DIRECTORY_ENTRY_EXPORT.symbols
        ]  # pybind11 has errors there
        _expect(file, "what Python calls", f"PyInit_{file.name.partition('.')[0]}" in exported, True)


def _check_macho(file: Path, target: Target, python: str) -> None:
    from macholib.mach_o import LC_BUILD_VERSION, LC_CODE_SIGNATURE, LC_ID_DYLIB
    from macholib.MachO import MachO
    from macholib.SymbolTable import SymbolTable

    module = MachO(str(file))
    (header,) = module.headers
    is_arm = target.name.endswith("arm64")
    _expect(file, "machine", header.header.cputype, 0x100000C if is_arm else 0x1000007)
    names = {name for _, _, name in header.walkRelocatables()}
    _expect(file, "libraries", names - {"/usr/lib/libSystem.B.dylib"}, set())
    commands = {load.cmd: command for load, command, _ in header.commands if load.cmd != LC_ID_DYLIB}
    _expect(file, "macOS", commands[LC_BUILD_VERSION].minos >> 16, 11)
    exported = [name.decode() for _, name in SymbolTable(module).extdefsyms]
    _expect(file, "what Python calls", f"_PyInit_{file.name.partition('.')[0]}" in exported, True)
    if is_arm:  # unsigned ones are killed there
        _expect(file, "signed", LC_CODE_SIGNATURE in commands, True)
