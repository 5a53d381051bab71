"""Builds the extension modules smallthinker._kernels and smallthinker._storage; everything else is in pyproject.toml.

One set of flags for every file: what needs a newer instruction set asks for it in the file (kernels/isa_*.cpp), so one
wheel runs everywhere and picks the fastest at import.
"""

import os
import sys
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup

# -ffp-contract=off: whether a product and a sum round once or twice is the kernels' choice, not the compiler's, or two
# paths that must agree to the bit wouldn't.
FLAGS = (
    ["/O2", "/fp:precise"]
    if sys.platform == "win32"
    else ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-Wall", "-Wextra", "-pthread"]
)

ParallelCompile(default=os.cpu_count() or 1).install()


def extension(name: str, folder: str) -> Pybind11Extension:
    sources, headers = (sorted(path.as_posix() for path in Path(folder).glob(f"*.{end}")) for end in ("cpp", "h"))
    return Pybind11Extension(name, sources, depends=headers, cxx_std=17, extra_compile_args=FLAGS)


setup(
    ext_modules=[
        extension("smallthinker._kernels", "kernels"),
        extension("smallthinker._storage", "expert_store/native"),
    ]
)
