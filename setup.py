"""Builds the extension modules of smallthinker: _kernels, _storage, _cache, _bpe; all else is in pyproject.toml.

What needs a newer instruction set asks for it in the file (kernels/isa/), so one wheel runs everywhere and picks the
fastest at import.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

# -ffp-contract=off: whether a product and a sum round once or twice is the kernels' choice, not the compiler's, or two
# paths that must agree to the bit wouldn't. -fno-trapping-math: nobody reads exception flags, and for them GCC makes no
# vectors of loops with a comparison; no result depends on it.
FLAGS = [
    "-O3",
    "-g0",  # Python's own flags ask for what debuggers need, which takes a third of the compiler's time
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-pthread",
]
MSVC_FLAGS = ["/O2", "/fp:precise"]  # it compiles none of the instruction sets: a wheel is 20 times as fast

ParallelCompile(default=os.cpu_count() or 1).install()


def extension(name: str, folder: str) -> Pybind11Extension:
    sources, headers = (sorted(path.as_posix() for path in Path(folder).rglob(f"*.{end}")) for end in ("cpp", "h"))
    return Pybind11Extension(name, sources, cxx_std=17, include_dirs=[folder], depends=headers)


def refuse_without_compiler() -> None:
    """Else hundreds of lines would end without a word of what to install."""
    if sys.platform == "win32":
        return  # setuptools looks for Microsoft's, and says where to get it
    compilers = [os.environ.get("CXX"), os.environ.get("CC"), sysconfig.get_config_var("CXX") or "c++"]
    programs = [shlex.split(compiler)[0] for compiler in compilers if compiler and compiler.strip()]
    missing = []
    if not any(shutil.which(program) for program in programs):
        missing.append(f"a C++ compiler ({programs[-1]} isn't here)")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        missing.append("Python's headers (Python.h isn't here)")
    if missing:
        raise SystemExit(
            f"To build smallthinker from source, install {' and '.join(missing)}: apt install g++ python3-dev, "
            "dnf install gcc-c++ python3-devel or xcode-select --install; a wheel of smallthinker needs neither."
        )


class BuildWithCompiler(build):
    def run(self) -> None:
        refuse_without_compiler()
        super().run()


class BuildAtOnce(build_ext):
    """The modules beside each other, too: two of them are little more than one long file, of bindings. Those compute
    nothing, and are compiled in two thirds of the time without most of the optimisations."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.parallel = True

    def run(self) -> None:
        refuse_without_compiler()  # an editable install comes straight here
        super().run()

    def build_extensions(self) -> None:
        kind = self.compiler.compiler_type
        if kind == "mingw32" and "clang" not in os.environ.get("CC", ""):
            raise SystemExit("GCC for Windows keeps no AVX vectors aligned on the stack: set CC and CXX to clang's")
        for module in self.extensions:
            module.extra_compile_args += MSVC_FLAGS if kind == "msvc" else FLAGS
        if kind != "msvc":
            compile_file = self.compiler._compile

            def compile_bindings_less(
                obj: str, src: str, ext: str, cc_args: list[str], extra: list[str], pp_opts: list[str]
            ) -> None:
                compile_file(obj, src, ext, cc_args, [*extra, "-O1"] if "bindings" in src else extra, pp_opts)

            self.compiler._compile = compile_bindings_less
        super().build_extensions()


class BuildWithCommit(build_py):
    """Leaves word of the commit in the package, for the figures that it will measure. An editable one asks git."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        here = Path(__file__).resolve().parent
        command = ["git", "describe", "--always", "--exclude=*", "--abbrev=9", "--dirty"]
        try:
            if (here / ".git").exists():  # else git would name a repository that this folder lies in
                found = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
                (Path(self.build_lib) / "smallthinker" / "_commit.txt").write_text(found.stdout)
        except (OSError, subprocess.CalledProcessError):
            pass  # no git, or it doesn't trust the folder: figures will say that the commit is unknown


setup(
    cmdclass={"build": BuildWithCompiler, "build_ext": BuildAtOnce, "build_py": BuildWithCommit},
    ext_modules=[
        extension("smallthinker._kernels", "kernels"),
        extension("smallthinker._storage", "expert_store/native"),
        extension("smallthinker._cache", "cache/native"),
        extension("smallthinker._bpe", "smallthinker/text/native"),
    ],
)
