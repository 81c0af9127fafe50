"""What the compiler makes of the tiers: nothing that the linker could prefer to the baseline's own copy."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CXX = shlex.split(os.environ.get("CXX", "c++"))


pytestmark = pytest.mark.skipif(
    os.name != "posix" or not all(map(shutil.which, [CXX[0], "nm", "objdump"])),
    reason=f"needs a C++ compiler ({CXX[0]}), nm and objdump",
)


def output_of(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def built(tier: str, optimisation: str, folder: Path) -> Path:
    flags = ["-std=c++17", optimisation, "-Wall", "-Wextra", "-fvisibility=hidden", "-fPIC"]
    output_of(*CXX, *flags, "-c", ROOT / "csrc" / f"{tier}.cpp", "-o", folder / f"{tier}.o")
    return folder / f"{tier}.o"


@pytest.mark.parametrize("tier", ["avx2", "avx_vnni", "avx512"])
def test_a_tier_shares_nothing_but_its_table(tier: str, tmp_path: Path) -> None:
    lines = output_of("nm", "-C", "--defined-only", built(tier, "-O3", tmp_path)).splitlines()
    symbols = [line.split(maxsplit=2) for line in lines]
    assert [name for _, kind, name in symbols if kind in "WwVvu"] == []
    assert [name.lower() for _, kind, name in symbols if kind.isupper()] == [f"colbert_fast::k{tier.replace('_', '')}"]


@pytest.mark.parametrize("tier", ["avx2", "avx_vnni", "avx512"])
def test_what_a_debug_build_shares_is_baseline(tier: str, tmp_path: Path) -> None:
    # Nothing is inlined at -O0, and a shared inline function gets a section of its own, of which the linker keeps any.
    listing = output_of("objdump", "-d", "--no-show-raw-insn", built(tier, "-O0", tmp_path))
    own, *shared = re.split(r"^Disassembly of section ", listing, flags=re.MULTILINE)[1:]
    assert own.startswith(".text:")
    avx = re.compile(r"^\s+[0-9a-f]+:\s+v\w+.*$", re.MULTILINE)
    assert [avx.findall(section) for section in shared] == [[]] * len(shared)
    if "x86-64" in listing:
        assert avx.search(own)
