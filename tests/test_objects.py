"""What the compiler makes of the tiers: nothing that the linker could prefer to the baseline's own copy."""

from __future__ import annotations

import os
import platform
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
    flags = ["-std=c++17", optimisation, "-Wall", "-Wextra", "-fvisibility=hidden", "-fPIC", f"-I{ROOT / 'csrc'}"]
    output_of(*CXX, *flags, "-c", ROOT / "csrc/tiers" / f"{tier}.cpp", "-o", folder / f"{tier}.o")
    return folder / f"{tier}.o"


@pytest.mark.parametrize("tier", ["avx2", "avx_vnni", "avx512"])
def test_a_tier_shares_nothing_but_its_table(tier: str, tmp_path: Path) -> None:
    lines = output_of("nm", "-C", "--defined-only", built(tier, "-O2", tmp_path)).splitlines()
    symbols = [line.split(maxsplit=2) for line in lines]
    assert [name for _, kind, name in symbols if kind in "WwVvu"] == []
    assert [name.lower() for _, kind, name in symbols if kind.isupper()] == [f"colbert_fast::k{tier.replace('_', '')}"]


@pytest.mark.parametrize("tier", ["avx2", "avx_vnni", "avx512"])
def test_what_a_debug_build_shares_is_baseline(tier: str, tmp_path: Path) -> None:
    # Nothing is inlined at -O0. A shared inline function gets a section of its own, and the linker keeps any one copy.
    listing = output_of("objdump", "-d", "--no-show-raw-insn", built(tier, "-O0", tmp_path))
    own, *shared = re.split(r"^Disassembly of section ", listing, flags=re.MULTILINE)[1:]
    assert own.startswith(".text:")
    avx = re.compile(r"^\s+[0-9a-f]+:\s+v\w+.*$", re.MULTILINE)
    assert [avx.findall(section) for section in shared] == [[]] * len(shared)
    if "x86-64" in listing:
        assert avx.search(own)


LEFT_OUT = """
#include <cstdio>
#include <initializer_list>
#include "maxsim.h"
int main() {
  for (const colbert_fast::Tier* tier : {&colbert_fast::kAmx, &colbert_fast::kAvx512Bf16, &colbert_fast::kAvxVnni})
    std::printf("%s: %s\\n", tier->name, tier->unsupported());
}
"""


@pytest.mark.skipif(platform.machine().lower() not in {"x86_64", "amd64"}, reason="the tiers are of x86-64")
def test_what_an_old_compiler_leaves_out_says_what_it_takes(tmp_path: Path) -> None:
    (tmp_path / "program.cpp").write_text(LEFT_OUT)
    tiers = [f"tiers/{name}" for name in ("amx", "avx512_bf16", "avx_vnni")]
    sources = [ROOT / f"csrc/{name}.cpp" for name in (*tiers, "host/amx_permission", "host/cpu_features")]
    flags = ["-std=c++17", "-Wall", "-Wextra", "-DCF_OLD_COMPILER", f"-I{ROOT / 'csrc'}"]
    output_of(*CXX, *flags, tmp_path / "program.cpp", *sources, "-o", tmp_path / "program")
    assert output_of(tmp_path / "program").splitlines() == [
        "amx: built without AMX, which takes x86-64, Linux and GCC 11 or Clang 12",
        "avx512_bf16: built without AVX512-BF16, which takes GCC 10, Clang 9 or Visual Studio 2022",
        "avx_vnni: built without AVX-VNNI, which takes GCC 11, Clang 12 or Visual Studio 2022",
    ]


# The multiply-adds of a full tile of rows x vectors: each is one chain.
FULL_TILES = {
    "avx2": {"vfmadd": (6, 2)},
    "avx_vnni": {"vpdpbusd": (6, 2)},
    "avx512": {"vfmadd": (12, 2)},
    "avx512_vnni": {"vpdpbusd": (12, 2)},
    "avx512_bf16": {"vpdpbusd": (12, 2), "vdpbf16ps": (12, 2)},
}


@pytest.mark.parametrize("tier", FULL_TILES)
def test_the_chains_of_a_full_tile_stay_in_registers(tier: str, tmp_path: Path) -> None:
    """GCC 12 keeps them in memory for a word in the wrong place, which takes 1.6 times as long and no test fails."""
    listing = output_of("objdump", "-d", "--no-show-raw-insn", "-C", built(tier, "-O2", tmp_path))
    if "x86-64" not in listing:
        pytest.skip(f"{tier} is built for x86-64 only")
    functions = re.split(r"\n\n(?=[0-9a-f]+ <)", listing)
    for instruction, (rows, vectors) in FULL_TILES[tier].items():
        tiles = [f for f in functions if re.match(rf".*Tile<[^>]*>::compute<{rows}, {vectors}, ", f)]
        loops = []
        for tile in tiles:
            lines = tile.splitlines()
            chains = [i for i, line in enumerate(lines) if re.search(rf"\s{instruction}", line)]
            if len(chains) == rows * vectors:
                loops.append("\n".join(lines[chains[0] : chains[-1] + 1]))
        assert loops
        spills = re.compile(r".*%[yz]mm\d.*\(%r[sb]p.*|.*\(%r[sb]p.*%[yz]mm\d.*")
        assert [spills.findall(loop) for loop in loops] == [[]] * len(loops)
