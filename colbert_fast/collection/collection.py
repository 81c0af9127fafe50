"""A collection of documents on disk."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from types import EllipsisType, TracebackType
from typing import Any, overload

import torch
from torch import Tensor

from colbert_fast._forks import safe_after_fork
from colbert_fast._torch_modes import not_compiled
from colbert_fast.collection import adding, changes, checks, search, segments, verify
from colbert_fast.collection.filters import Parameters
from colbert_fast.collection.layout import CODES, EXACT, Options
from colbert_fast.collection.reader import Reader
from colbert_fast.collection.results import SearchResult
from colbert_fast.collection.segments import Segment
from colbert_fast.collection.snapshot import Snapshot
from colbert_fast.packed import PackedTokens, Tokens

_SEED = 0
# Twelve days, because the system cannot count much longer.
_LONGEST_WAIT = 1e6


class Collection:
    """Documents on disk, as token embeddings with ids and metadata.

    A collection is a folder. Every change is one transaction: after a crash at any moment it has happened or it has
    not, and once a method has returned, its change stays. The tokens lie in files that are mapped into memory when they
    are needed and never change. A Collection sees the state that it opened, and its own changes; :meth:`refresh` shows
    what others have changed since. Many processes may read beside one that writes; a second writer waits. Threads may
    share a Collection. A forked child may only read what its parent had open, and only while the parent leaves it
    alone: SQLite does not tell the locks of the two apart. A process that is spawned is as free as any other, and so is
    a forked child with a folder that its parent does not have open.

    Parameters
    ----------
    path
        The folder. It is made if it is not there.
    codes
        What a search scans: ``"int8"`` (the default of a new folder), ``"int4+4"``, which reads half as much first,
        or for approximate answers ``"int4"``, ``"int2"`` or ``"int1"``.
    exact
        The dtype in which the tokens are kept beside, for exact scores: ``"float16"`` (the default of a new folder),
        ``"bfloat16"``, ``"float32"``, or None, which keeps only the codes. The scores are then those of the vectors
        that the codes stand for.
    read_only
        Whether to open an existing collection and never change it.
    wait
        Seconds to wait for another writer.

    Raises
    ------
    FileNotFoundError
        ``read_only`` and there is no collection.
    ValueError
        An option that is unknown, or another than that of the folder; or a damaged file, which the message names.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        codes: str | None = None,
        exact: str | EllipsisType | None = ...,
        read_only: bool = False,
        wait: float = 5.0,
    ) -> None:
        _check_options(codes, exact)
        self._folder = os.path.abspath(_checked_path(path))
        self._read_only = checks.flag(read_only, "read_only")
        self._wait = _checked_wait(wait)
        self._closed = False
        self._snapshot: Snapshot | None = None
        # Segments that need not be mapped again.
        self._mapped: dict[str, Segment] = {}
        self._begin()
        if not read_only:
            self._make(Options(codes or "int8", "float16" if exact is ... else exact, _SEED))
        options = self._current().options
        for name, given in (("codes", codes), ("exact", exact)):
            has = getattr(options, name)
            if given not in (has, ...) and not (name == "codes" and given is None):
                msg = f"{path} has {name}={has!r}; {name} cannot become {given!r}"
                raise ValueError(msg)
        if not read_only:
            self._writer.sweep()

    def _make(self, options: Options) -> None:
        try:
            os.makedirs(self._folder, exist_ok=True)
        except FileExistsError as error:
            msg = f"{self._folder} is a file; a collection is a folder"
            raise FileExistsError(msg) from error
        try:
            found = Reader(self._folder, read_only=False, wait=self._wait)
            # Another program may have changed the mode of the database, as a copy with VACUUM INTO does.
            if not found.is_blank and found.has_log:
                return
            found.close()
        except FileNotFoundError:
            pass
        self._writer.create(options)

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._writer = changes.Writer(self._folder, self._wait)

    def _alone(self) -> Any:
        """Return the lock of the threads. A forked child that reads gets a new one: a thread may have held the old."""
        if self._process != os.getpid():
            self._begin()
        return self._lock

    def _current(self) -> Snapshot:
        """Return the state that is seen now."""
        with self._alone():
            self._check_open()
            if self._snapshot is None or self._snapshot.process != self._process:
                self._snapshot = self._latest()
            return self._snapshot

    def _check_open(self) -> None:
        if self._closed:
            msg = f"the collection {self._folder} is closed"
            raise ValueError(msg)

    def _reader(self) -> Reader:
        return Reader(self._folder, read_only=self._read_only, wait=self._wait)

    def _latest(self) -> Snapshot:
        before = None
        while True:
            reader = self._reader()
            if reader.is_blank:
                try:
                    segments.check_none(self._folder)
                except ValueError:
                    # Another process may have made the database since, and then have added segments.
                    if self._reader().is_blank:
                        raise
                    continue
                msg = f"{self._folder} holds no collection yet"
                raise FileNotFoundError(msg)
            try:
                snapshot = Snapshot(reader, self._mapped)
                self._mapped = snapshot.files
                return snapshot
            except FileNotFoundError as error:
                # Another process has packed the segments between the two.
                if error.filename == before:
                    msg = f"{error.filename} is missing"
                    raise ValueError(msg) from error
                before = error.filename

    @contextlib.contextmanager
    def _changing(self) -> Iterator[changes.Writer]:
        """Check that this may write, and show its changes afterwards, those before an error too."""
        self._current()
        if self._read_only:
            msg = f"the collection {self._folder} was opened with read_only=True"
            raise PermissionError(msg)
        try:
            yield self._writer
        finally:
            with self._alone():
                # The log can begin anew only while nobody reads what is in it.
                self._snapshot = None
                self._writer.checkpoint()
                self.refresh()

    @property
    def path(self) -> str:
        """The folder."""
        return self._folder

    @property
    def codes(self) -> str:
        """What a search scans: ``"int8"``, ``"int4+4"``, ``"int4"``, ``"int2"`` or ``"int1"``."""
        return self._current().options.codes

    @property
    def exact(self) -> str | None:
        """The dtype in which the tokens are kept, or None."""
        return self._current().options.exact

    @property
    def dim(self) -> int | None:
        """The dim of the tokens; None before the first documents."""
        return self._current().dim or None

    @property
    def about(self) -> dict[str, str]:
        """What :meth:`describe` has kept, such as the name of the model. ``colbert-fast encode`` keeps it."""
        return dict(self._current().about)

    def __len__(self) -> int:
        return len(self._current())

    def __contains__(self, name: object) -> bool:
        return name in self._current()

    def __iter__(self) -> Iterator[str]:
        """Iterate over the ids, in the order in which the documents were added."""
        return iter(self.ids())

    @overload
    def __getitem__(self, name: str) -> Tensor: ...
    @overload
    def __getitem__(self, name: list[str] | tuple[str, ...]) -> PackedTokens: ...
    @not_compiled
    @safe_after_fork
    def __getitem__(self, name: str | list[str] | tuple[str, ...]) -> Tensor | PackedTokens:
        """Return the tokens of a document ``[length, dim]``, or of a list of documents as PackedTokens.

        One document is a view of its file, and so are several that lie in one segment: they cost no memory until they
        are read. Whoever writes to a view changes the answers of this Collection, and not the file. Without exact
        tokens (``exact=None``), what the codes stand for, float32.

        Raises
        ------
        KeyError
            There is no such document.
        """
        snapshot = self._current()
        if isinstance(name, str):
            return snapshot.item(snapshot.numbers([name])[0])
        if not isinstance(name, (list, tuple)):
            msg = f"documents are named by an id, a str, or by a list of ids; got {name!r:.200}"
            raise TypeError(msg)
        ids = checks.ids(name, "ids")
        return snapshot.items(snapshot.numbers(ids)) if ids else PackedTokens.from_list([])

    @safe_after_fork
    def ids(self, where: str | None = None, parameters: Parameters = ()) -> list[str]:
        """Return the ids of all documents, in the order in which they were added.

        Parameters
        ----------
        where, parameters
            Only those for which a condition is true, as for :meth:`topk`.
        """
        return self._current().narrowed(where, parameters).all_ids()

    @not_compiled
    @safe_after_fork
    def topk(
        self,
        queries: Tokens,
        k: int,
        *,
        where: str | None = None,
        parameters: Parameters = (),
        among: Iterable[str] | None = None,
        candidates: int | None = None,
        backend: str | None = None,
        device: torch.device | str | None = None,
    ) -> SearchResult:
        """Find the k best documents of every query, exactly: as if every document were scored in float64.

        The codes are scanned for bounds that no score exceeds, and only the documents that may be among the k best are
        scored by their exact tokens: about 16 for k = 10 with ``int8`` or ``int4+4``, about a hundred of a
        thousand with ``int4``, and nearly all with ``int2`` or ``int1``, which are meant for ``candidates``.

        Parameters
        ----------
        queries
            In any form that :func:`maxsim` takes, and finite. They are rounded to float32 if they are float64.
        k
            How many, 1 or more.
        where
            A condition in SQL over ``id`` and the fields of the metadata; None: all documents. Names may stand in
            double quotes, and text stands in single quotes.
        parameters
            What stands for the ``?`` or ``:name`` in ``where``.
        among
            Ids: only these documents, all of which must be there.
        candidates
            None: the exact answer. A number, k or more: score only so many documents, those with the best bounds by the
            first codes, and return the k best of them. That may miss some; :meth:`recall` says how many.
        backend
            As in :func:`maxsim`. With ``device`` it is for the scan only.
        device
            Where to scan the codes, as ``"cuda"``: they are streamed there. Default: the CPU. What is read exactly is
            scored on the CPU. The answer is the same.

        Returns
        -------
        scores, ids
            A :class:`SearchResult`: scores float32 ``[A, k]`` and a list of k ids for each query, best first; equal
            scores in the order of insertion. ``.certified`` says whether the answer is proved, which it is without
            ``candidates``, and ``.read`` how many documents were scored exactly. Where there are fewer than k
            documents, the score is -inf and the id is None. If k is above 1024, there are as many columns as documents,
            but at least 1024 and never more than k.

        Raises
        ------
        TypeError, ValueError, NotImplementedError
            As :func:`maxsim`; and ValueError for a bad ``k``, ``candidates``, ``where`` or ``device``.
        KeyError
            ``among`` has an id that is not there.

        Notes
        -----
        A score is within 1e-5 of the products that are summed, as every score of this package. Where the float32 scores
        of documents are nearer to each other than their proved errors, float64 decides.
        """
        snapshot = self._current().narrowed(where, parameters, among)
        return search.topk(snapshot, queries, k, candidates=candidates, backend=backend, device=device)

    @not_compiled
    @safe_after_fork
    def recall(
        self,
        queries: Tokens,
        k: int,
        candidates: int,
        *,
        where: str | None = None,
        parameters: Parameters = (),
        among: Iterable[str] | None = None,
        backend: str | None = None,
        device: torch.device | str | None = None,
    ) -> float:
        """Return which share of the true k best documents ``topk(..., candidates=candidates)`` finds, from 0 to 1.

        The mean over the queries. A document that is exactly as good as the k-th best counts as one of them. The
        arguments and the errors are as for :meth:`topk`. Without a query it raises ValueError.
        """
        snapshot = self._current().narrowed(where, parameters, among)
        return search.recall(snapshot, queries, k, candidates, backend=backend, device=device)

    def metadata(self, name: str) -> dict[str, Any] | None:
        """Return the metadata of a document, or None if it has none. Raises KeyError if there is no such document."""
        return self._current().metadata(*checks.ids([name], "ids"))

    @not_compiled
    @safe_after_fork
    def add(
        self,
        ids: Iterable[str] | None,
        embeddings: Any,
        metadata: Iterable[Mapping[str, Any] | None] | None = None,
        *,
        lengths: Any = None,
        replace: bool = False,
        pool: int = 1,
    ) -> int:
        """Add documents, and return how many.

        When this returns, the documents are safe on the disk. A list, an array, a column, a file or PackedTokens are
        added whole or not at all. An iterator is added in segments of up to 512 MiB, counted in float32. Each of them
        is added whole or not at all, an error leaves those before it, and one at a time is held in memory.

        Parameters
        ----------
        ids
            One str for each document, all different and none empty: a list or an iterator. None: those in the file
            that ``embeddings`` names.
        embeddings
            The documents, in any form that :func:`colbert_fast.maxsim` takes as documents; a list or an iterator of
            items or of batches in these forms; the path of a file of :meth:`PackedTokens.save` or of
            ``colbert-fast encode``; or a column of Arrow with lists of lists of one size, such as
            ``list<fixed_size_list<float, 128>>``, which needs pyarrow. Rows of zeros in padded tensors are padding
            and are left out.
        metadata
            A dict that JSON can say, or None, for each document: a list or an iterator. ``id`` and ``_metadata`` are no
            names of fields.
        lengths
            ``[n]``, integer: the tokens of each document, where ``embeddings`` is one tensor or array ``[total, dim]``
            with the tokens of all documents, such as a mapped ``.npy`` file.
        replace
            Whether a document may take the place of one with the same id. It then counts as added last.
        pool
            n > 1: keep one token of n, and at least one of a document: the means of tokens that are alike, which are
            not normalised. They are the clusters of Ward's method (Clavié et al., Reducing the Footprint of
            Multi-Vector Retrieval with Minimal Performance Impact via Token Pooling, 2024), in the order of the first
            token of each. It takes about a millisecond a document, and scipy.

        Raises
        ------
        TimeoutError
            Another process or thread writes, for longer than ``wait`` seconds.
        TypeError, ValueError
            An id that is there already or comes twice, lengths that do not fit, another dim than that of the
            collection, or a token that is not finite in the dtype in which it is kept, which the message names; or
            anything that is not described above.
        OSError
            The disk is full, or fails. Nothing is changed.
        """
        with self._changing() as writer:
            batches, whole = adding.batches(ids, embeddings, metadata, pool, lengths=lengths)
            return writer.add(batches, replace=checks.flag(replace, "replace"), whole=whole)

    def delete(self, ids: Iterable[str]) -> int:
        """Delete documents, and return how many of them there were."""
        with self._changing() as writer:
            return writer.delete(checks.ids(ids, "ids"))

    def update(self, ids: Iterable[str], metadata: Iterable[Mapping[str, Any] | None]) -> None:
        """Give documents other metadata, all or none of them. Raises KeyError if there is no such document."""
        with self._changing() as writer:
            names = checks.ids(ids, "ids")
            writer.update(names, checks.metadata_texts(metadata, len(names)))

    def describe(self, about: Mapping[str, str]) -> None:
        """Keep words about the whole collection, as :attr:`about`, in place of the words before. All are str."""
        if not isinstance(about, Mapping) or not all(isinstance(word, str) for pair in about.items() for word in pair):
            msg = f"about must be a dict of str; got {about!r:.200}"
            raise TypeError(msg)
        with self._changing() as writer:
            writer.describe(json.dumps(dict(about)))

    @safe_after_fork
    def compact(self) -> None:
        """Free the disk of deleted documents, and make few large files of many small ones.

        It needs room for the new files beside the old ones. What other processes have opened stays readable for them.
        """
        with self._changing() as writer:
            writer.compact(self._latest)

    def refresh(self) -> None:
        """See what other processes have changed."""
        with self._alone():
            self._check_open()
            self._snapshot = self._latest()

    @safe_after_fork
    def verify(self) -> None:
        """Read everything and compare it with its checksums. Raises ValueError with all that is wrong."""
        snapshot = self._current()
        while True:
            try:
                verify.verify(snapshot)
                return
            except ValueError:
                with self._alone():
                    latest = self._latest()
                # Another process may have packed the segments, and a file that is gone was then not damaged.
                if latest.files.keys() == snapshot.files.keys():
                    raise
                snapshot = latest

    def close(self) -> None:
        """Close the files. Every other method then raises ValueError. What a method has returned stays."""
        with self._alone():
            self._closed = True
            self._snapshot = None
            self._mapped = {}

    def __enter__(self) -> Collection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Collection({self._folder!r})"


def _checked_path(path: str | os.PathLike[str]) -> str:
    text = os.fsdecode(path)
    if not text:
        msg = "the name of the folder must not be empty"
        raise ValueError(msg)
    try:
        text.encode()
    except UnicodeEncodeError:
        msg = f"the name of the folder must be Unicode; got {text!r}"
        raise ValueError(msg) from None
    return text


def _checked_wait(wait: float) -> float:
    if isinstance(wait, (str, bytes)) or not float(wait) >= 0:
        msg = f"wait must be a number of seconds, 0 or more; got {wait!r}"
        raise ValueError(msg)
    return min(float(wait), _LONGEST_WAIT)


def _check_options(codes: str | None, exact: str | EllipsisType | None) -> None:
    if codes not in (*CODES, None):
        msg = f"codes must be one of {', '.join(map(repr, CODES))}; got {codes!r}"
        raise ValueError(msg)
    if exact not in (*EXACT, None, ...):
        msg = f"exact must be one of {', '.join(map(repr, EXACT))}, or None; got {exact!r}"
        raise ValueError(msg)
