#!/usr/bin/env bash
# The tests that take minutes, or need root and disk: run from the checkout's root, in the environment of the fast ones.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-.venv/bin/python}" -m pytest -m slow --numprocesses 0 -rs "$@"
