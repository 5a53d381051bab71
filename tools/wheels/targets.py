"""The systems that wheels are made for: what zig, pip and Python call each."""

from __future__ import annotations

from dataclasses import dataclass

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")


@dataclass(frozen=True)
class Target:
    """triple: zig's; tag: a wheel's; suffix: of a module's file, {tag} is cp311 and {number} 311; isas: the instruction
    sets that a build for it has."""

    name: str
    triple: str
    tag: str
    suffix: str
    isas: tuple[str, ...]

    @property
    def system(self) -> str:
        return self.name.partition("-")[0]

    def module_file(self, module: str, python: str) -> str:
        number = python.replace(".", "")
        return module + self.suffix.format(tag=f"cp{number}", number=number)

    def wheel_tag(self, python: str) -> str:
        tag = "cp" + python.replace(".", "")
        return f"{tag}-{tag}-{self.tag}"


_X86 = ("portable", "avx2", "avx2vnni", "avx512")
_ARM = ("portable", "neon")

TARGETS = {
    target.name: target
    for target in (
        Target(
            "linux-x86_64",
            "x86_64-linux-gnu.2.17",
            "manylinux_2_17_x86_64.manylinux2014_x86_64",
            ".cpython-{number}-x86_64-linux-gnu.so",
            _X86,
        ),
        Target(
            "linux-aarch64",
            "aarch64-linux-gnu.2.17",
            "manylinux_2_17_aarch64.manylinux2014_aarch64",
            ".cpython-{number}-aarch64-linux-gnu.so",
            _ARM,
        ),
        Target("windows-x86_64", "x86_64-windows-gnu", "win_amd64", ".{tag}-win_amd64.pyd", _X86),
        Target("macos-arm64", "aarch64-macos.11.0", "macosx_11_0_arm64", ".cpython-{number}-darwin.so", _ARM),
        Target("macos-x86_64", "x86_64-macos.11.0", "macosx_11_0_x86_64", ".cpython-{number}-darwin.so", _X86),
    )
}
