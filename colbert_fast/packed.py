"""PackedTokens, the ragged batch that every kernel reads: how it is built, cut, joined, moved and saved."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, TypeAlias, overload

import numpy as np
import torch
from torch import Tensor

from colbert_fast import _packed_files
from colbert_fast._arrays import Mask, checked_scales
from colbert_fast._forks import safe_after_fork
from colbert_fast._int8 import quantised
from colbert_fast._integers import not_negative_int
from colbert_fast._items import item_numbers
from colbert_fast._layouts import checked_rows, nested_parts, rows_of_items, rows_of_padded
from colbert_fast._spans import Rows, alone, check_alike, concatenated, few_rows, own_rows, padded
from colbert_fast._torch_modes import not_compiled

Tokens: TypeAlias = "PackedTokens | Tensor | np.ndarray[Any, Any] | Sequence[Any]"

# Device types whose kernels take items in a given order. On a CPU the threads share out the work themselves.
_ORDERED_ON = ("cuda",)


class PackedTokens:
    """A ragged batch of token embeddings: item ``i`` is ``tokens[starts[i] : starts[i] + lengths[i]]``.

    Build it once to score it many times. Every row inside an item is a token, rows of zeros included. There may be
    rows between two items that belong to none, and items may share rows. The fields are read-only, and ``starts`` and
    ``lengths`` are copies of the arguments. Do not write to their elements either: offsets that do not fit are refused
    when they are scored.

    Some of the items, ``packed[2:9]``, share the rows of the whole batch. When they are saved by pickle or torch,
    copied, sent to a process, moved, converted or quantised, they take only their own rows along. What is loaded from
    a file is checked like the arguments below.

    Parameters
    ----------
    tokens
        ``[total, dim]``, floating point, or int8 with ``scales``; any device.
    starts
        ``[n]``, integer: the first row of each item.
    lengths
        ``[n]``, integer: the number of rows of each item, 0 allowed.
    scales
        ``[total]`` float32, finite, 0 or more, with int8 ``tokens`` only: row r stands for ``scales[r] * tokens[r]``.
        :meth:`quantize` makes such a batch, and so do the ``from_*`` methods with int8 tokens. It can be scored as
        documents, not as queries.

    Raises
    ------
    TypeError
        A tensor of the wrong kind, or int8 without scales.
    ValueError
        A shape that does not fit, an item outside ``tokens``, or a bad scale. Checking this waits for the device.
    """

    # Whether all items have one length and lie one after the other, so that a kernel needs no starts and lengths.
    _equal = False
    # Whether this was cut from a larger batch. Then it still holds all rows of that batch, and max_length may be longer
    # than every item.
    _part = False
    # Items that are not in one matrix yet, where a backend reads them as they are.
    _items: Sequence[Tensor] = ()

    def __init__(
        self,
        tokens: Tensor,
        starts: Tensor,
        lengths: Tensor,
        scales: Tensor | None = None,
        *,
        _trusted: tuple[int, Tensor | None] | None = None,
    ) -> None:
        # The lowerings make offsets that need no check, and must not wait for a device: they pass (max_length, order).
        if _trusted is None:
            rows, ragged = checked_rows(tokens, starts, lengths, scales)
            _, scales, starts, lengths, longest = rows
            _trusted = (longest, longest_first(lengths) if ragged else None)
        # Only the dtype, the device and the dim of _like are read. In a subclass it may have no rows.
        self._tokens = self._like = tokens
        self._starts = starts
        self._lengths = lengths
        self._scales = scales
        # [n] int32 for items of different lengths on a GPU, else None: the numbers of the items, longest first. It is
        # made with the batch, on the same stream, and lives as long as the batch, because a CUDA graph relies on both.
        # It is for speed only: every order gives the same scores, so it may stay if someone writes to the lengths.
        self._max_length, self._order = _trusted

    @property
    def tokens(self) -> Tensor:
        """``[total, dim]``: the rows of all items, and perhaps others."""
        return self._tokens

    @property
    def starts(self) -> Tensor:
        """``[n]`` int64: the first row of each item."""
        return self._starts

    @property
    def lengths(self) -> Tensor:
        """``[n]`` int64: the number of rows of each item."""
        return self._lengths

    @property
    def scales(self) -> Tensor | None:
        """``[total]`` float32 if ``tokens`` is int8, else None: row r stands for ``scales[r] * tokens[r]``."""
        return self._scales

    @property
    def max_length(self) -> int:
        """No item is longer. Reading this does not wait for the device."""
        return self._max_length

    @staticmethod
    @safe_after_fork
    def from_list(items: Sequence[Any], scales: Sequence[Any] | None = None) -> PackedTokens:
        """Copy a list of embeddings into one matrix.

        Parameters
        ----------
        items
            Tensors, arrays or nested lists, each ``[length, dim]`` with the same dim, dtype and device;
            length may be 0. Items that are all int8 stay int8; other integers become float32. Gradients flow back to
            each item.
        scales
            With int8 items only: for each item a tensor or array ``[length]`` of float32, finite, 0 or more, so that
            row r of item i stands for ``scales[i][r] * items[i][r]``. Default: 1 for each row.

        Raises
        ------
        TypeError
            An item that is no array, or items of different dtypes; scales that are not a list of float32 tensors.
        ValueError
            An item that is not 2-D, or items of different dims or devices; scales that do not fit their item, that are
            negative or not finite, or beside other items than int8. To check scales waits for the device.
        """
        rows, ragged = rows_of_items(items, scales)
        return PackedTokens._of(rows, ragged)

    @staticmethod
    @safe_after_fork
    def from_padded(tokens: Any, mask: Mask | None = None, scales: Any = None) -> PackedTokens:
        """View a padded batch; no copy unless the mask has holes, is on a GPU, or there is no C++ extension.

        Parameters
        ----------
        tokens
            ``[n, length, dim]`` tensor or array. int8 stays int8; other integers become float32.
        mask
            ``[n, length]`` or ``[1, length]``, true or non-zero where a row is a token, or a list of n 1-D
            masks. None: every row is a token.
        scales
            ``[n, length]`` float32 tensor or array, with int8 ``tokens`` only: what each row is multiplied by. The
            scale of a token is finite, 0 or more. Default: 1.

        Raises
        ------
        TypeError
            Not an array, or not numbers; scales that are not float32.
        ValueError
            Not 3-D, or a mask or scales of another shape; a bad scale, or scales beside another type than int8. To
            check scales waits for the device.
        """
        return PackedTokens._of(rows_of_padded(tokens, mask, scales), ragged=mask is not None)

    @staticmethod
    @safe_after_fork
    def from_nested(nested: Tensor, scales: Tensor | None = None) -> PackedTokens:
        """View a jagged ``torch.nested`` tensor ``[n, (length), dim]``; no copy.

        Parameters
        ----------
        nested
            int8 stays int8; other integers become float32.
        scales
            With int8 only: float32, finite, 0 or more, one for each row of ``nested.values()``, as ``[total]`` or as a
            jagged tensor ``[n, (length)]``. Default: 1 for each row.

        Raises
        ------
        TypeError
            Not a nested tensor of ``torch.jagged`` layout.
        ValueError
            Not 3-D, or ragged in another dimension than the second; scales of another length, or bad ones.
        """
        return PackedTokens(*nested_parts(nested, scales))

    @staticmethod
    def _of(rows: Rows, ragged: bool = False) -> PackedTokens:
        """Make a batch of rows without checks. With ``ragged`` the items may have different lengths."""
        order = longest_first(rows.lengths) if ragged else None
        return PackedTokens(rows.tokens, rows.starts, rows.lengths, rows.scales, _trusted=(rows.max_length, order))

    def __len__(self) -> int:
        return self._starts.shape[0]

    # A tensor or an array without dimensions is one integer, which its type does not tell.
    @overload
    def __getitem__(self, index: int | np.integer[Any]) -> Tensor: ...
    @overload
    def __getitem__(
        self, index: slice | range | list[int] | list[bool] | Tensor | np.ndarray[Any, Any]
    ) -> PackedTokens: ...
    @safe_after_fork
    def __getitem__(self, index: Any) -> Any:
        """One item as ``[length, dim]``, or some as PackedTokens; both share the rows.

        An item of int8 tokens is what they stand for, in float32, and shares nothing.

        Parameters
        ----------
        index
            An integer: one item; a negative one counts from the end. Some items: a slice; a list or a 1-D tensor or
            array of integers, in any order and with repetition; or a mask, a list or a 1-D tensor or array of n bools.

        Raises
        ------
        TypeError
            An index of another kind.
        IndexError
            An item that is not there, or a mask that has not one entry for each item. Checking a tensor on a GPU
            waits for the GPU, and so does copying a list or a tensor from the CPU to the GPU of this batch. A slice
            does not wait.
        """
        if isinstance(index, slice) and index.step is not None and index.step < 0:
            index = range(*index.indices(len(self)))  # torch has no such slices
        if isinstance(index, slice):
            # A slice with a step leaves gaps in memory, and the kernels read adjacent numbers.
            return self._cut(self.starts[index].contiguous(), self.lengths[index].contiguous())
        index = item_numbers(index, len(self), self.device)
        if isinstance(index, Tensor):
            return self._cut(self.starts.index_select(0, index), self.lengths.index_select(0, index))
        start, length = int(self.starts[index]), int(self.lengths[index])
        rows = self.tokens.narrow(0, start, length)
        return rows if self.scales is None else rows * self.scales.narrow(0, start, length).unsqueeze(1)

    def _cut(self, starts: Tensor, lengths: Tensor) -> PackedTokens:
        """Return some of the items, over the same rows."""
        part = PackedTokens(self.tokens, starts, lengths, self.scales, _trusted=(self.max_length, None))
        part._part = True
        return part

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    @staticmethod
    @safe_after_fork
    def cat(batches: Iterable[PackedTokens]) -> PackedTokens:
        """Join batches: the items of the first batch, then the items of the second batch, and so on.

        The rows are copied, on the CPU without the rows that belong to no item. Gradients flow back to each batch. Does
        not wait for a device. A batch without rows fits any other.

        Parameters
        ----------
        batches
            PackedTokens of one dim, dtype and device. With int8 tokens all of them are int8; each row keeps its scale.

        Raises
        ------
        TypeError
            Not PackedTokens, or batches of different dtypes.
        ValueError
            Batches of different dims or devices.
        """
        given = list(batches)
        for i, batch in enumerate(given):
            if not isinstance(batch, PackedTokens):
                msg = f"batches must hold PackedTokens; batches[{i}] is {type(batch).__name__}"
                raise TypeError(msg)
        # A batch without items and rows has no dim, dtype or device that must fit the others.
        some = {f"batches[{i}]": batch for i, batch in enumerate(given) if len(batch) or batch.rows}
        if not some:
            return given[0] if given else PackedTokens.from_list([])
        check_alike({name: batch._rows() for name, batch in some.items()})
        own = [b._without_gaps(wait=True) if b.device.type == "cpu" else b._own(wait=False) for b in some.values()]
        longest = max(batch.max_length for batch in own)
        part = any(batch._part for batch in own)
        ragged = part or any(batch._order is not None or batch.max_length < longest for batch in own)
        joined = PackedTokens._of(concatenated([batch._rows() for batch in own]), ragged)
        joined._part = part
        return joined

    @safe_after_fork
    def to_padded(self, length: int | None = None) -> tuple[Tensor, Tensor]:
        """Copy the items into one padded tensor: the inverse of :meth:`from_padded`.

        Parameters
        ----------
        length
            Rows of each item in the result. Default: ``max_length``, or if the items were cut from a larger batch, the
            length of the longest item.

        Returns
        -------
        tokens, mask : torch.Tensor
            ``[n, length, dim]``, the rows of an item first and rows of zeros after them; and ``[n, length]`` bool,
            true where a row is a token. int8 tokens become what they stand for, in float32. Gradients flow back.

        Raises
        ------
        TypeError
            A ``length`` that is no integer.
        ValueError
            A ``length`` below the length of the longest item. A length below ``max_length`` waits for the device, and
            so does the default if the items were cut from a larger batch.
        """
        if length is None:
            length = self._longest() if self._part else self.max_length
        else:
            length = not_negative_int(length, "length")
            if length < self.max_length and length < (longest := self._longest()):
                msg = f"length must be {longest} or more, the length of the longest item; got {length}"
                raise ValueError(msg)
        return padded(self._rows(), length)

    def _longest(self) -> int:
        """Return the length of the longest item, after waiting for the device; or a bound, if it cannot be known."""
        if not self._askable():
            return self.max_length
        return int(self.lengths.max()) if len(self) else 0

    def _askable(self) -> bool:
        """Return whether numbers of this batch can be read: not while torch compiles a program, nor without memory."""
        return not (self.device.type == "meta" or torch.compiler.is_compiling())

    def _rows(self) -> Rows:
        return Rows(self.tokens, self.scales, self.starts, self.lengths, self.max_length)

    def _own(self, *, wait: bool) -> PackedTokens:
        """If this was cut from a larger batch, leave out rows of that batch; else return this. May share rows.

        Parameters
        ----------
        wait
            Whether the call may wait for the device to know how many rows to keep. If not, it keeps some rows too many.
        """
        return self._without_gaps(wait) if self._part else self

    def _without_gaps(self, wait: bool) -> PackedTokens:
        exact = wait and self._askable()
        own = PackedTokens._of(own_rows(self._rows()) if exact else few_rows(self._rows()), ragged=exact)
        own._part = not exact
        return own

    @safe_after_fork
    def with_tokens(self, tokens: Tensor, scales: Tensor | None = None) -> PackedTokens:
        """Return the same items over other rows: of another dim or dtype, quantised or projected.

        Parameters
        ----------
        tokens
            ``[total, dim']``, floating point or int8, on the same device, with as many rows as ``self.tokens``.
        scales
            As for the constructor.
        """
        if tokens.ndim != 2 or tokens.shape[0] != self.rows or tokens.device != self.device:
            got = f"shape {list(tokens.shape)} on {tokens.device}"
            msg = f"tokens must be [{self.rows}, dim] on {self.device}; got {got}"
            raise ValueError(msg)
        scales = checked_scales(scales, tokens)
        same = PackedTokens(tokens, self.starts, self.lengths, scales, _trusted=(self.max_length, self._order))
        same._part = self._part
        return same

    @safe_after_fork
    def to(
        self, device: torch.device | str | torch.dtype | None = None, dtype: torch.dtype | None = None
    ) -> PackedTokens:
        """Return this batch on another device, in another floating dtype, or both; this undoes :meth:`quantize`.

        Items that were cut from a larger batch take only their own rows along. If neither device is the CPU, knowing
        these rows would need a wait, so each item takes ``max_length`` rows, unless the whole batch has fewer.
        """
        if isinstance(device, torch.dtype):  # like Tensor.to(torch.float16)
            device, dtype = None, device
        device = self.device if device is None else torch.device(device)
        if device == self.device and dtype in (None, self.dtype):
            return self
        if dtype not in (None, self.dtype) and not dtype.is_floating_point:
            hint = '; quantize("int8") makes int8' if dtype == torch.int8 else ""
            msg = f"dtype must be floating point; got {dtype}{hint}"
            raise TypeError(msg)
        own = self._own(wait="cpu" in (self.device.type, device.type))
        tokens, scales, order = own.tokens, own.scales, own._order
        if scales is not None and dtype not in (None, self.dtype):
            wide = scales.double() if dtype == torch.float64 else scales
            tokens, scales = tokens * wide.unsqueeze(1), None
        tokens = tokens.to(device=device, dtype=dtype)
        scales = None if scales is None else scales.to(device)
        starts, lengths = own.starts.to(device), own.lengths.to(device)
        if order is not None:
            order = order.to(device)
        elif device.type in _ORDERED_ON and own.lengths.is_cpu and len(own) and int(own.lengths.min()) < own.max_length:
            order = longest_first(lengths)
        moved = PackedTokens(tokens, starts, lengths, scales, _trusted=(own.max_length, order))
        moved._part = own._part
        return moved

    @safe_after_fork
    def quantize(self, dtype: Literal["int8"] = "int8") -> PackedTokens:
        """Return these documents with int8 tokens and one float32 scale per token: a quarter of the memory of float32.

        Symmetric: row x becomes ``round(x / scale)`` with ``scale = max(abs(x)) / 127``, halves to even; a row of
        zeros has scale 0. Queries stay float32, bfloat16 or float16, and no gradient flows to the documents.

        Parameters
        ----------
        dtype
            ``"int8"``, the only one.

        Raises
        ------
        ValueError
            Another ``dtype``; or a token with a NaN or an infinity, which int8 cannot hold. Rows that belong to no
            item may have them. Checking this waits for the device.

        Notes
        -----
        Scores are within 1e-5 of float64 on the values that the int8 tokens stand for. An element of these values
        differs from the original by at most ``scale / 2``. For all-MiniLM-L6-v2 on Cranfield and Medline, the score of
        a query token then differs by 1e-4 in the mean and by 1.8e-3 at most; the rankings have a Kendall tau of 0.9989
        and 0.9988; nDCG@10 goes from 0.4004 to 0.4002 and from 0.7922 to 0.7911 (``python -m benchmarks.accuracy``,
        with the folders of the collections).
        """
        if dtype != "int8":
            msg = f'dtype must be "int8"; got {dtype!r}'
            raise ValueError(msg)
        if self.scales is not None:
            return self
        own = self._own(wait=True)
        tokens, scales = quantised(own.tokens.detach(), own.starts, own.lengths)
        return PackedTokens(tokens, own.starts, own.lengths, scales, _trusted=(own.max_length, own._order))

    @not_compiled
    @safe_after_fork
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write these items to a safetensors file that :meth:`load` maps into memory.

        The file has the tensors ``tokens``, ``starts``, ``lengths`` and for int8 ``scales``. Its items follow one
        another, also where they do not in ``self.tokens``, as after :meth:`models.ColBERT.encode_packed`. Items that
        were cut from a larger batch take only their own rows along. Gradients are not saved. The file is written
        beside and takes its name when it is whole and on the disk: who has an older file open keeps it.

        Parameters
        ----------
        path
            Such as ``"corpus.safetensors"``. A file there is replaced.

        Raises
        ------
        OSError
            The file cannot be written, or something else than a file is there. The old file is then as it was.
        """
        _packed_files.save(path, self._rows())

    @staticmethod
    @not_compiled
    @safe_after_fork
    def load(path: str | os.PathLike[str]) -> PackedTokens:
        """Open a file of :meth:`save` or of ``colbert-fast encode``, without reading the tokens.

        The rows lie in the file and are read when they are needed, by the system, which may also drop them from memory
        again. So a file may be larger than memory, and processes share what they read. Writing to the tokens does not
        change the file. Never write to the file or cut it, which ends processes that read it; to save a new file over
        it is safe.

        Parameters
        ----------
        path
            The file. Nothing in it is run, and every field is checked before it is used; but changed numbers in
            ``tokens`` or ``scales`` are not noticed, as long as the scales are finite and 0 or more.

        Raises
        ------
        OSError
            The file cannot be read.
        ValueError
            It is damaged, or no such file. The message names the file and the field.
        """
        rows = _packed_files.load(path)
        return PackedTokens._of(rows, ragged=True)

    @safe_after_fork
    def __copy__(self) -> PackedTokens:
        """Share the rows. Items that were cut from a larger batch may copy their rows, and do not keep the others."""
        own = self._own(wait=self.device.type == "cpu")
        same = PackedTokens(own.tokens, own.starts, own.lengths, own.scales, _trusted=(own.max_length, own._order))
        same._part = own._part
        return same

    @safe_after_fork
    def __deepcopy__(self, memo: dict[int, Any]) -> PackedTokens:
        if not self.tokens.is_leaf:
            copy.deepcopy(self.tokens, memo)  # raises the error of torch
        own = self._alone()
        fields: list[Any] = []
        for field, mine in zip(own._fields(), self._fields(), strict=True):
            if field is mine:
                field = copy.deepcopy(field, memo)
            elif self._part and field is not None:
                field = field.detach().clone().requires_grad_(field.requires_grad)
            fields.append(field)
        order = None if own._order is None else own._order.clone()
        result = PackedTokens(*fields, _trusted=(own.max_length, order))
        result._part = own._part
        return result

    @safe_after_fork
    def __reduce__(self) -> tuple[Any, ...]:
        # Loading calls the constructor, which checks the file: no number in a file becomes an address unchecked.
        return PackedTokens, self._alone()._fields()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Load a pickle that was not made by ``__reduce__``, with the checks of the constructor."""
        PackedTokens.__init__(self, *(state[name] for name in ("_tokens", "_starts", "_lengths", "_scales")))

    def _fields(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        return self.tokens, self.starts, self.lengths, self.scales

    def _alone(self) -> PackedTokens:
        """Return a batch whose memory holds its own rows only: torch saves and copies all memory of a tensor."""
        leaf = self.tokens.is_leaf
        # If the tokens are a leaf of the graph of autograd, the copied tokens are a leaf too.
        with torch.inference_mode(False), torch.set_grad_enabled(not leaf):
            own = self._own(wait=True)
            tokens, *rest = (None if field is None else alone(field) for field in own._fields())
            assert tokens is not None
            if leaf and tokens is not self.tokens:
                tokens.requires_grad_(self.tokens.requires_grad)
        result = PackedTokens(tokens, *rest, _trusted=(own.max_length, own._order))  # type: ignore[arg-type]
        result._part = own._part
        return result

    @property
    def rows(self) -> int:
        """Number of rows, with the rows that belong to no item."""
        return self.tokens.shape[0]

    @property
    def dim(self) -> int:
        """Size of one embedding."""
        return self._like.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the embeddings."""
        return self._like.dtype

    @property
    def device(self) -> torch.device:
        """Where the embeddings are; starts and lengths are there too."""
        return self._like.device

    def __repr__(self) -> str:
        rows, dim = self.tokens.shape
        return f"PackedTokens({len(self)} items, {rows} rows, dim {dim}, {self.dtype}, {self.device})"


def longest_first(lengths: Tensor) -> Tensor | None:
    """Return the order in which a GPU should take the items, or None if they are not on one. Does not wait.

    A program on the GPU starts when another one ends. If a long item starts last, it ends long after all others.
    """
    if lengths.device.type not in _ORDERED_ON:
        return None
    return lengths.argsort(descending=True).to(torch.int32)


def _let_torch_load() -> None:
    """Let ``torch.load(weights_only=True)`` make PackedTokens: constructor and ``__setstate__`` check everything."""
    known = torch.serialization.get_safe_globals()
    # A class of an earlier import of this module, which has the same name for torch.
    stale = [some for some in known if getattr(some, "__module__", None) == __name__]
    if stale:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals([some for some in known if some not in stale])
    torch.serialization.add_safe_globals([PackedTokens])


_let_torch_load()
