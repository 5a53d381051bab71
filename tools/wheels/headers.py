"""Where CPython's headers of each version come from: a folder that was named, this machine, or Debian's packages.

They are the same for every system but for pyconfig.h. That of Linux on x86_64 serves the other 64-bit Unixes, too: what
differs there isn't asked about by what an extension includes. Windows' is beside this file.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

WINDOWS_PYCONFIG = Path(__file__).resolve().parent / "windows"
_SUITES = {"3.11": "bookworm", "3.13": "trixie", "3.14": "forky"}  # of Debian, with a stable name


def headers_of(python: str, work: Path) -> Path | None:
    """A folder with `include`, where pyconfig.h isn't, and `pyconfig`, where it is. None where none were found."""
    kept = work / "headers" / python
    if (kept / "pyconfig" / "pyconfig.h").exists():
        return kept
    for folder in _places(python):
        config = folder / "pyconfig.h"
        beside = folder.parent / "x86_64-linux-gnu" / folder.name / "pyconfig.h"  # Debian's, for each architecture
        config = beside if beside.exists() else config
        if (folder / "Python.h").exists() and config.exists():
            return _keep(folder, config, kept)
    unpacked = _from_debian(python, work)
    if unpacked is None:
        return None
    folder = unpacked / "usr" / "include" / f"python{python}"
    return _keep(folder, folder.parent / "x86_64-linux-gnu" / folder.name / "pyconfig.h", kept)


def _keep(folder: Path, config: Path, kept: Path) -> Path:
    shutil.rmtree(kept, ignore_errors=True)
    # Python.h takes the pyconfig.h that lies beside it before any other
    shutil.copytree(folder, kept / "include", ignore=shutil.ignore_patterns("pyconfig.h"))
    (kept / "pyconfig").mkdir()
    shutil.copy(config, kept / "pyconfig" / "pyconfig.h")
    (kept / "from.txt").write_text(f"{folder}\n")
    return kept


def _places(python: str) -> list[Path]:
    named = [Path(p) for p in os.environ.get("PYTHON_HEADERS", "").split(os.pathsep) if p]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    versions = sorted(pyenv.glob(f"{python}.*"), key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)])
    own = [Path(sysconfig.get_path("include")).parent, Path("/usr/local/include"), Path("/usr/include")]
    pyenvs = [path / "include" for path in reversed(versions)]
    return [folder / f"python{python}" for folder in [*named, *own, *pyenvs]]


def _from_debian(python: str, work: Path) -> Path | None:
    """By apt's own client in a state of its own: the system's lists and packages stay as they are."""
    suite, keys = _SUITES.get(python), Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    if suite is None or shutil.which("apt-get") is None or not keys.exists():
        return None
    state = (work / "apt" / suite).resolve()
    for folder in ("lists/partial", "archives/partial", "etc/sources.list.d", "etc/preferences.d"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    mirrors = [*Path("/etc/apt/sources.list.d").glob("*"), Path("/etc/apt/sources.list")]
    text = "\n".join(path.read_text() for path in mirrors if path.is_file())
    mirror = re.search(r"https?://\S+/debian\b(?![-/]\w)", text)
    if mirror is None:
        return None
    (state / "etc" / "sources.list").write_text(f"deb [signed-by={keys}] {mirror.group()} {suite} main\n")
    options = [f"Dir::Etc={state}/etc", f"Dir::State::lists={state}/lists", f"Dir::Cache={state}"]
    apt = ["apt-get", "--quiet", "--quiet", *(word for option in options for word in ("-o", option))]
    packages = [f"libpython{python}-dev:amd64"]
    try:
        subprocess.run([*apt, "update"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([*apt, "download", *packages], check=True, cwd=state)
        for package in state.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", str(package), str(state / "unpacked")], check=True)
    except subprocess.CalledProcessError:
        return None
    return state / "unpacked"
