#!/usr/bin/env bash
# The kernel tests with AddressSanitizer and UndefinedBehaviorSanitizer, on every instruction set of this machine. The
# first bad access or undefined operation ends the driver with a report, and the test that caused it fails.
set -euo pipefail
cd "$(dirname "$0")/.."

# GCC takes the undefined vectors that its own AVX-512 intrinsics start from for mistakes of ours, at -O1.
driver=$(tests/kernels/driver/build.sh "${CXX:-g++}" build/driver-sanitized -O1 -g -fno-omit-frame-pointer \
  -fsanitize=address,undefined -fno-sanitize-recover=all -Wall -Wextra -Wno-maybe-uninitialized)
export KERNELS_DRIVER=$driver
"${PYTHON:-.venv/bin/python}" -m pytest tests/kernels --hypothesis-profile driver
