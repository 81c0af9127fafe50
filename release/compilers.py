"""Builds an sdist with each C++ compiler that is here, and with flags that distributions use; scores with each build.

    python release/compilers.py SDIST                        the compilers below that are on the PATH
    python release/compilers.py SDIST g++-9 "clang++ -m64"   these
    python release/compilers.py SDIST --flags "-O3 -g"       the default compiler with these flags, instead of FLAGS

This Python must have pip, setuptools, pybind11, numpy and torch. The first build is isolated. A build that warns, that
has no extension, or that scores otherwise than float64 is a fault. It is built in a folder whose name has spaces.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

COMPILERS = [*(f"g++-{version}" for version in range(9, 16)), *(f"clang++-{version}" for version in range(14, 22))]
# setup.py's own -O2 comes after them.
FLAGS = ["-march=x86-64-v3", "-march=native", "-g"]
# After release/check_installed.py: the last line is of the tiers, each with what its scores are to the bit, or with why
# it was left out.
SCORE = """
import json, runpy, sys, zlib
runpy.run_path(sys.argv.pop(), run_name="__main__")
import torch, colbert_fast as cf
random = torch.Generator().manual_seed(1)
queries, documents = torch.randn(3, 32, 300, generator=random), torch.randn(9, 50, 300, generator=random)
told = {}
for name, reason in cf._backends.cpu._C.tiers():
    told[name] = reason
    if reason is None:
        scores = [cf.maxsim(queries.to(t), documents.to(t), backend="cpu:" + name) for t in (torch.float32, torch.half)]
        told[name] = zlib.crc32(torch.cat(scores).numpy().tobytes())
print(json.dumps(told))
"""


class Result(NamedTuple):
    """What became of one build."""

    compiler: str
    flags: str
    fault: str
    size: int
    tiers: dict[str, str | int]

    def left_out(self) -> list[str]:
        """Return the tiers that this compiler could not build."""
        return [name for name, told in self.tiers.items() if isinstance(told, str) and told.startswith("built without")]


def main() -> None:
    """Build, score and print the table; exits with 1 if a build failed."""
    parser = argparse.ArgumentParser(description="build an sdist with each compiler that is here")
    parser.add_argument("sdist", type=Path)
    parser.add_argument("compilers", nargs="*", metavar="COMPILER", help="instead of those on the PATH")
    parser.add_argument("--flags", action="append", help="for the default compiler, instead of some usual ones")
    arguments = parser.parse_args()
    wanted = arguments.compilers or COMPILERS
    here = [compiler for compiler in wanted if shutil.which(shlex.split(compiler)[0])]
    missing = [compiler for compiler in wanted if compiler not in here]
    default = os.environ.get("CXX", "c++")
    sdist = arguments.sdist.resolve(strict=True)
    builds = [(default, "", True), *((compiler, "", False) for compiler in here)]
    builds += [(default, flags, False) for flags in arguments.flags or FLAGS]
    results = []
    for compiler, flags, isolated in builds:
        results.append(result := built(sdist, compiler, flags, isolated))
        print(f"{compiler} {flags}: {result.fault.strip() or 'scores'}", flush=True)
    print("\n".join(["", *table(results), ""]))
    if missing:
        print(f"Not here: {', '.join(missing)}.")
    if arguments.compilers and missing:
        sys.exit("a compiler that was asked for is not here")
    if any(result.fault for result in results):
        sys.exit(1)


def built(sdist: Path, compiler: str, flags: str, isolated: bool) -> Result:
    """Build a wheel with the compiler, and score with it."""
    flags_told = f"{flags} (isolated)".strip() if isolated else flags
    with tempfile.TemporaryDirectory(prefix="with spaces ") as folder:
        wheels, site = Path(folder, "wheels"), Path(folder, "site")
        command = ["pip", "wheel", "--verbose", "--no-deps", "--no-cache-dir", "--wheel-dir", str(wheels), str(sdist)]
        # setuptools compiles with CC where it is old, and else with CXX.
        environment = {"CC": compiler, "CXX": compiler, "CFLAGS": flags, "CXXFLAGS": flags, "TMPDIR": folder}
        done = run([*command, *([] if isolated else ["--no-build-isolation"])], folder, **environment)
        if done.returncode != 0:
            return Result(compiler, flags_told, done.stdout, 0, {})
        (wheel,) = wheels.iterdir()
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
        extensions = [path for path in site.glob("colbert_fast/_C.*") if path.suffix != ".pyi"]
        if len(extensions) != 1:
            return Result(compiler, flags_told, f"{done.stdout}\nthe extension was not built", 0, {})
        size = extensions[0].stat().st_size
        warnings = [line for line in done.stdout.splitlines() if ": warning: " in line]
        scored = run(["-c", SCORE, str(Path(__file__).with_name("check_installed.py"))], folder, PYTHONPATH=str(site))
        if scored.returncode != 0:
            return Result(compiler, flags_told, scored.stdout, size, {})
        tiers = json.loads(scored.stdout.splitlines()[-1])
        return Result(compiler, flags_told, "\n".join(warnings), size, tiers)


def run(command: list[str], folder: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a module, or a program, of this Python."""
    command = [sys.executable, *([] if command[0] == "-c" else ["-m"]), *command]
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def table(results: list[Result]) -> list[str]:
    """Return the lines of the table. Scores are compared with those of the first build that has scores."""
    first = next((result.tiers for result in results if result.tiers), {})
    rows = [("compiler", "flags", "KB", "fault", "left out", "other bits than the first")]
    for result in results:
        fault = "" if not result.fault else "warns" if result.tiers else "fails"
        other = [name for name, told in result.tiers.items() if isinstance(told, int) and told != first.get(name)]
        size = f"{result.size / 1000:.0f}"
        rows.append((result.compiler, result.flags, size, fault, ", ".join(result.left_out()), ", ".join(other)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    reasons = {result.tiers[name] for result in results for name in result.left_out()}
    return [*lines, *(f"  {reason}" for reason in sorted(map(str, reasons)))]


if __name__ == "__main__":
    main()
