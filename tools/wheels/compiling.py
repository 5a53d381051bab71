"""The extension modules of one system: what knows no Python is compiled once, the bindings for each version.

Which modules there are, and the compiler's flags, are setup.py's. Knows nothing of wheels.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from headers import WINDOWS_PYCONFIG
from targets import Target

ROOT = Path(__file__).resolve().parents[2]
_UNDEMANGLED = ROOT / "tools" / "wheels" / "undemangled.cpp"
_QUIET = ["-Wno-macro-redefined", "-Wno-unused-command-line-argument"]  # pyconfig.h sets what systems' headers do


def flags() -> list[str]:
    """Always with -O: zig's own choice without it is a debug build that traps undefined behaviour."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "FLAGS":
            found = ast.literal_eval(node.value)
            assert "-O3" in found
            return [*found, "-std=c++17"]
    raise RuntimeError("setup.py: expected a list FLAGS")


def modules() -> dict[str, str]:
    """A module's name and the folder of its sources."""
    return dict(re.findall(r'extension\("smallthinker\.(\w+)", "([^"]+)"\)', (ROOT / "setup.py").read_text()))


class Compiler:
    """Objects and modules of one target under `work`; `headers` are folders by Python's version."""

    def __init__(self, target: Target, headers: dict[str, Path], work: Path) -> None:
        import pybind11

        self.target, self.headers = target, headers
        self.work = (work / target.name).resolve()
        self.environment = os.environ | {"ZIG_GLOBAL_CACHE_DIR": str((work / "zig-cache").resolve())}
        self.zig = [sys.executable, "-m", "ziglang"]
        self.cxx = [*self.zig, "c++", "-target", target.triple]
        self._linker = [*self.cxx, "-O3", "-s", "-shared", "-pthread"]
        self.flags = [*flags(), *([] if target.system == "windows" else ["-fPIC"]), *_QUIET]
        self.pybind11 = pybind11.get_include()

    def build(self, pool: ThreadPoolExecutor) -> dict[str, list[Path]]:
        """The modules' files by Python's version."""
        objects: dict[tuple[str, str], list[Path]] = {}
        undemangled = self.work / "any" / "undemangled.cpp.o"
        jobs: list[Callable[[], None]] = [lambda: self._begin(undemangled)]
        for module, folder in modules().items():
            # the longest first: one file an instruction set, then the bindings
            for source in sorted((ROOT / folder).rglob("*.cpp"), key=lambda path: ("isa_" not in path.name, path)):
                is_bound = "bindings" in source.relative_to(ROOT).as_posix()
                for python in self.headers if is_bound else ("any",):
                    place = self.work / python / module / f"{source.relative_to(ROOT / folder).as_posix()}.o"
                    objects.setdefault((python, module), []).append(place)
                    jobs.append(lambda s=source, o=place, f=folder, p=python: self._compile(s, o, f, p))  # type: ignore
        list(pool.map(lambda job: job(), jobs))
        if self.target.system == "windows":
            list(pool.map(self._import_library, self.headers))
        links = [
            pool.submit(self._link, module, python, [*objects["any", module], *objects[python, module], undemangled])
            for python in self.headers
            for module in modules()
        ]
        files: dict[str, list[Path]] = {python: [] for python in self.headers}
        for link in links:
            python, path = link.result()
            files[python].append(path)
        return files

    def _run(self, command: list[str]) -> None:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, cwd=ROOT)
        if done.returncode != 0:
            raise RuntimeError(f"{self.target.name}: {' '.join(command)}\n{done.stdout}{done.stderr}")

    def _begin(self, undemangled: Path) -> None:
        """A first link beside all that compiles: by it zig builds libc++, in minutes."""
        self._compile(_UNDEMANGLED, undemangled, "tools/wheels", "any")
        # compiled anew, so that it exports something: without, zig's linker for macOS crashes
        self._run([*self._linker, str(_UNDEMANGLED), "-o", str(undemangled.with_suffix(".so"))])

    def _compile(self, source: Path, to: Path, folder: str, python: str) -> None:
        to.parent.mkdir(parents=True, exist_ok=True)
        command = [*self.cxx, *self.flags, f"-I{folder}"]
        if python != "any":  # bindings compute nothing, and are half of a wheel
            found = self.headers[python]
            config = WINDOWS_PYCONFIG if self.target.system == "windows" else found / "pyconfig"
            command += ["-Os", f"-I{config}", f"-I{found / 'include'}", f"-I{self.pybind11}"]
        self._run([*command, "-c", source.relative_to(ROOT).as_posix(), "-o", str(to)])

    def _link(self, module: str, python: str, objects: list[Path]) -> tuple[str, Path]:
        to = self.work / python / self.target.module_file(module, python)
        more = {
            "linux": [],
            "windows": [str(self._import_library_of(python))],
            # -x: -s does nothing there
            "macos": ["-Wl,-undefined,dynamic_lookup", "-Wl,-x", f"-Wl,-install_name,@rpath/{to.name}"],
        }[self.target.system]
        self._run([*self._linker, *map(str, objects), *more, "-o", str(to)])
        return python, to

    def _import_library_of(self, python: str) -> Path:
        return self.work / python / f"python{python.replace('.', '')}.lib"

    def _import_library(self, python: str) -> None:
        """Of Python's DLL, from what the headers declare: what a module doesn't use of it isn't looked for."""
        library = self._import_library_of(python)
        text = "\n".join(path.read_text("utf-8") for path in sorted((self.headers[python] / "include").rglob("*.h")))
        functions = set(re.findall(r"PyAPI_FUNC\([^;]*?\)\s*\**\s*(\w+)\s*\(", text))
        data = set(re.findall(r"PyAPI_DATA\([^;]*?\)\s*\**\s*(\w+)", text))
        # macros that declare exceptions and types hide their names
        data |= set(re.findall(r"\bPyExc_\w+", text)) - functions
        names = [*sorted(functions - data), *(f"{name} DATA" for name in sorted(data))]
        definitions = library.with_suffix(".def")
        definitions.write_text(f"LIBRARY {library.stem}.dll\nEXPORTS\n" + "\n".join(names) + "\n")
        self._run([*self.zig, "dlltool", "-m", "i386:x86-64", "-d", str(definitions), "-l", str(library)])
