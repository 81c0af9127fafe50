"""What a run has measured so far, in a file from which another process goes on."""

from __future__ import annotations

import faulthandler
import json
import pickle
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.recorder import Recorder

PACKAGES = ("colbert-fast", "torch", "triton", "sentence-transformers", "late-interaction-kernels", "flash-maxsim")


@dataclass
class Progress:
    """What a run has measured.

    A contender can end the process that measures it. Then ``path`` holds what was saved before, and a file beside it
    names the contender whose turn it was.
    """

    path: Path
    results: Path
    """The folder of the JSON file."""
    about: dict[str, Any] = field(default_factory=dict)
    """What the JSON file says of the run; the first worker adds the machine and its limits."""
    order: list[str] = field(default_factory=list)
    """The contenders by name; the results of a workload stand in it."""
    recorder: Recorder = field(default_factory=Recorder)
    done: set[str] = field(default_factory=set)
    """Stages that are over."""
    left_out: set[tuple[str, str]] = field(default_factory=set)
    """Workload, or "graph", and contender: they ended a process and are not tried again."""

    @classmethod
    def load(cls, path: Path) -> Progress:
        """Return what was saved last."""
        found: Progress = pickle.loads(path.read_bytes())
        return found

    def save(self, *stages: str) -> None:
        """End a turn, and keep everything, also as the JSON file; these stages are over."""
        faulthandler.cancel_dump_traceback_later()
        self.done.update(stages)
        _replace(self.path, pickle.dumps(self))
        self._turn.unlink(missing_ok=True)
        self.report()

    @property
    def _turn(self) -> Path:
        return self.path.with_suffix(".turn")

    def begin(self, workload: str, contender: str, doing: str, limit: float) -> None:
        """Begin a turn. A turn that takes longer than ``limit`` seconds ends this process."""
        faulthandler.dump_traceback_later(limit, exit=True, file=sys.__stderr__ or 2)
        self._turn.write_text(json.dumps([workload, contender, doing, limit]), encoding="utf-8")

    def blame(self, reason: str, lost: bool = True) -> str | None:
        """Say why the contender whose turn it is has no result, and return its name; None if it is nobody's turn.

        A contender that has ``lost`` the process or the device is left out from now on.
        """
        if not self._turn.is_file():
            return None
        workload, contender, doing, limit = json.loads(self._turn.read_text(encoding="utf-8"))
        if time.time() - self._turn.stat().st_mtime >= limit:
            reason = f"took longer than {limit:g} s"
        if doing == "graph":
            self.recorder.note(workload, contender, no_graph=f"failed: {reason}")
        else:
            self.recorder.skip(workload, contender, f"failed: {reason}")
        if lost:
            self.left_out.add(("graph" if doing == "graph" else workload, contender))
        self.save()
        return str(contender)

    def report(self) -> dict[str, Any] | None:
        """Write the JSON file and return its content; None if no worker has come as far as to measure."""
        if "machine" not in self.about:
            return None
        report = self.recorder.report(self.about, self.order, PACKAGES)
        self.results.mkdir(parents=True, exist_ok=True)
        path = self.results / f"{report['machine']['name']}.json"
        _replace(path, (json.dumps(report, indent=1) + "\n").encode())
        return report


def _replace(path: Path, content: bytes) -> None:
    """Write a file at once, so that neither a reader nor an end of this process finds half of it."""
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.replace(path)
