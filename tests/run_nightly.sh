#!/usr/bin/env bash
# What takes hours, or needs root or a program of its own: every wheel, memory under the kernel's limit, growth, a long run
# with faults, the server against its schemas, Windows' kernels and readers under wine. FOLDER gets the models, 2 GB.
# SCHEMATHESIS and MINUTES may be set.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(command -v "${PYTHON:-$PWD/.venv/bin/python}")
[[ $python = /* ]] || python=$PWD/$python
folder=${1:-build/nightly}
PYTHON=$python tests/run_wheels.sh --all
PYTHON=$python tests/run_wine.sh
"$python" tests/nightly/memory_truth.py "$folder"
"$python" tests/nightly/memory_truth.py "$folder" --budgets 6 --more
"$python" tests/nightly/growth.py
if command -v "${SCHEMATHESIS:-schemathesis}" > /dev/null; then
  "$python" tests/nightly/api.py "${SCHEMATHESIS:-schemathesis}"
else
  echo "schemathesis is not installed: the server's schemas were not tried"
fi
"$python" tests/nightly/long_run.py "$folder/long" --minutes "${MINUTES:-120}"
