"""What a build makes of a clone and of an sdist, and of either without a compiler.

The wheel that the whole suite is run against was built from an sdist, with the extension: test_installed.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from lacking import LACKING
from source import SOURCE, files, package

# Scores with what is on the path, and prints what `info` says.
SCORE = """
import sys, warnings
# The finder of an editable installation would lend its own extension.
sys.meta_path = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
import torch, colbert_fast as cf
from colbert_fast.cli import main
assert cf.__file__.startswith(sys.argv[1]), cf.__file__
ones = torch.ones(1, 2, 3)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        assert cf.maxsim(ones, ones).item() == 6
print(len(caught), "warning:", *[w.message for w in caught])
sys.exit(main(["info"]))
"""
TRITON = """
import torch, colbert_fast as cf
ones = torch.ones(1, 2, 3)
assert cf.maxsim(ones, ones, backend="triton").item() == 6
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def build(source: Path, to: Path, kind: str, **environment: str) -> Path:
    to.mkdir(exist_ok=True)
    run(sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", to, source, cwd=to, **environment)
    (result,) = to.iterdir()
    return result


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `git clone` gives: a build leaves things behind, and finds what others left."""
    folder = tmp_path_factory.mktemp("clone")
    for name in files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((SOURCE / name).read_bytes())
        (folder / name).chmod((SOURCE / name).stat().st_mode)
    return folder


@pytest.fixture(scope="module")
def sdist(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources as somebody gets them who has no clone, unpacked."""
    archive, to = build(clone, tmp_path_factory.mktemp("sdist"), "sdist"), tmp_path_factory.mktemp("unpacked")
    with tarfile.open(archive) as tar:
        tar.extractall(to, filter="data")
    (source,) = to.iterdir()
    return source


def test_sdist_has_what_git_has(sdist: Path) -> None:
    made = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}
    assert files() - made <= {".gitignore"}
    assert {name.partition("/")[0] for name in made - files()} <= {"PKG-INFO", "setup.cfg", "colbert_fast.egg-info"}


@pytest.mark.parametrize(
    ("source", "environment"),
    [("clone", {"COLBERT_FAST_NO_EXTENSION": "1"}), ("sdist", {"PATH": "", "CC": "", "CXX": ""})],
    ids=["of a clone, as asked for", "of an sdist, no compiler"],
)
def test_wheel_without_the_extension(
    source: str, environment: dict[str, str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(source)
    # What an earlier build left, when there was a compiler.
    left = folder / f"build/lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}/colbert_fast"
    left.mkdir(parents=True)
    (left / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").touch()
    wheel = build(folder, tmp_path / "wheel", "wheel", **environment)
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == package()
        archive.extractall(site)
    info = run(sys.executable, "-W", "error", "-c", SCORE, site, cwd=tmp_path, PYTHONPATH=str(site))
    reason = "the C++ extension was not built when colbert-fast was installed: the compiler failed, or "
    assert f"1 warning: scoring with torch, several times slower: {reason}" in info
    assert f"extension              missing: {reason}" in info
    assert re.search(r"^  cpu +no: the C\+\+ extension is missing", info, re.MULTILINE)
    assert "torch                  runs on any device" in info
    if "interpreter" not in LACKING:
        run(sys.executable, "-c", TRITON, cwd=tmp_path, PYTHONPATH=str(site), TRITON_INTERPRET="1")
