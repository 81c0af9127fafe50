"""The command line ``colbert-fast``: one file for each command.

Which file does what:

- The commands: `info`, `demo`, `bench`, `rank`, `evaluate`, `explain`, `encode`, `search`. Each has `add`, which
  declares the arguments, and `run`, which returns what is printed and the exit status.
- Read: `arguments` (words of the command line), `texts` (files of queries and documents), `runs` (TREC run files).
- Work: `encoders` loads a model; `embedding` embeds texts in shards, which may be kept; `collecting` embeds texts into
  a collection; `ranking` ranks documents; `bm25` finds candidates; `measures` measures rankings.
- Write: `output` writes standard output, and files that are whole or not there; `notices` shows warnings and progress.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import colbert_fast as cf
from colbert_fast import _interrupts
from colbert_fast.cli import bench, demo, encode, evaluate, explain, info, rank, search
from colbert_fast.cli.output import CLOSED_PIPE, INTERRUPTED, flush_stderr, tell, write

_COMMANDS = (info, demo, bench, rank, evaluate, explain, encode, search)
# The errors that a user can mend. Commands that read files of the user end with the status 2 then, as argparse does.
_MISTAKES = (ValueError, NotImplementedError, ImportError, OSError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status.

    Parameters
    ----------
    arguments
        The words after the command's name. None: the arguments of this process. The process must then end with this
        call, and Ctrl-C before or after the call ends the process without a traceback.
    """
    if sys.stderr is None:
        # The caller has closed standard error. Without this, Python's print would write to standard output instead.
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        if arguments is None:
            _interrupts.raise_as_usual()
        return _run(arguments)
    except KeyboardInterrupt:
        tell("interrupted")
        return INTERRUPTED
    finally:
        if arguments is None:
            _interrupts.end_quietly()
        flush_stderr()


def _run(arguments: Sequence[str] | None) -> int:
    if sys.stdout is None:
        tell("standard output is closed")
        return 1
    chosen = _parse(arguments)
    try:
        lines, status = chosen.run(chosen)
    except BrokenPipeError:
        return CLOSED_PIPE
    except Exception as error:
        # One line and no traceback, because a traceback does not help a user of the command.
        mistake = isinstance(error, _MISTAKES)
        tell(str(error) if mistake else f"{type(error).__name__}: {error}")
        return chosen.mistake_status if mistake else 1
    data = chosen.data or getattr(chosen, "json", False)
    return (write("\n".join(lines), chosen.mistake_status, data) if lines else 0) or status


class _Parser(argparse.ArgumentParser):
    """Tells of a mistake in one line, as the commands do. A usage of ten lines would hide the mistake."""

    def error(self, message: str) -> NoReturn:
        said = f"{self.prog}: error: {' '.join(message.split())}; see {self.prog} --help"
        self.exit(2, f"{said}\n")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="colbert-fast", description="Late-interaction (ColBERT, ColPali) scoring.")
    parser.add_argument("--version", action="version", version=f"colbert-fast {cf.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for command in _COMMANDS:
        command.add(commands)
    # `mistake_status`: the exit status after one of _MISTAKES. `check`: what argparse cannot check by itself. `data`:
    # a machine reads what is printed.
    parser.set_defaults(mistake_status=1, data=False, check=lambda chosen: None)
    said = io.StringIO()
    try:
        # argparse ignores a full disk. So its output is kept here and written by `write`.
        with contextlib.redirect_stdout(said):
            chosen = parser.parse_args(arguments)
            chosen.check(chosen)
    except SystemExit as stop:
        if said.getvalue() and (status := write(said.getvalue().removesuffix("\n"))):
            raise SystemExit(status) from None
        raise stop
    return chosen
