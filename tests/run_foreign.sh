#!/usr/bin/env bash
# The kernel tests on a CPU that this machine isn't: NEON and portable C++ on an emulated aarch64. Without the compiler
# and the emulator it says so and does nothing; with --install it gets them from apt-get, or fails.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
command -v aarch64-linux-gnu-g++ > /dev/null || missing+=(g++-aarch64-linux-gnu)
command -v qemu-aarch64 > /dev/null || missing+=(qemu-user)
if ((${#missing[@]} > 0)); then
  if [[ ${1:-} != --install ]]; then
    echo "tests/run_foreign.sh: skipped, needs ${missing[*]} (apt-get install, or run with --install)"
    exit 0
  fi
  if ! command -v apt-get > /dev/null; then
    echo "tests/run_foreign.sh: needs ${missing[*]}, and there is no apt-get to install them with" >&2
    exit 1
  fi
  as_root=()
  ((EUID == 0)) || as_root=(sudo)
  "${as_root[@]}" apt-get update --quiet --quiet
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --quiet --quiet --yes "${missing[@]}"
fi

# Undefined behaviour traps, which needs no library for the other CPU.
driver=$(tests/kernels/driver/build.sh aarch64-linux-gnu-g++ build/driver-aarch64 -O2 -static -Wall -Wextra -Werror \
  -fsanitize=undefined -fsanitize-undefined-trap-on-error)
export KERNELS_DRIVER="qemu-aarch64 -cpu max $driver"
export KERNELS_ISAS="portable neon"  # what must be offered there: with less the same tests would pass, and test less
"${PYTHON:-.venv/bin/python}" -m pytest tests/kernels --hypothesis-profile driver
