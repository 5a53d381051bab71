#!/usr/bin/env bash
# Wheels as a user gets them: built, checked, installed into a fresh environment and run there with an empty PATH: Linux
# x86_64 for this machine's Python, and aarch64 in an emulator if Debian's Python can be had. With --all for every target
# and Python of tools/wheels.sh, of which this machine runs what it has Pythons for. docs/wheels.md says what was run.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD python=${PYTHON:-python3}
work=$(mktemp -d)
of_aarch64=3.11 suite=bookworm  # of Debian
trap 'rm -rf "$work"' EXIT
version=$("$python" -c 'import sys; print(".".join(map(str, sys.version_info[:2])))')
ran=0

say() { echo "tests/run_wheels.sh: $*"; }

# run_wheel VERSION PYTHON: the demo's answer, the error without a demo, and the instruction sets
run_wheel() {
  local home=$work/$1
  "$2" -m venv "$home"
  "$home/bin/pip" install --quiet --no-compile "$work/dist/"smallthinker-*-cp"${1/./}"-*linux*_x86_64.whl pytest
  cd "$work"  # away from the clone's own packages
  # without a model: one line, which names what is missing
  if env -i PATH= HOME="$work" "$home/bin/smallthinker" run "Once upon a time" 2> "$work/error"; then
    say "without the demo model run found one" && return 1
  fi
  grep --quiet smallthinker_demo "$work/error"
  "$home/bin/pip" install --quiet --no-compile "$work/dist/"smallthinker_demo-*.whl
  local answer
  answer=$(env -i PATH= HOME="$work" "$home/bin/smallthinker" run --max-tokens 16 "Once upon a time" 2> "$work/error")
  ((${#answer} > 20)) || { cat "$work/error" >&2 && return 1; }
  env -i PATH= HOME="$work" "$home/bin/python" -m pytest --quiet --noconftest -p no:cacheprovider -c /dev/null \
    --rootdir "$work" "$root/tests/kernels/test_isa.py"
  cd "$root"
  ran=$((ran + 1))
  say "ran on Python $1: $answer"
}

# run_aarch64: the same in an emulator, with Debian's Python and its libraries, which stay in a folder
run_aarch64() {
  local of=$of_aarch64 keys=/usr/share/keyrings/debian-archive-keyring.gpg state=$work/apt mirror
  if ! command -v qemu-aarch64 > /dev/null || ! command -v apt-get > /dev/null || [[ ! -e $keys ]]; then
    say "no qemu-user or no Debian: the aarch64 wheels were only checked"
    return 0
  fi
  mkdir -p "$state"/{lists/partial,archives/partial,etc/sources.list.d,etc/preferences.d} "$work/aarch64"
  mirror=$({ cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2> /dev/null || true; } |  # either may be missing
    grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1)
  echo "deb [signed-by=$keys arch=arm64] ${mirror% } $suite main" > "$state/etc/sources.list"
  : > "$state/status"
  local apt=(apt-get -qq -o Dir::Etc="$state/etc" -o Dir::State::lists="$state/lists" -o Dir::Cache="$state"
    -o Dir::State::status="$state/status" -o APT::Architecture=arm64 -o APT::Architectures=arm64)
  if ! "${apt[@]}" update || ! "${apt[@]}" --yes --download-only --no-install-recommends install \
    "python$of-minimal" "libpython$of-stdlib" libstdc++6 > /dev/null; then  # the last for numpy's modules
    say "Debian's arm64 packages can't be had: the aarch64 wheels were only checked"
    return 0
  fi
  for package in "$state/archives/"*.deb; do dpkg-deb -x "$package" "$work/aarch64"; done
  "${WHEELS_WORK:-build/wheels}/venv/bin/pip" install --quiet --no-compile --target "$work/site" --only-binary=:all: \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 \
    --python-version "$of" --implementation cp --abi "cp${of/./}" \
    "$work/dist/"smallthinker-*-cp"${of/./}"-*linux*_aarch64.whl "$work/dist/"smallthinker_demo-*.whl
  local python=(qemu-aarch64 -cpu max -L "$work/aarch64" "$work/aarch64/usr/bin/python$of")
  cd "$work"
  local isas answer
  isas=$(PYTHONPATH=$work/site "${python[@]}" -c 'from smallthinker import _kernels; print(*_kernels.available_isas())')
  [[ $isas == "portable neon" ]] || { say "aarch64: expected portable and neon, found $isas" && return 1; }
  answer=$(PYTHONPATH=$work/site "${python[@]}" -m smallthinker run --max-tokens 16 "Once upon a time" 2> "$work/error")
  ((${#answer} > 20)) || { cat "$work/error" >&2 && return 1; }
  cd "$root"
  ran=$((ran + 1))
  say "ran on aarch64, Python $of ($isas): $answer"
}

# refuse_without_compiler: the build from source says in a sentence what to install
refuse_without_compiler() {
  mkdir "$work/no-compiler"
  if PATH=$work/no-compiler CC= CXX= "$1/venv/bin/python" setup.py --quiet build --build-base "$work/build" 2> "$work/error"; then
    say "it built without a compiler" && return 1
  fi
  tail -n 1 "$work/error" | grep --quiet "install a C++ compiler"
  say "without a compiler: $(tail -n 1 "$work/error")"
}

if [[ ${1:-} == --all ]]; then
  tools/wheels.sh --out "$work/dist"
  shopt -s nullglob
  for wheel in "$work/dist/"smallthinker-*linux*_x86_64.whl; do
    [[ $wheel =~ -cp3([0-9]+)- ]] && of=3.${BASH_REMATCH[1]}
    found=$(compgen -G "${PYENV_ROOT:-$HOME/.pyenv}/versions/$of.*/bin/python" | tail -n 1 || command -v "python$of" || true)
    [[ -n $found ]] || { say "no Python $of here: its wheel was only checked" && continue; }
    run_wheel "$of" "$found"
  done
  run_aarch64
else
  tools/wheels.sh --target linux-x86_64 --python "$version" --out "$work/dist"
  run_wheel "$version" "$python"
  tools/wheels.sh --target linux-aarch64 --python "$of_aarch64" --out "$work/dist"
  run_aarch64
fi
refuse_without_compiler "${WHEELS_WORK:-build/wheels}"
((ran > 0))
