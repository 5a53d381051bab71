"""Compiles for the targets that were named, or all, and packs a wheel for each target and Python: tools/wheels.sh."""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from checking import check_wheel
from compiling import ROOT, Compiler
from headers import headers_of
from targets import PYTHONS, TARGETS, Target
from wheel.wheelfile import WheelFile

MAX_BASE_BYTES = 2 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", action="append", choices=TARGETS, help="default: all")
    parser.add_argument("--python", action="append", choices=PYTHONS, help="default: all")
    parser.add_argument("--compile-only", action="store_true", help="the modules, in the work folder, and no wheels")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "wheels")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    args = parser.parse_args()
    begun = time.monotonic()
    work, out = args.work.resolve(), args.out.resolve()
    headers = {python: headers_of(python, work) for python in args.python or PYTHONS}
    for python, folder in headers.items():
        place = "none found: left out" if folder is None else (folder / "from.txt").read_text().strip()
        print(f"headers of {python}: {place}")
    found = {python: folder for python, folder in headers.items() if folder is not None}
    if not found:
        sys.exit("no Python's headers were found: name a folder with python3.X/Python.h in PYTHON_HEADERS")
    if not args.compile_only:
        package = package_folder(work)
        out.mkdir(parents=True, exist_ok=True)
        report(demo_wheel(work, out), begun)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for target in (TARGETS[name] for name in args.target or TARGETS):
            files = Compiler(target, found, work).build(pool)
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent = f"{time.monotonic() - begun:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of CPU time"
            print(f"{target.name}: compiled; until here {spent}", flush=True)
            for python, modules in () if args.compile_only else files.items():
                wheel = pack(package, modules, target, python, out)
                if wheel.stat().st_size > MAX_BASE_BYTES:
                    sys.exit(f"{wheel}: {wheel.stat().st_size:,} bytes, expected at most {MAX_BASE_BYTES:,}")
                check_wheel(wheel, target, python)
                report(wheel, begun)


def report(wheel: Path, begun: float) -> None:
    print(f"{wheel.stat().st_size:>10,}  {wheel.name}  {time.monotonic() - begun:.0f} s", flush=True)


def package_folder(work: Path) -> Path:
    """What every wheel has, as setuptools makes it: Python's files and the metadata, but not the demo model."""
    folder, made = work / "package", work / "metadata"
    for old in (folder, made):
        shutil.rmtree(old, ignore_errors=True)
    made.mkdir(parents=True)
    run = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(folder)]
    subprocess.run(run, cwd=ROOT, check=True)
    make = "from setuptools import build_meta as b; import sys; print(b.prepare_metadata_for_build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", make, str(made)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(folder / "smallthinker_demo")
    for info in made.glob("*.dist-info"):
        shutil.copytree(info, folder / info.name)
        names = folder / info.name / "top_level.txt"
        names.write_text("".join(line for line in names.read_text().splitlines(True) if "demo" not in line))
    return folder


def demo_wheel(work: Path, out: Path) -> Path:
    source, made = work / "demo_model", work / "demo_wheel"
    for old in (source, made):
        shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(ROOT / "demo_model", source)  # setuptools leaves its own files in the folder
    made.mkdir()
    make = "from setuptools import build_meta as b; import sys; b.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", make, str(made)], cwd=source, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = made.glob("*.whl")
    return Path(shutil.copy(wheel, out))


def pack(package: Path, modules: list[Path], target: Target, python: str, out: Path) -> Path:
    (info,) = package.glob("*.dist-info")
    for old in (package / "smallthinker").glob("_*"):
        if old.suffix in (".so", ".pyd"):
            old.unlink()
    for module in modules:
        shutil.copy(module, package / "smallthinker")
    tags = [target.wheel_tag(python).rpartition("-")[0] + f"-{tag}" for tag in target.tag.split(".")]
    lines = ["Wheel-Version: 1.0", "Generator: smallthinker tools/wheels", "Root-Is-Purelib: false"]
    (info / "WHEEL").write_text("\n".join([*lines, *(f"Tag: {tag}" for tag in tags)]) + "\n")
    path = out / f"{info.name.removesuffix('.dist-info')}-{target.wheel_tag(python)}.whl"
    path.unlink(missing_ok=True)
    with WheelFile(path, "w") as wheel:
        wheel.write_files(package)
    subprocess.run(["advzip", "--recompress", "--shrink-extra", "--quiet", path], check=True)  # 3 to 4 % smaller
    return path


if __name__ == "__main__":
    main()
