#!/usr/bin/env bash
# What takes an hour or needs root: memory under the kernel's limit. FOLDER gets the models, 1 GB.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
folder=${1:-build/nightly}
"$python" tests/nightly/memory_truth.py "$folder"
"$python" tests/nightly/memory_truth.py "$folder" --budgets 6 --more
