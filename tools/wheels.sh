#!/usr/bin/env bash
# Wheels of smallthinker and of its demo model, into dist/, for every system and Python from this one machine: clang as
# PyPI's ziglang brings it. What is where, and where Python's headers come from: docs/wheels.md.
#   tools/wheels.sh                                    all
#   tools/wheels.sh --target linux-x86_64 --python 3.11    some; repeat the options for more
# PYTHON_HEADERS: folders separated by colons, each with python3.X/Python.h and python3.X/pyconfig.h, looked at first.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v advzip > /dev/null || { echo "tools/wheels.sh: needs advzip (apt-get install advancecomp)" >&2; exit 1; }
work=${WHEELS_WORK:-build/wheels}
if [[ ! -x $work/venv/bin/auditwheel ]]; then
  "${PYTHON:-python3}" -m venv "$work/venv"
  "$work/venv/bin/pip" install --quiet --no-compile -r tools/wheels/requirements.txt
fi
exec "$work/venv/bin/python" tools/wheels/build.py --work "$work" "$@"
