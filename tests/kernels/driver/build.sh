#!/usr/bin/env bash
# Compiles the kernels and the driver into one program: build.sh COMPILER FOLDER FLAGS...  prints the program's path.
set -euo pipefail
cd "$(dirname "$0")/../../.."
compiler=$1 folder=$2
shift 2
mkdir -p "$folder"
rm -f "$folder"/*.o  # of a source that is gone by now
compile() {
  local object="$FOLDER/$(basename "$1" .cpp).o"
  "$COMPILER" -std=c++17 -ffp-contract=off -fno-math-errno -fno-trapping-math -pthread -Ikernels "${@:2}" -c "$1" -o "$object"
}
export -f compile
find kernels tests/kernels/driver -name '*.cpp' ! -path 'kernels/bindings/*' |
  COMPILER=$compiler FOLDER=$folder xargs -P "$(nproc)" -I FILE bash -euo pipefail -c 'compile "$@"' - FILE "$@"
"$compiler" "$@" -pthread "$folder"/*.o -o "$folder/driver"
echo "$folder/driver"
