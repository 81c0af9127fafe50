"""Kills a process that changes a collection, and checks what is left: ``python crashes.py 200 50 1`` for 200 kills.

Every change is told over a pipe once its method has returned. After the kill the collection must hold all changes that
were told, and may hold the one after them, whole. The process is forked, so that a kill costs no new start of Python.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from collections_of import documents, names

import colbert_fast as cf
from colbert_fast.collection import changes, database, parts

# id -> (seed of its tokens, metadata), in order.
Content = dict[str, tuple[int, Any]]
# What changes a collection, and the same for its content.
Change = tuple[Callable[[cf.Collection], Any], Callable[[Content], None]]
DIM = 16


def tokens_of(seed: int) -> torch.Tensor:
    return documents(1, DIM, 12, seed)[0]


def changes_of(chance: random.Random) -> Iterator[Change]:
    """Yield changes without end, for a collection that has all of the changes before."""
    content: Content = {}
    # One of each comes first, so that a few changes are all kinds of them.
    for first in itertools.chain(["add", "delete", "compact", "replace", "update"], itertools.repeat("")):
        kind = first or chance.choice(["add", "add", "replace", "delete", "update", "compact"])
        some = chance.sample(list(content), min(len(content), chance.randint(1, 6)))
        number = chance.getrandbits(30)
        if kind in ("add", "replace"):
            new = names(chance.randint(1, 30), number) + (some if kind == "replace" else [])
            change = _added({name: (number + i, {"n": number + i}) for i, name in enumerate(new)})
        elif kind == "delete":
            change = _deleted(some)
        elif kind == "update":
            change = _updated(some, {"n": number})
        else:
            change = (lambda collection: collection.compact()), (lambda content: None)
        change[1](content)
        yield change


def _added(new: Content) -> Change:
    def do(collection: cf.Collection) -> None:
        embeddings = [tokens_of(seed) for seed, _ in new.values()]
        collection.add(list(new), embeddings, [metadata for _, metadata in new.values()], replace=True)

    def note(content: Content) -> None:
        for name in new:
            content.pop(name, None)
        content.update(new)

    return do, note


def _deleted(some: list[str]) -> Change:
    def note(content: Content) -> None:
        for name in some:
            del content[name]

    return (lambda collection: collection.delete(some)), note


def _updated(some: list[str], metadata: Any) -> Change:
    def note(content: Content) -> None:
        content.update({name: (content[name][0], metadata) for name in some})

    return (lambda collection: collection.update(some, [metadata] * len(some))), note


def work(folder: Path, seed: int, told: int, stop: int) -> None:
    """Open the collection and change it until killed. Each change is a byte in the pipe ``told``."""
    small()
    collection = cf.Collection(folder)
    os.write(told, b"o")
    for i, (do, _) in enumerate(changes_of(random.Random(seed))):
        if i == stop:
            return
        do(collection)
        os.write(told, b".")


def small() -> None:
    """Make segments and parts small, so that there are many of both."""
    changes.SEGMENT_BYTES = 40 * 4 * DIM
    parts.PART_NUMBERS = 10 * DIM
    torch.set_num_threads(1)


def forked(function: Callable[[], None]) -> int:
    """Run a function in a forked process, and return the number of the process."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return process


def check(folder: Path, seed: int, told: int) -> int:
    """Check a collection of which so many changes were told. Return how many files of the killed process it had."""
    contents: list[Content] = [{}]
    for _, (_, note) in zip(range(told + 1), changes_of(random.Random(seed)), strict=False):
        note(following := dict(contents[-1]))
        contents.append(following)
    left = len(list(folder.glob("*.safetensors*")))
    with cf.Collection(folder) as collection:
        collection.verify()
        ids = collection.ids()
        found = {name: collection.metadata(name) for name in ids}
        matching = [
            content
            for content in contents[told:]
            if list(content) == ids and {name: metadata for name, (_, metadata) in content.items()} == found
        ]
        assert matching, f"after {told} changes of seed {seed}: {ids} is neither {list(contents[told])} nor the next"
        for name, (number, _) in matching[0].items():
            assert torch.equal(collection[name].float(), tokens_of(number)), name
        known = set(collection._current().files)
        there = {path.name for path in folder.glob("*.safetensors*")}
        assert there == known, f"the sweep has left {there - known}"
    return left - len(known)


def kill_once(seed: int, seconds: float) -> int:
    """Kill a process after so many seconds. Return how many changes it told."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "c")
        read, write = os.pipe()
        process = forked(partial(work, folder, seed, write, -1))
        os.close(write)
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        told = b""
        while some := os.read(read, 4096):
            told += some
        os.close(read)
        check(folder, seed, max(0, len(told) - 1))
        return len(told)


def kill_at_every_step(seed: int, changes_before: int) -> int:
    """Kill a process before its first call of the system that writes, then before its second, and so on."""
    step = 0
    while True:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place, "c")
            read, write = os.pipe()
            process = forked(partial(_die_at, folder, seed, write, step, changes_before))
            os.close(write)
            _, status = os.waitpid(process, 0)
            told = len(os.read(read, 4096))
            os.close(read)
            check(folder, seed, max(0, told - 1))
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            return step
        step += 1


def _die_at(folder: Path, seed: int, told: int, step: int, stop: int) -> None:
    left = step

    def counted(function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return call

    for name in ("fsync", "rename", "unlink", "makedirs"):
        setattr(os, name, counted(getattr(os, name)))
    database.connect = counted(database.connect)
    database.create = counted(database.create)
    begin = database.transaction
    database.transaction = counted(lambda connection: begin(connection))
    work(folder, seed, told, stop)


def main(kills: int, steps: int, seed: int) -> None:
    chance = random.Random(seed)
    small()
    print("steps", kill_at_every_step(chance.getrandbits(30), steps), flush=True)
    for number in range(kills):
        work_seed, seconds = chance.getrandbits(30), chance.uniform(0, 0.6)
        told = kill_once(work_seed, seconds)
        print(f"kill {number}: seed {work_seed}, after {seconds:.3f} s and {told} changes", flush=True)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
