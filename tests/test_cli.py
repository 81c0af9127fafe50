"""The commands colbert-fast info, demo and bench."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import colbert_fast as cf
from colbert_fast import _backends, _info, _interrupts, cli
from colbert_fast.cli.output import tell


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
    """Return what info prints, as JSON and as text. Both have the same exit status."""
    assert cli.main(["info", "--json"]) == status
    facts = json.loads(capsys.readouterr().out)
    assert cli.main(["info"]) == status
    return facts, capsys.readouterr().out


def test_info_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    facts, text = told(capsys, 0)
    assert facts["version"] == cf.__version__ and facts["folder"] in text and facts["cpu"] in text
    assert facts["packages"]["torch"] in text and {"onnx", "onnxruntime", "openvino"} <= set(facts["packages"])
    assert facts["override"] == {"variable": None, "backend": None} and facts["problems"] == []
    assert facts["threads"] == {"number": cf.get_num_threads(), "variable": None}
    assert facts["extension"]["missing"] is None and Path(facts["extension"]["file"]).is_file()
    backends = [(b["name"], b["unsupported"], b["device"], b["int8"]) for b in facts["backends"]]
    assert backends == [(b.name, b.unsupported, b.device, b.int8) for b in cf.backends()]
    page = (Path(__file__).parents[1] / "docs" / "command-line.md").read_text(encoding="utf-8")
    documented = re.search(r"`info --json` prints the same with these keys:\n\n(.*?)\n\n", page, re.DOTALL)
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
    monkeypatch.setattr(cli.encoders, "_DEMO_MODEL", "no_such_package")
    assert cli.main(["demo"]) == 1
    said = capsys.readouterr().err
    assert "pip install 'colbert-fast[demo]'" in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "required: command"),
        (["bogus"], "invalid choice"),
        (["info", "--bogus"], "unrecognized arguments: --bogus"),
        (["demo", "--top", "0"], "argument --top: must be a number of 1 or more; got '0'"),
        (["demo", "--top", "-1"], "argument --top: must be a number of 1 or more; got '-1'"),
        (["demo", ""], "a question must have words; got ''"),
        (["demo", "why?", " \n"], r"a question must have words; got ' \n'"),
        (["demo", "\udcff"], r"a question must be text in UTF-8; got '\udcff'"),
        (["demo", "\ud800"], r"a question must be text in UTF-8; got '\ud800'"),
        (["bench", "bogus"], "no workload bogus; there are rerank-text-float32, "),
        (["bench", "--rounds", "0"], "argument --rounds: must be a number of 1 or more; got '0'"),
        (["bench", "--rounds", "9" * 20], f"argument --rounds: must be 1000000 or less; got {'9' * 20}"),
        (["bench", "--rounds", "9" * 5000], "argument --rounds: must be 1000000 or less; got 9999999999"),
    ],
)
def test_usage(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    out, err = capsys.readouterr()
    assert err.startswith("colbert-fast") and reason in err and not out
    assert len(err.splitlines()) == 1 and err.endswith(" --help\n")


@pytest.mark.needs("demo")
@pytest.mark.parametrize("top", ["1000000000", "9" * 30])
def test_demo_shows_at_most_all_passages(top: str, capsys: pytest.CaptureFixture[str]) -> None:
    passages = json.loads(cli.demo._TEXTS.read_text(encoding="utf-8"))["passages"]
    assert cli.main(["demo", "what makes the tides?", "--top", top]) == 0
    ranks = [line.split()[0] for line in capsys.readouterr().out.splitlines() if re.match(r" +\d+ +\d", line)]
    assert ranks == [str(rank) for rank in range(1, len(passages) + 1)]


@pytest.mark.parametrize("content", [None, "not JSON", '"text"', "[]", "{}", '{"queries": 1, "passages": []}'])
def test_demo_texts_that_cannot_be_read(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = tmp_path / "texts.json"
    if content is not None:
        texts.write_text(content)
    monkeypatch.setattr(cli.demo, "_TEXTS", texts)
    assert cli.main(["demo"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"colbert-fast: the demo's texts cannot be read from {texts}: ")
    assert len(said.splitlines()) == 1


def test_any_error_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        msg = "no memory\nfor it"
        raise RuntimeError(msg)

    monkeypatch.setattr(_info, "facts", fail)
    assert cli.main(["info"]) == 1
    assert capsys.readouterr().err == "colbert-fast: RuntimeError: no memory for it\n"


MODULE = [sys.executable, "-m", "colbert_fast"]


def test_module_and_script_are_the_same() -> None:
    done = subprocess.run([*MODULE, "--version"], capture_output=True, text=True)
    assert done.stdout.strip() == f"colbert-fast {cf.__version__}"


posix = pytest.mark.skipif(os.name != "posix", reason="needs file descriptors and signals of POSIX")
full_disk = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
# Commands whose text argparse prints, and one whose text we print; with and without a buffer.
writers = pytest.mark.parametrize(("arguments", "unbuffered"), [(["info"], ""), (["--help"], ""), (["--version"], "1")])


@posix
@writers
def test_closed_pipe(arguments: list[str], unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(
        [*MODULE, *arguments], stdout=writing, stderr=subprocess.PIPE, text=True, env=environment, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@full_disk
@writers
def test_full_disk(arguments: list[str], unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*MODULE, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False
        )
        assert done.returncode == 1
        assert done.stderr == "colbert-fast: cannot write to standard output: No space left on device\n"


@full_disk
def test_full_disk_for_errors() -> None:
    """No line can be printed, so only the exit status tells of the error."""
    with open("/dev/full", "w") as full:
        assert subprocess.run([*MODULE, "bogus"], stderr=full, check=False).returncode == 2
        assert subprocess.run([*MODULE, "demo", "--backend", "bogus"], stderr=full, check=False).returncode == 1


def shell(redirection: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", *MODULE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@posix
@pytest.mark.parametrize("arguments", [["info"], ["--version"], ["bench", "latency-float32"]], ids=" ".join)
def test_closed_stdout(arguments: list[str]) -> None:
    done = shell(">&-", *arguments)
    assert (done.returncode, done.stderr) == (1, "colbert-fast: standard output is closed\n")


@posix
def test_a_disk_that_gets_full(tmp_path: Path) -> None:
    """Without a buffer the system takes the first part of the text, and reports no error for it."""
    script = """
import resource, signal, sys
from colbert_fast.cli.output import write
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.exit(write("x" * 5000, 2))
"""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with open(tmp_path / "out", "w") as out:
        done = subprocess.run([sys.executable, "-c", script], stdout=out, stderr=subprocess.PIPE, env=environment)
    assert (done.returncode, done.stderr) == (2, b"colbert-fast: cannot write to standard output: File too large\n")


def test_a_line_is_never_huge(capsys: pytest.CaptureFixture[str]) -> None:
    tell(f"line 7: got {'x' * 10**6}: no string")
    said = capsys.readouterr().err
    assert said.startswith("colbert-fast: line 7: got x") and said.endswith("x: no string\n") and len(said) < 1100


@posix
def test_closed_stderr() -> None:
    for arguments, status, said in ((["--version"], 0, "colbert-fast"), (["bogus"], 2, ""), (["demo", ""], 2, "")):
        done = shell("2>&-", *arguments)
        assert done.returncode == status and done.stdout.startswith(said) and bool(said) == bool(done.stdout)
    assert shell(">&- 2>&-", "info").returncode == 1
    assert shell("<&-", "--version").returncode == 0


@posix
@pytest.mark.needs("demo")
@pytest.mark.parametrize(
    ("variables", "shown"),
    [
        ({"PYTHONIOENCODING": "ascii"}, r"caf\xe9 \u201ctides\u201d"),
        ({"PYTHONIOENCODING": "latin-1"}, r"caf\xe9 \u201ctides\u201d".replace(r"\xe9", "\xe9")),
        ({"LC_ALL": "C"}, "caf\xe9 \u201ctides\u201d"),
        ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, r"caf\xe9 \u201ctides\u201d"),
    ],
)
def test_terminal_that_lacks_a_letter(variables: dict[str, str], shown: str) -> None:
    """A letter that the terminal cannot show is printed as an escape. The question is read as UTF-8 in any case."""
    command = [*MODULE, "demo", "caf\xe9 \u201ctides\u201d".encode(), "--top", "1"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, **variables}, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    encoding = "latin-1" if "latin-1" in variables.values() else "utf-8"
    assert done.stdout.decode(encoding).splitlines()[1] == shown


@pytest.fixture
def ctrl_c_is_heard() -> Iterator[None]:
    """A process that a shell starts in the background ignores Ctrl-C, and its children do too. Undo this here."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@posix
@pytest.mark.usefixtures("ctrl_c_is_heard")
@pytest.mark.parametrize("started", ["module", "colbert-fast", "other.py"])
def test_ctrl_c_during_the_import(started: str, tmp_path: Path) -> None:
    """The command ends without a message. Another program that imports the package gets its KeyboardInterrupt."""
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport absent\n")
    script = tmp_path / started
    script.write_text("import sys\nfrom colbert_fast.cli import main\nsys.exit(main())\n")
    command = [*MODULE, "info"] if started == "module" else [sys.executable, str(script), "info"]
    root = str(Path(cf.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), root])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if started == "other.py":
        assert done.returncode == -signal.SIGINT and done.stderr.rstrip().endswith("KeyboardInterrupt")
    else:
        assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGINT, "", "")


@pytest.mark.parametrize(
    ("argv", "started", "expected"),
    [
        (["/usr/bin/colbert-fast", "info"], ["python", "/usr/bin/colbert-fast", "info"], True),
        (["-m", "info"], ["python", "-O", "-m", "colbert_fast", "info"], True),
        (["-m", "colbert_fast"], ["python", "-m", "pytest", "colbert_fast"], False),
        (["-m"], ["python", "-mcolbert_fast.cli"], False),
        (["server.py", "colbert-fast"], ["python", "server.py", "colbert-fast"], False),
        (["-c"], ["python", "-c", "import colbert_fast"], False),
        ([], ["python"], False),
    ],
)
def test_what_is_the_command(
    argv: list[str], started: list[str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", started)
    assert _interrupts.is_command() is expected


@posix
@pytest.mark.usefixtures("ctrl_c_is_heard")
@pytest.mark.parametrize("place", ["_info.facts", "cli.demo.run", "cli._parse", "cli.write"])
def test_ctrl_c_in_a_command(place: str) -> None:
    script = f"""
import os, signal, sys
from colbert_fast import _info, cli
def interrupt(*_):
    os.kill(os.getpid(), signal.SIGINT)
    while True:
        pass
{place} = interrupt
sys.exit(cli.main())
"""
    command = [sys.executable, "-c", script, "demo" if "demo" in place else "info"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "colbert-fast: interrupted\n")
