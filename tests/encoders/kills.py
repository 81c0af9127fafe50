"""Kill a process while it saves a checkpoint: one process imports torch once, and forks a child for each save."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from tiny import DOCUMENTS, QUERIES
from transformers.utils import logging

from colbert_fast.models import ColBERT, folders, staging

# Files that a user keeps in the folder of a checkpoint.
NOTES = {"notes.txt": b"mine", "README.md": b"mine too", "checkpoint-500/model.safetensors": b"of a training"}
# Prefixes of audit events. Python reports such an event to audit hooks before it does the operation.
EVENTS = ("open", "os.", "shutil.", "ctypes.dlsym")


def contents(folder: Path) -> dict[str, bytes]:
    """Return the path and the bytes of every file in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def add_notes(folder: Path) -> None:
    for name, content in NOTES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def start(work: Callable[[], object]) -> int:
    """Run `work` in a forked child, and return the child's process id."""
    with warnings.catch_warnings():
        # Since Python 3.12 a fork of a process with several threads warns.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        # The alarm ends a child that hangs.
        signal.alarm(600)
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print("the child failed:", repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return child


def finish(child: int) -> int:
    """Wait for a child, and return its exit status: -9 if it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked child and return its exit status."""
    return finish(start(work))


def kill_at_event(number: int) -> None:
    """Kill this process at the audit event with this number, before the operation is done."""
    left = number

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event.startswith(EVENTS):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


class Saves:
    """Two encoders, their checkpoints, and a folder in which one checkpoint is saved over the other."""

    def __init__(self, first: str, second: str, work: str) -> None:
        self.encoders = [ColBERT(path, device="cpu") for path in (first, second)]
        self.work = Path(work)
        self.folder = self.work / "parent" / "checkpoint"
        self.pristine, self.scores = [], []
        for n, encoder in enumerate(self.encoders):
            begin = time.perf_counter()
            encoder.save_pretrained(self.work / str(n))
            self.seconds = time.perf_counter() - begin
            add_notes(self.work / str(n))
            self.pristine.append(contents(self.work / str(n)))
            self.scores.append(encoder.scores(QUERIES, DOCUMENTS, tqdm_bar=False))
        self.restore()

    def restore(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.work / "0", self.folder)

    def which(self) -> int:
        """Return 0 if the folder holds the first checkpoint and the user's files, 1 if the second and these files."""
        found = contents(self.folder)
        assert found in self.pristine, {
            name: [found.get(name) == old.get(name) for old in self.pristine] for name in found
        }
        return self.pristine.index(found)

    def check_scores(self) -> None:
        scores = ColBERT(self.folder, device="cpu").scores(QUERIES, DOCUMENTS, tqdm_bar=False)
        torch.testing.assert_close(scores, self.scores[self.which()])

    def check_cleaned(self) -> None:
        self.encoders[1].save_pretrained(self.folder)
        assert self.which() == 1
        assert os.listdir(self.folder.parent) == [self.folder.name]

    def on_a_full_disk(self) -> None:
        # Limits for the size of a file: 0 bytes, for which every file is too large, and more, up to one byte less than
        # the largest file needs.
        sizes = sorted({len(content) for content in self.pristine[1].values()})
        limits = [0, *(size - 1 for size in sizes if size > max(map(len, NOTES.values())))]
        for limit in limits:

            def save(limit: int = limit) -> None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                try:
                    self.encoders[1].save_pretrained(self.folder)
                except BaseException as error:
                    os._exit(errno.EFBIG if "File too large" in str(error) else 1)

            assert in_child(save) == errno.EFBIG, limit
            assert self.which() == 0
            assert os.listdir(self.folder.parent) == [self.folder.name]
        self.check_cleaned()
        print(f"{len(limits)} disks")

    def at_random_moments(self, times: int) -> None:
        def save() -> None:
            for n in range(10**9):
                self.encoders[1 - n % 2].save_pretrained(self.folder)

        generator = random.Random(0)
        found: list[int] = []
        # On a fast or a slow machine: go on until one kill came before the first save was done, and one after it.
        while len(found) < times or len(set(found)) < 2:
            child = start(save)
            time.sleep(generator.uniform(0, 4 * self.seconds))
            os.kill(child, signal.SIGKILL)
            assert finish(child) == -9
            staging.recover(self.folder)
            found.append(self.which())
            if len(found) % 10 == 0:
                self.check_scores()
        self.check_cleaned()
        print(f"{len(found)} kills: old {len(found) - sum(found)}, new {sum(found)}")


def main(first: str, second: str, work: str, *modes: str) -> None:
    # tqdm has a lock that all processes share. A killed child would hold it for ever.
    logging.disable_progress_bar()
    saves = Saves(first, second, work)
    exchange = folders._exchange
    for mode in modes:
        name, _, without = mode.partition("-")
        folders._exchange = (lambda one, other: errno.EINVAL) if without else exchange
        saves.restore()
        if name == "full":
            saves.on_a_full_disk()
        else:
            saves.at_random_moments(int(name))


if __name__ == "__main__":
    main(*sys.argv[1:])
