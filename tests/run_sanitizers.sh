#!/usr/bin/env bash
# The kernel tests with AddressSanitizer and UndefinedBehaviorSanitizer, on every instruction set of this machine, and
# the native reads with these and with ThreadSanitizer. The first bad access, undefined operation or race ends the
# program with a report, and the test that caused it fails.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
cxx=${CXX:-g++}

# GCC takes the undefined vectors that its own AVX-512 intrinsics start from for mistakes of ours, at -O1.
driver=$(tests/kernels/driver/build.sh "$cxx" build/driver-sanitized -O1 -g1 -fno-omit-frame-pointer \
  -fsanitize=address,undefined -fno-sanitize-recover=all -Wall -Wextra -Wno-maybe-uninitialized)
KERNELS_DRIVER=$driver "$python" -m pytest tests/kernels --hypothesis-profile driver

# The reads run inside Python: the sanitizer's library comes first, then C++'s, for its exceptions to be seen. Python
# itself leaks by design.
includes=$("$python" -c 'import pybind11, sysconfig; print("-I", pybind11.get_include(), "-I", sysconfig.get_path("include"))')
builds=()
for sanitizers in address,undefined thread; do
  # shellcheck disable=SC2086
  $cxx -std=c++17 -shared -fPIC -O1 -g1 -fno-omit-frame-pointer -fvisibility=hidden -pthread -fsanitize=$sanitizers \
    -fno-sanitize-recover=all $includes expert_store/native/*.cpp -o "$PWD/build/storage-${sanitizers%%,*}.so" &
  builds+=($!)
done
for build in "${builds[@]}"; do wait "$build"; done
for sanitizers in address,undefined thread; do
  library=$($cxx -print-file-name="lib$([ "$sanitizers" = thread ] && echo tsan || echo asan).so")
  module=$PWD/build/storage-${sanitizers%%,*}.so
  STORAGE_MODULE=$module PYTHONPATH=tests/expert_store/sanitized LD_PRELOAD="$library $($cxx -print-file-name=libstdc++.so)" \
    ASAN_OPTIONS=detect_leaks=0 "$python" -m pytest tests/expert_store/native \
    -k "not page_cache"  # whose pages it counts: a sanitizer's own are among them
done
