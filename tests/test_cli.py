"""colbert-fast info and demo."""

from __future__ import annotations

import subprocess
import sys

import pytest

import colbert_fast as cf
from colbert_fast import cli


def test_info_names_every_backend(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    for backend in cf.backends():
        (line,) = [line for line in out.splitlines() if line.split()[:1] == [backend.name]][-1:]
        assert (f"no: {backend.unsupported}" if backend.unsupported else "runs on") in line
    assert cf.__version__ in out


def test_demo_ranks_real_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--top", "2"]) == 0
    out = capsys.readouterr().out
    for first in ("A star stays in balance", "In photosynthesis", "A wing stalls"):
        assert any(line.split()[:1] == ["1"] and first in line for line in out.splitlines())
    best = next(b.name for b in cf.backends() if b.unsupported is None)
    assert f"with {best}, {cf.get_num_threads()} threads" in out


def test_demo_takes_questions_and_a_backend(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "what makes the tides?", "--top", "1", "--backend", "torch"]) == 0
    out = capsys.readouterr().out
    assert "Tides are raised by the gravity of the Moon" in out
    assert "with torch" in out


def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["demo", "--backend", "nonsense"]) == 1
    assert capsys.readouterr().err.startswith("colbert-fast: no backend is called 'nonsense'")
    monkeypatch.setattr(cli, "_DEMO_MODEL", "no_such_package")
    assert cli.main(["demo"]) == 1
    assert "pip install 'colbert-fast[demo]'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["demo", "--top", "0"], [], ["bogus"]])
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert "usage: colbert-fast" in capsys.readouterr().err


def test_module_and_script_are_the_same() -> None:
    done = subprocess.run([sys.executable, "-m", "colbert_fast", "--version"], capture_output=True, text=True)
    assert done.stdout.strip() == f"colbert-fast {cf.__version__}"
