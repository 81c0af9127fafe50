"""One state of a collection, as a search sees it: which documents there are, and where their codes lie."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from colbert_fast._codecs import Codes
from colbert_fast.collection import checks, filters
from colbert_fast.collection.filters import Parameters
from colbert_fast.collection.layout import Layout, Options
from colbert_fast.collection.reader import Reader
from colbert_fast.collection.segments import Segment, decoded_items
from colbert_fast.packed import PackedTokens

# What a condition selects is kept for so many conditions, because a search may ask with the same one again.
_FILTERS_KEPT = 8


class LiveSegment:
    """The documents of one segment that a search may find.

    Parameters
    ----------
    mapped
        The file.
    live
        int64 ``[n]``: the numbers of the items in the segment, in order.
    """

    def __init__(self, mapped: Segment, live: Tensor) -> None:
        self.mapped = mapped
        self.live = live
        self.documents: Tensor = live + mapped.first

    @property
    def tokens(self) -> int:
        """How many tokens the documents have."""
        return int(self.codes[0].lengths[self.live].sum())

    @property
    def codes(self) -> list[Codes]:
        """The codes of all items of the segment that a search reads, the coarsest first."""
        return self.mapped.codes

    @property
    def exact(self) -> PackedTokens | None:
        """The tokens of all items of the segment, memory-mapped; None if the collection does not keep them."""
        return self.mapped.exact


class Snapshot:
    """A state of a collection that stays as it is, whatever writers do. Every thread may use it.

    Parameters
    ----------
    reader
        The state of the database.
    known
        Segments that are mapped already, by their files.
    """

    def __init__(self, reader: Reader, known: Mapping[str, Segment]) -> None:
        self.reader = reader
        self.process: int = reader.process
        options = checks.options(dict(reader.rows("SELECT name, value FROM option")), reader.folder)
        self.options: Options = Options(options["codes"], options["exact"], options["seed"])
        self.about: dict[str, str] = checks.about(options, reader.folder)
        # 0: no documents were ever added.
        self.dim: int = options["dim"]
        self._mapped: list[Segment] = []
        self._deleted: list[bytes | None] = []
        self._count = 0
        for first, file, documents, tokens, deleted in checks.segments(reader):
            segment = known.get(file)
            if segment is None:
                segment = Segment(reader.folder, file, Layout(self.options, self.dim, documents, tokens), first)
            self._mapped.append(segment)
            self._deleted.append(deleted)
            self._count += documents - (0 if deleted is None else int.from_bytes(deleted, "big").bit_count())
        self._firsts = [segment.first for segment in self._mapped]
        self._live: list[LiveSegment] | None = None
        # The documents for which the last conditions were true.
        self._filtered: dict[tuple[str, str], np.ndarray[Any, Any]] = {}

    @property
    def files(self) -> dict[str, Segment]:
        """The mapped segments, by their files."""
        return {segment.file: segment for segment in self._mapped}

    def __len__(self) -> int:
        return self._count

    @property
    def segments(self) -> list[LiveSegment]:
        """The segments that have documents, in the order of these."""
        if self._live is None:
            self._live = [segment for segment in self.all_segments() if len(segment.live)]
        return self._live

    def all_segments(self) -> list[LiveSegment]:
        """Return the segments, those without documents too."""
        pairs = zip(self._mapped, self._deleted, strict=True)
        return [LiveSegment(segment, live_items(segment.documents, deleted)) for segment, deleted in pairs]

    def narrowed(
        self, where: str | None = None, parameters: Parameters = (), among: Iterable[str] | None = None
    ) -> Snapshot:
        """Return a snapshot of those documents for which a condition is true, and which are among some.

        Parameters
        ----------
        where, parameters
            As for :meth:`Collection.topk`.
        among
            Ids; None: all.

        Raises
        ------
        KeyError
            There is no document with one of the ids.
        TypeError, ValueError
            A bad condition, or ids that are not str.
        """
        chosen = None
        if where is not None:
            chosen = self._numbers_where(where, parameters)
        elif parameters:
            msg = f"parameters belong to a condition, and where is None; got {parameters!r}"
            raise ValueError(msg)
        if among is not None:
            some = np.unique(np.array(self.numbers(checks.ids(among, "among")), dtype=np.int64))
            chosen = some if chosen is None else np.intersect1d(chosen, some, assume_unique=True)
        return self if chosen is None else _Narrowed(self, chosen)

    def _numbers_where(self, where: str, parameters: Parameters) -> np.ndarray[Any, Any]:
        # The functions of SQLite that give another answer each time give one for a snapshot.
        key = (where, repr(parameters))
        # Another thread may put other filters in their place at any time.
        known = self._filtered.get(key)
        if known is not None and filters.is_plain(where, parameters):
            return known
        chosen = filters.numbers_where(self.reader, where, parameters)
        self._check_count(self.reader.rows("SELECT count(*) FROM document")[0][0])
        if filters.is_plain(where, parameters):
            before = self._filtered
            self._filtered = {**(before if len(before) < _FILTERS_KEPT else {}), key: chosen}
        return chosen

    def _check_count(self, found: int) -> None:
        """Raise ValueError unless the segments have as many documents as were found."""
        if found != self._count:
            what = f"it has {found} documents, and the segments have {self._count}"
            raise checks.damaged(self.reader.folder, what)

    def ids(self, numbers: Iterable[int]) -> list[str]:
        """Return the ids of documents by their numbers."""
        wanted = [int(number) for number in numbers]
        sql = "SELECT number, id FROM document WHERE number IN (SELECT value FROM json_each(?))"
        found = dict(self.reader.rows(sql, (json.dumps(wanted),)))
        return [checks.stored_id(found.get(number), number, self.reader.folder) for number in wanted]

    def all_ids(self) -> list[str]:
        """Return the ids of all documents, in order."""
        rows = self.reader.rows("SELECT number, id FROM document ORDER BY number")
        self._check_count(len(rows))
        return [checks.stored_id(name, number, self.reader.folder) for number, name in rows]

    def numbers(self, ids: Sequence[str]) -> list[int]:
        """Return the numbers of documents by their ids. Raises KeyError if there is no such document."""
        found = self.reader.numbers_of(ids)
        missing = [name for name, number in zip(ids, found, strict=True) if number is None]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            msg = f"the collection has no document {missing[0]!r}{more}"
            raise KeyError(msg)
        return [number for number in found if number is not None]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.reader.numbers_of([name]) != [None]

    def metadata(self, name: str) -> dict[str, Any] | None:
        """Return the metadata of a document, or None."""
        (number,) = self.numbers([name])
        rows = self.reader.rows("SELECT metadata FROM document WHERE number = ?", (number,))
        if not rows:  # the index of the ids has a number that the table does not have
            raise checks.damaged(self.reader.folder, f"there is no document {number}, which has the id {name!r}")
        return checks.metadata(self.reader.folder, number, rows[0][0])

    def item(self, number: int) -> Tensor:
        """Return the tokens of a document: a view of the exact ones, or else what its codes stand for, float32."""
        tokens: Tensor = self.items([number])[0]
        return tokens

    def items(self, numbers: Sequence[int]) -> PackedTokens:
        """Return the tokens of documents, in their order. Where one segment has them all, they are a view."""
        of_segments: dict[Segment, list[tuple[int, int]]] = {}
        for place, number in enumerate(numbers):
            segment, item = self.place(number)
            of_segments.setdefault(segment, []).append((place, item))
        batches, places = [], []
        for segment, pairs in of_segments.items():
            places += [place for place, _ in pairs]
            items = torch.tensor([item for _, item in pairs], device="cpu")
            exact = segment.exact
            batches.append(decoded_items(segment.codes[-1], items) if exact is None else exact[items])
        if len(batches) == 1:
            return batches[0]
        joined: PackedTokens = PackedTokens.cat(batches)[torch.tensor(places, device="cpu").argsort()]
        return joined

    def place(self, number: int) -> tuple[Segment, int]:
        """Return where a document lies: its segment, and its number there."""
        at = bisect_right(self._firsts, number) - 1
        if at < 0 or number - self._firsts[at] >= self._mapped[at].documents:
            raise checks.damaged(self.reader.folder, f"document {number} lies in no segment")
        item, deleted = number - self._firsts[at], self._deleted[at]
        if deleted is not None and deleted[item // 8] << item % 8 & 0x80:
            raise checks.damaged(self.reader.folder, f"document {number} is deleted in its segment")
        return self._mapped[at], item


class _Narrowed(Snapshot):
    """Some documents of a snapshot: those with the given numbers, which are in order."""

    def __init__(self, whole: Snapshot, numbers: np.ndarray[Any, Any]) -> None:
        self.__dict__.update(whole.__dict__)
        self._numbers = numbers
        self._count = len(numbers)
        self._live = []
        taken = 0
        for segment in whole.segments:
            first = segment.mapped.first
            begin, end = np.searchsorted(numbers, [first, first + segment.mapped.documents])
            if begin == end:
                continue
            items = torch.from_numpy(numbers[begin:end] - first)
            if not bool(torch.isin(items, segment.live, assume_unique=True).all()):
                break
            self._live.append(LiveSegment(segment.mapped, items))
            taken += len(items)
        if taken != len(numbers):
            # Either a condition closed our bracket and selected something else, or the database is damaged.
            known = {number for (number,) in self.reader.rows("SELECT number FROM document")}
            if known.issuperset(numbers.tolist()):
                what = "documents and segments disagree about which documents there are"
                raise checks.damaged(self.reader.folder, what)
            msg = "where must be one condition that is true or false; it selected numbers that no document has"
            raise ValueError(msg)

    def all_ids(self) -> list[str]:
        return self.ids(self._numbers.tolist())


def unpacked(documents: int, deleted: bytes | None) -> np.ndarray[Any, Any]:
    """Return for each item of a segment whether it is deleted, uint8 ``[documents]``."""
    if deleted is None:
        return np.zeros(documents, np.uint8)
    return np.unpackbits(np.frombuffer(deleted, np.uint8), count=documents)


def live_items(documents: int, deleted: bytes | None) -> Tensor:
    """Return the numbers of the items of a segment that are not deleted, in order."""
    return torch.from_numpy(np.flatnonzero(unpacked(documents, deleted) == 0))
