#!/usr/bin/env bash
# The kernel tests and the reading code as wheels for Windows have them, under wine: no Python for Windows is had here, so
# the wheel's own objects are linked to the tests' programs. Without wine it says so and does nothing; with --install it
# gets it from apt-get, or fails. WHEELS_WORK: as tools/wheels.sh has it.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python} wheels=${WHEELS_WORK:-build/wheels}
if ! command -v wine > /dev/null; then
  if [[ ${1:-} != --install ]]; then
    echo "tests/run_wine.sh: skipped, needs wine (apt-get install wine wine64, or run with --install)"
    exit 0
  fi
  apt-get update --quiet --quiet
  DEBIAN_FRONTEND=noninteractive apt-get install --quiet --quiet --yes wine wine64 > /dev/null
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
version=$("$python" -c 'import sys; print(".".join(map(str, sys.version_info[:2])))')
tools/wheels.sh --target windows-x86_64 --python "$version" --compile-only
export ZIG_GLOBAL_CACHE_DIR
ZIG_GLOBAL_CACHE_DIR=$(realpath "$wheels/zig-cache")
objects=$wheels/windows-x86_64/any
zig=("$wheels/venv/bin/python" -m ziglang c++ -target x86_64-windows-gnu -std=c++17 -O2 -s -Wall -Wextra)
mapfile -t kernels < <(find "$objects/_kernels" -name '*.o')
mapfile -t storage < <(find "$objects/_storage" -name '*.o')
"${zig[@]}" -Ikernels tests/kernels/driver/driver.cpp "${kernels[@]}" -o "$work/driver.exe"
"${zig[@]}" -Iexpert_store/native tests/expert_store/driver/reads.cpp "${storage[@]}" -o "$work/reads.exe"

export WINEPREFIX=$work/wine WINEDEBUG=-all
wine "$work/reads.exe" "$work/files"
# what must be offered there: what this CPU has, which test_isa.py compares with Linux's own word
KERNELS_ISAS=$("$python" -c 'from smallthinker import _kernels; print(*_kernels.available_isas())')
export KERNELS_ISAS KERNELS_DRIVER="wine $work/driver.exe"
"$python" -m pytest tests/kernels --hypothesis-profile driver
