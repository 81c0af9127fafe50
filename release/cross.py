"""Builds the wheels of other platforms with zig, warnings being errors, and runs what this machine can run of them.

    python release/cross.py                      every platform
    python release/cross.py x86_64-windows-gnu   some of them, by the names that zig gives them

Of each platform it makes build/cross/wheels/*.whl, for the Python that runs this program, and the program of
tests/cpp/kernels.cpp from the same objects. That program runs natively, under qemu, or under wine; where these are
missing, one line says so. What is made for macOS only has to compile and to link. Where .ci/aarch64_python has made
build/cross/aarch64, the wheel of AArch64 is loaded there, under qemu, and release/check_installed.py checks it.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "cross"
WHEELS = BUILD / "wheels"
CHECKS = [ROOT / "tests" / "cpp" / f"{name}.cpp" for name in ("kernels", "encode_checks", "upper_checks", "checks")]
MODULE = {"bindings.o", "tensors.o"}  # the Python module; no other object uses Python
PYTHON = f"{sys.version_info.major}{sys.version_info.minor}{getattr(sys, 'abiflags', '')}"  # "311", "314t"


@dataclass(frozen=True)
class Target:
    """A platform: what zig, wheels and extension modules call it, and where its programs run."""

    zig: str
    wheel: str
    suffix: str  # of an extension module, after the version of Python
    runs: Sequence[str]  # emulators, by name; "" if this machine runs it; empty for macOS
    models: Sequence[str] = ()  # processors that qemu plays; it plays every tier on the first
    libraries: str = ""  # where qemu finds the C library


TARGETS = [
    Target(
        "aarch64-linux-gnu.2.17",
        "manylinux_2_17_aarch64",
        f"cpython-{PYTHON}-aarch64-linux-gnu.so",
        ["qemu-aarch64", "qemu-aarch64-static"],
        ["max", "cortex-a72", "neoverse-n1"],
        "/usr/aarch64-linux-gnu",
    ),
    Target(
        "aarch64-linux-musl",
        "musllinux_1_2_aarch64",
        f"cpython-{PYTHON}-aarch64-linux-musl.so",
        ["qemu-aarch64", "qemu-aarch64-static"],
        ["max"],
    ),
    Target("x86_64-linux-musl", "musllinux_1_2_x86_64", f"cpython-{PYTHON}-x86_64-linux-musl.so", [""]),
    Target("x86_64-windows-gnu", "win_amd64", f"cp{PYTHON}-win_amd64.pyd", ["wine64", "wine", "/usr/lib/wine/wine64"]),
    Target("aarch64-windows-gnu", "win_arm64", f"cp{PYTHON}-win_arm64.pyd", []),
    Target("aarch64-macos", "macosx_13_0_arm64", f"cpython-{PYTHON}-darwin.so", []),
    Target("x86_64-macos", "macosx_13_0_x86_64", f"cpython-{PYTHON}-darwin.so", []),
]

# What CPython's headers read of pyconfig.h, for any platform. Its other headers are the same everywhere: the objects of
# Python that an extension sees depend on the sizes below, on MS_WINDOWS and on Py_GIL_DISABLED alone. So a wheel that
# was made with this file fits its platform's Python; that it loads there is proved where the wheel is loaded.
PYCONFIG = r"""
#ifndef Py_PYCONFIG_H
#define Py_PYCONFIG_H
#define SIZEOF_INT __SIZEOF_INT__
#define SIZEOF_LONG __SIZEOF_LONG__
#define SIZEOF_LONG_LONG __SIZEOF_LONG_LONG__
#define SIZEOF_SHORT __SIZEOF_SHORT__
#define SIZEOF_SIZE_T __SIZEOF_SIZE_T__
#define SIZEOF_TIME_T 8
#define SIZEOF_VOID_P __SIZEOF_POINTER__
#define SIZEOF_WCHAR_T __SIZEOF_WCHAR_T__
#define WITH_DOC_STRINGS 1
#define WITH_THREAD 1
#ifdef _WIN32
#define MS_WINDOWS
#define MS_WIN32
#define MS_WIN64
#define HAVE_DECLSPEC_DLL
#define NT_THREADS 1
#define Py_ENABLE_SHARED 1
#else
#define HAVE_PTHREAD_H 1
#define HAVE_SSIZE_T 1
#define HAVE_SYS_TIME_H 1
#define HAVE_SYS_TYPES_H 1
#define HAVE_UNISTD_H 1
#endif
#include <sys/types.h>
#endif
"""


def main() -> int:
    """Build and run, and return how many platforms failed."""
    parser = argparse.ArgumentParser(description="build the wheels of other platforms with zig")
    names = [target.zig for target in TARGETS]
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(names))
    parser.add_argument("--loaded", action="store_true", help="run no C++ tests, and fail if no Python loads the wheel")
    options = parser.parse_args()
    unknown = set(options.targets) - set(names)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    headers = python_headers()
    failed = 0
    for target in TARGETS:
        if options.targets and target.zig not in options.targets:
            continue
        try:
            folder = BUILD / target.zig
            wheel = built_wheel(target, folder, headers)
            report(target, [f"{wheel.name}, {wheel.stat().st_size / 2**20:.2f} MiB"])
            if not options.loaded:
                report(target, ran(target, built_program(target, folder)))
            report(target, loaded(target, wheel, options.loaded))
        except (AssertionError, OSError) as error:
            report(target, [f"FAILED: {error}"])
            failed += 1
    return failed


def report(target: Target, lines: Sequence[str]) -> None:
    for line in lines:
        print(f"{target.zig}: {line}", flush=True)


def output_of(*command: str | Path, env: dict[str, str] | None = None, errors: bool = True) -> str:
    """Return what a command printed, to stderr too if ``errors``; an AssertionError has all of it if it fails."""
    environment = None if env is None else {**os.environ, **env}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, (
        f"exit {done.returncode} of {shlex.join(map(str, command))}\n{done.stdout}{done.stderr}"
    )
    return done.stdout + (done.stderr if errors else "")


def zig(*arguments: str | Path) -> list[str | Path]:
    return [sys.executable, "-m", "ziglang", *arguments]


def python_headers() -> Path:
    """Return a folder with the headers of this Python, and a pyconfig.h for every platform."""
    folder = BUILD / f"python{PYTHON}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sysconfig.get_path("include"), folder, ignore=shutil.ignore_patterns("pyconfig*.h"))
    free_threaded = "#define Py_GIL_DISABLED 1\n" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    (folder / "pyconfig.h").write_text(free_threaded + PYCONFIG)
    return folder


def import_library(target: Target, folder: Path, headers: Path) -> None:
    """Make the library by which a linker learns what python3*.dll exports: all that the headers declare."""
    text = "\n".join(header.read_text(errors="replace") for header in sorted(headers.rglob("*.h")))
    functions = re.findall(r"PyAPI_FUNC\([^)]*\)\s*\**\s*(\w+)", text)
    data = re.findall(r"PyAPI_DATA\([^)]*\)\s*\**\s*(\w+)", text)
    exports = [*sorted(set(functions)), *sorted(f"{name} DATA" for name in set(data))]
    name = f"python{PYTHON}"
    definitions = folder / "python.def"
    definitions.write_text("\n".join([f"LIBRARY {name}.dll", "EXPORTS", *exports, ""]))
    machine = "i386:x86-64" if target.zig.startswith("x86_64") else "arm64"
    output_of(*zig("dlltool", "-m", machine, "-d", definitions, "-l", folder / f"{name}.lib"))


def compiler(target: Target, folder: Path, language: str, headers: Path) -> Path:
    """Return a program that compiles for a target, and finds these headers first."""
    path = folder / language
    command = shlex.join(map(str, zig(language, "-target", target.zig, "-Werror", f"-I{headers}")))
    path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def built_wheel(target: Target, folder: Path, headers: Path) -> Path:
    """Return the wheel that setup.py makes with its own flags, where each warning is an error."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    cc, cxx = (compiler(target, folder, language, headers) for language in ("cc", "c++"))
    link = [str(cxx), "-shared", "-s"]
    if "windows" in target.zig:
        import_library(target, folder, headers)
        link += [f"-L{folder}", f"-lpython{PYTHON}"]
    if "macos" in target.zig:
        link += ["-undefined", "dynamic_lookup"]
    environment = {
        "CC": str(cc),
        "CXX": str(cxx),
        "LDSHARED": shlex.join(link),
        "LDCXXSHARED": shlex.join(link),
        "SETUPTOOLS_EXT_SUFFIX": f".{target.suffix}",
    }
    for name in ("CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS"):
        environment[name] = ""
    # setup.py leaves out an extension that cannot be built.
    log = output_of(
        *(sys.executable, "setup.py", "--quiet", "build", "--build-base", folder),
        *("bdist_wheel", "--plat-name", target.wheel, "--dist-dir", folder / "wheel", "--bdist-dir", folder / "bdist"),
        env=environment,
    )
    wheels = list((folder / "wheel").glob("*.whl"))
    with zipfile.ZipFile(wheels[0]) as wheel:
        extension = f"colbert_fast/_C.{target.suffix}"
        assert extension in wheel.namelist(), f"there is no {extension} in {wheels[0].name}:\n{log}"
    WHEELS.mkdir(exist_ok=True)
    return Path(shutil.copy(wheels[0], WHEELS))


def built_program(target: Target, folder: Path) -> Path:
    """Return the program of the C++ tests, from the objects that are in the wheel."""
    cxx = folder / "c++"

    def compiled(source: Path) -> Path:
        to = folder / f"{source.stem}.o"
        output_of(cxx, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Icsrc", "-c", source, "-o", to)
        return to

    with ThreadPoolExecutor(os.cpu_count()) as executor:
        checks = list(executor.map(compiled, CHECKS))
    objects = [path for path in folder.glob("temp*/csrc/*/*.o") if path.name not in MODULE]
    program = folder / "kernels.exe"
    output_of(cxx, *checks, *sorted(objects), "-o", program)
    return program


def ran(target: Target, program: Path) -> list[str]:
    """Run a program where this machine can, and return lines that say so, or what is missing."""
    if not target.runs:
        return ["compiled and linked, not run: nothing here runs its programs"]
    runner = next((name for name in target.runs if not name or shutil.which(name)), None)
    if runner is None:
        return [f"compiled and linked, not run: there is no {' or '.join(target.runs)}"]
    if not runner:
        return [f"natively: {passed(program)}"]
    if not target.models:
        # Not below this tree: wine makes a link to the root of the file system, and setuptools follows links.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as prefix:
            environment = {"WINEPREFIX": prefix, "WINEDEBUG": "-all"}
            return [f"{runner}: {passed(runner, program, env=environment)}"]
    if target.libraries and not Path(target.libraries).is_dir():
        return [f"compiled and linked, not run: the C library for it is not in {target.libraries}"]
    emulator = [runner, *(["-L", target.libraries] if target.libraries else [])]
    every = [[*emulator, "-cpu", model, program, *(["best"] if i else [])] for i, model in enumerate(target.models)]
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        results = executor.map(lambda command: passed(*command), every)
        return [f"{runner} -cpu {model}: {result}" for model, result in zip(target.models, results, strict=True)]


def loaded(target: Target, wheel: Path, required: bool) -> list[str]:
    """Check a wheel with torch, under qemu, where this machine has a Python for it."""
    if not target.zig.startswith("aarch64-linux-gnu"):
        return []
    root = BUILD / "aarch64"
    python = root / "usr" / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    emulator = next((name for name in target.runs if shutil.which(name)), None)
    if not (root / ".complete").exists() or not python.exists() or emulator is None:
        lacks = f"no {python.name} for it, which .ci/aarch64_python brings on Debian, or no emulator"
        assert not required, lacks
        return [f"not loaded: there is {lacks}"]
    site = root / "site"
    shutil.rmtree(site / "colbert_fast", ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    lines = []
    # cortex-a72 has no dot products: the tiers that it cannot run must not keep the extension from loading.
    for model in ("max", "cortex-a72"):
        command: list[str | Path] = [emulator, "-L", root, "-cpu", model, python, "-W", "ignore"]
        checks = ROOT / "release" / "check_installed.py"
        said = output_of(*command, checks, env={"PYTHONPATH": str(site), "OMP_NUM_THREADS": "2"}, errors=False)
        lines.append(f"{emulator} -cpu {model}: {said.strip().splitlines()[-1]}")
    return lines


def passed(*command: str | Path, env: dict[str, str] | None = None) -> str:
    # wine reports on stderr, at any time.
    last = output_of(*command, env=env, errors=False).strip().splitlines()[-1]
    assert re.fullmatch(r"kernels: \d+ checks passed:( \w+)+", last), last
    return last


if __name__ == "__main__":
    sys.exit(main())
