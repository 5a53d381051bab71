"""Builds the extension module smallthinker._kernels; everything else is in pyproject.toml.

One set of flags for every file: what needs a newer instruction set asks for it in the file (kernels/isa_*.cpp), so one
wheel runs everywhere and picks the fastest at import.
"""

import os
import sys
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup

SOURCES = sorted(path.as_posix() for path in Path("kernels").glob("*.cpp"))
HEADERS = sorted(path.as_posix() for path in Path("kernels").glob("*.h"))

# -ffp-contract=off: whether a product and a sum round once or twice is the kernels' choice, not the compiler's, or two
# paths that must agree to the bit wouldn't.
FLAGS = (
    ["/O2", "/fp:precise"]
    if sys.platform == "win32"
    else ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-Wall", "-Wextra", "-pthread"]
)

ParallelCompile(default=os.cpu_count() or 1).install()

setup(
    ext_modules=[
        Pybind11Extension("smallthinker._kernels", SOURCES, depends=HEADERS, cxx_std=17, extra_compile_args=FLAGS)
    ]
)
