"""What the documentation names is there."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
ROOMS = (
    "smallthinker",
    "router",
    "expert_store",
    "cache",
    "kernels",
    "tests",
    "bench",
    "docs",
    "examples",
    "recipes",
    "tools",
)
NOT_OURS = {"llama.cpp", "pyconfig.h", "python3.X/Python.h", "python3.X/pyconfig.h"}


def test_source_files_and_pictures_that_a_page_names_exist() -> None:
    there = {f"/{path.relative_to(ROOT).as_posix()}" for room in ROOMS for path in (ROOT / room).rglob("*.*")}
    there.add("/setup.py")
    missing = [
        f"{page.name}: {name}"
        for page in PAGES
        for name in re.findall(r"[\w./-]+\.(?:py|pyi|h|cpp|sh)\b|images/[\w.-]+", page.read_text(encoding="utf-8"))
        if name not in NOT_OURS and not any(path.endswith("/" + name.removeprefix("../")) for path in there)
    ]
    assert not missing


def test_the_picture_of_a_token_s_way_is_what_its_script_draws() -> None:
    script = ROOT / "docs" / "images" / "token_way.py"
    assert script.with_name("token-way.svg").read_bytes() == runpy.run_path(str(script))["drawing"]().encode()
