"""``colbert-fast bench``."""

from __future__ import annotations

import argparse
import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from colbert_fast import bench
from colbert_fast.cli.arguments import positive
from colbert_fast.cli.output import INTERRUPTED, shortened, tell

_MAX_ROUNDS = 10**6


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("bench", help="time our backends, torch and sentence-transformers on this machine")
    names = [w.name for w in bench.WORKLOADS]
    others = ", ".join(name for name in names if name not in bench.SHORT)
    parser.add_argument("workload", nargs="*", help=f"default: {', '.join(bench.SHORT)}; others: {others}")
    parser.add_argument("--rounds", type=_rounds, default=20, help="times that each is timed (default 20)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run, check=lambda chosen: _check(parser, chosen))


def run(chosen: argparse.Namespace) -> tuple[list[str], int]:
    """Return what is printed, as lines, and the exit status."""
    with _sigterm_as_ctrl_c() as received:
        report = bench.run(tuple(chosen.workload) or bench.SHORT, chosen.rounds)
    status = 0
    if report["interrupted"]:
        rows = [row for workload in report["workloads"] for row in workload["results"] if "reason" not in row]
        tell(f"interrupted; {'what was measured so far is on standard output' if rows else 'nothing was measured'}")
        status = 128 + received[0] if received else INTERRUPTED
    return bench.as_json(report) if chosen.json else bench.as_text(report), status


def _check(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    names = [w.name for w in bench.WORKLOADS]
    if unknown := set(chosen.workload) - set(names):
        parser.error(f"no workload {', '.join(sorted(unknown))}; there are {', '.join(names)}")


def _rounds(text: str) -> int:
    number = positive(text)
    if number > _MAX_ROUNDS:
        msg = f"must be {_MAX_ROUNDS} or less; got {shortened(text)}"
        raise argparse.ArgumentTypeError(msg)
    return number


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt at SIGTERM in this context, and add the signal's number to the list that is yielded."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)
