"""Tests a wheel as its users get it: in fresh environments, without a compiler, on several Pythons.

    python release/test_wheel.py --wheels dist --python python3.10 --python python3.13 -- tests/test_maxsim.py

For each Python it makes an environment in a temporary folder, installs the wheel of that Python from the folder of
wheels, and runs the tests from the folder SUITE, which holds the tests and no colbert_fast. On POSIX the installer and
the tests find no program but those of the environment, and NEEDED: nothing can be compiled.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# Asks a Python for its tags in the names of wheels: cp313-cp313, or cp313-cp313t without the global interpreter lock.
TAGS = """
import sys, sysconfig
version = f"cp3{sys.version_info[1]}"
print(f"{version}-{version}" + "t" * bool(sysconfig.get_config_var("Py_GIL_DISABLED")))
"""
# What tests call beside Python.
NEEDED = ("sh", "git")
# Asks an environment what it has.
HAS = """
import platform, sys, numpy, torch, colbert_fast as cf
locked = "" if getattr(sys, "_is_gil_enabled", lambda: True)() else ", without the lock"
best = next(backend.name for backend in cf.backends() if backend.unsupported is None)
print(f"Python {platform.python_version()}{locked}, torch {torch.__version__}, numpy {numpy.__version__}, {best}")
"""


def main() -> int:
    """Test the wheel on every Python, print one line for each, and return how many failed."""
    parser = argparse.ArgumentParser(description="test a wheel in fresh environments without a compiler")
    parser.add_argument("--wheels", type=Path, required=True, help="the folder with the wheels, or one wheel")
    parser.add_argument("--python", action="append", required=True, help="a Python to test on; may be repeated")
    parser.add_argument("--suite", type=Path, default=Path("build/suite"), help="the folder of the tests")
    parser.add_argument("--install", default="", metavar="PACKAGES", help='with these: "torch==2.4.0 numpy==1.24.0"')
    parser.add_argument("--then", default="", metavar="PACKAGES", help="install these afterwards, and test once more")
    parser.add_argument("--site", type=Path, help="a folder of packages that the environments shall see, such as torch")
    parser.add_argument("tests", nargs="*", help="what pytest is given")
    given = parser.parse_args()
    lines = [line for python in given.python for line in tested(python, given)]
    print("\n".join(lines))
    return sum(not line.startswith("passed") for line in lines)


def tested(python: str, given: argparse.Namespace) -> list[str]:
    """Test on one Python. Returns a line for each run: whether it passed, what it ran on, and what pytest counted."""
    wheel = wheel_for(python, given.wheels)
    with tempfile.TemporaryDirectory(prefix="wheel-") as folder:
        environment = Path(folder, "environment")
        subprocess.run([python, "-m", "venv", environment], check=True)
        if given.site is not None:
            (site,) = environment.glob("[Ll]ib/**/site-packages")
            (site / "given.pth").write_text(f"{given.site.resolve()}\n", encoding="utf-8")
        lines = [once(environment, [str(wheel), "pytest", "hypothesis", *shlex.split(given.install)], wheel, given)]
        if given.then:
            lines.append(once(environment, shlex.split(given.then), wheel, given))
    return lines


def once(environment: Path, packages: list[str], wheel: Path, given: argparse.Namespace) -> str:
    """Install the packages and run the tests."""
    binaries = environment / ("Scripts" if os.name == "nt" else "bin")
    python = binaries / "python"
    # pip and the tests find no compiler, and no tree of colbert_fast.
    hidden = {"PATH", "CC", "CXX", "PYTHONPATH", "PYTHONHOME"} if os.name != "nt" else {"CC", "CXX", "PYTHONPATH"}
    variables = {name: value for name, value in os.environ.items() if name not in hidden}
    if os.name != "nt":
        programs = environment / "programs"
        programs.mkdir(exist_ok=True)
        for name in NEEDED:
            if (found := shutil.which(name)) and not (programs / name).exists():
                (programs / name).symlink_to(found)
        variables["PATH"] = f"{binaries}{os.pathsep}{programs}"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--only-binary", ":all:", *packages]
    subprocess.run(pip, check=True, env=variables, cwd=environment)
    has = subprocess.run(
        [python, "-c", HAS], check=True, env=variables, cwd=environment, capture_output=True, text=True
    )
    # What pytest prints is shown as it comes.
    last = ""
    command = [python, "-m", "pytest", "-p", "no:cacheprovider", *given.tests]
    with subprocess.Popen(command, env=variables, cwd=given.suite, stdout=subprocess.PIPE, text=True) as run:
        for last in run.stdout or ():
            print(last, end="", flush=True)
    counted = re.findall(r"(\d+ (?:passed|failed|skipped|deselected|errors?)\b)", last)
    outcome = "passed" if run.returncode == 0 else "failed"
    return f"{outcome}: {wheel.name}: {has.stdout.strip()}: {', '.join(counted)}"


def wheel_for(python: str, wheels: Path) -> Path:
    """Return the one wheel that is for this Python."""
    if wheels.is_file():
        return wheels.resolve()
    tags = subprocess.run([python, "-c", TAGS], check=True, capture_output=True, text=True).stdout.strip()
    found = sorted(wheels.resolve().glob(f"colbert_fast-*-{tags}-*.whl"))
    if len(found) != 1:
        msg = f"{wheels} must hold one wheel for {python}, colbert_fast-*-{tags}-*.whl; got {[w.name for w in found]}"
        raise SystemExit(msg)
    return found[0]


if __name__ == "__main__":
    sys.exit(main())
