"""The package as it is installed: sdist, wheel, and a wheel without the extension."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def build(source: Path, to: Path, kind: str, **environment: str) -> Path:
    to.mkdir(exist_ok=True)
    run(sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", to, source, cwd=to, **environment)
    (result,) = to.iterdir()
    return result


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("sdist"), "sdist")


@pytest.fixture
def sdist(archive: Path, tmp_path: Path) -> Path:
    """The sources as somebody gets them who has no checkout: unpacked anew, for a build leaves things behind."""
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    return source


def scored_with(wheel: Path, tmp_path: Path) -> str:
    """Install the wheel on its own, score with it, and return what `info` says."""
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        # The finder of an editable installation would lend its own extension.
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in getattr(f, '__module__', '')]; "
        "import torch, colbert_fast as cf; from colbert_fast.cli import main; "
        f"assert cf.__file__.startswith({str(site)!r}); "
        "assert cf.maxsim(torch.ones(1, 2, 3), torch.ones(1, 2, 3)).item() == 6; sys.exit(main(['info']))"
    )
    return run(sys.executable, "-W", "error", "-c", code, cwd=tmp_path, PYTHONPATH=str(site))


def test_sdist_has_what_a_build_and_a_test_need(sdist: Path) -> None:
    for name in ("csrc/maxsim.h", "csrc/avx2.cpp", "tests/cases.py", "LICENSE", "README.md", "CHANGELOG.md"):
        assert (sdist / name).is_file(), name
    assert not list(sdist.rglob("*.so"))


def test_wheel_from_the_sdist(sdist: Path, tmp_path: Path) -> None:
    wheel = build(sdist, tmp_path / "wheel", "wheel")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"colbert_fast/py.typed", "colbert_fast/_C.pyi", "colbert_fast/demo_texts.json"} <= set(names)
    assert any(name.startswith("colbert_fast/_C.") and name.endswith((".so", ".pyd")) for name in names)
    assert not any(name.startswith(("tests", "csrc", "benchmarks")) for name in names)
    assert "cpu:portable           runs on cpu" in scored_with(wheel, tmp_path)


@pytest.mark.parametrize(
    "environment",
    [{"COLBERT_FAST_NO_EXTENSION": "1"}, {"CC": "no-such-compiler", "CXX": "no-such-compiler"}],
    ids=["asked for", "no compiler"],
)
def test_wheel_without_the_extension(sdist: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    wheel = build(sdist, tmp_path / "wheel", "wheel", **environment)
    assert not any(name.endswith((".so", ".pyd")) for name in zipfile.ZipFile(wheel).namelist())
    info = scored_with(wheel, tmp_path)
    assert "cpu:portable           no: the C++ extension is not there" in info
    assert "torch                  runs on any device" in info
