"""Readers and writers of one collection in processes of their own: ``python races.py READERS WRITERS CHANGES``.

The documents come in groups that are added and deleted whole, so that a reader that sees a part of a group has seen a
change in the middle.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import torch
from collections_of import documents
from crashes import DIM, forked, small

import colbert_fast as cf

GROUP = 7


def write(folder: Path, writer: int, count: int) -> None:
    small()
    chance = random.Random(writer)
    collection = cf.Collection(folder, wait=120)
    groups: list[int] = []
    for i in range(count):
        kind = chance.choice(["add", "add", "delete", "compact"])
        if kind == "add":
            seed = writer * count + i
            ids = [f"{seed}/{j}" for j in range(GROUP)]
            collection.add(ids, documents(GROUP, DIM, 6, seed), [{"group": seed}] * GROUP)
            groups.append(seed)
        elif kind == "delete" and groups:
            seed = groups.pop(chance.randrange(len(groups)))
            assert collection.delete([f"{seed}/{j}" for j in range(GROUP)]) == GROUP
        elif kind == "compact":
            collection.compact()
        mine = {name.partition("/")[0] for name in collection.ids()}
        assert set(map(str, groups)) <= mine


def read(folder: Path, number: int, until: int) -> None:
    """Read until a pipe is closed."""
    small()
    collection = cf.Collection(folder, read_only=number % 2 == 0)
    os.set_blocking(until, False)
    while True:
        check(collection)
        try:
            if os.read(until, 1) == b"":
                break
        except BlockingIOError:
            pass
        if number % 3:
            collection.refresh()
        else:
            collection.close()
            collection = cf.Collection(folder, read_only=number % 2 == 0)


def check(collection: cf.Collection) -> None:
    ids = collection.ids()
    assert len(ids) == len(collection)
    assert set(Counter(name.partition("/")[0] for name in ids).values()) <= {GROUP}
    # Whatever writers do meanwhile, this state stays.
    for name, tokens in zip(ids[:20], collection[ids[:20]] if ids else (), strict=True):
        seed, _, item = name.partition("/")
        assert torch.equal(tokens.float(), documents(GROUP, DIM, 6, int(seed))[int(item)])
        assert collection.metadata(name) == {"group": int(seed)}
        assert collection.ids('"group" = ?', (int(seed),)) == [f"{seed}/{j}" for j in range(GROUP)]
    assert collection.ids() == ids


def main(readers: int, writers: int, count: int) -> None:
    small()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "c")
        cf.Collection(folder).close()
        until, open_end = os.pipe()

        def reading(number: int) -> None:
            os.close(open_end)
            read(folder, number, until)

        reading_ones = [forked(partial(reading, number)) for number in range(readers)]
        writing_ones = [forked(partial(write, folder, number, count)) for number in range(writers)]
        statuses = [os.waitpid(process, 0)[1] for process in writing_ones]
        os.close(open_end)
        statuses += [os.waitpid(process, 0)[1] for process in reading_ones]
        assert not any(statuses), statuses
        with cf.Collection(folder) as collection:
            collection.verify()
            check(collection)
            print(len(collection), "documents")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
