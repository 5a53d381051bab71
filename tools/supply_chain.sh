#!/usr/bin/env bash
# What an installation of smallthinker brings: a bill of materials, licences, known weaknesses. Into OUT (default: build/supply).
#
# tools/supply_chain.sh [OUT]
#
# Fails where a package has a known weakness. Needs the network.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/supply}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
python3 -m venv "$work/own" && "$work/own/bin/pip" install --quiet --no-compile ".[serve,hub,bench]"
python3 -m venv "$work/tools" && "$work/tools/bin/pip" install --quiet --no-compile pip-audit==2.9.0 cyclonedx-bom==7.1.0 pip-licenses==5.0.0
"$work/own/bin/pip" freeze --exclude smallthinker > "$out/packages.txt"
"$work/tools/bin/cyclonedx-py" environment --output-format JSON --output-file "$out/sbom.json" "$work/own/bin/python"
"$work/tools/bin/pip-licenses" --python "$work/own/bin/python" --format=csv --output-file "$out/licences.csv" > /dev/null
echo "tools/supply_chain.sh: $(wc -l < "$out/packages.txt") packages; $out has the lists"
"$work/tools/bin/pip-audit" --requirement "$out/packages.txt" --no-deps --disable-pip --strict  # what could not be asked about is no success
