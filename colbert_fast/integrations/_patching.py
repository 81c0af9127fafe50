"""Puts functions of this package in the place of functions of another library, for as long as a `with` block runs."""

from __future__ import annotations

import contextlib
import enum
import functools
import gc
import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FunctionType, ModuleType
from typing import Any

import torch

_Function = Callable[..., Any]
# An object, and what takes its place.
_Pair = tuple[Any, Any]
# Most values are of these types. The walk skips them, because no function of a library is in them.
_PLAIN = frozenset([str, int, float, bool, bytes, type(None), ModuleType, type(len), type(int.__add__), property])


class Patch:
    """Functions of a library that are replaced while at least one `with` block of :meth:`active` runs.

    A stand-in takes the place of each function, wherever :func:`_swap_everywhere` finds it. The way back is the same
    walk with the two exchanged. So a module that is imported meanwhile, and takes the stand-in, is restored as well.
    Somebody may keep a stand-in where the walk does not look, such as a local variable. After the last block the
    stand-in calls the library's function, so that it behaves like that function everywhere.

    Parameters
    ----------
    replacements
        Imports the library, and returns each function of the library with the function to call instead.
    """

    def __init__(self, replacements: Callable[[], dict[_Function, _Function]]) -> None:
        self._replacements = replacements
        self._stand_ins: dict[_Function, _Function] = {}
        self._made: list[_Pair] = []  # objects around stand-ins, which are in the place of objects around functions
        self._blocks = 0  # how many `with` blocks of this process are running
        self._lock = threading.RLock()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        with self._lock:
            if self._blocks == 0:
                self._begin()
            self._blocks += 1
        try:
            yield
        finally:
            with self._lock:
                self._blocks -= 1
                if self._blocks == 0:
                    self._end()

    def _begin(self) -> None:
        for original, ours in self._replacements().items():
            # A stand-in is found here if Ctrl-C came when the walk of an earlier block was done, but not the block.
            if original not in self._stand_ins and original not in self._stand_ins.values():
                self._stand_ins[original] = self._stand_in(original, ours)
        try:
            _swap_everywhere(self._stand_ins.items(), self._made)
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        try:
            self._restore()
        except BaseException:  # Ctrl-C has stopped the walk: another one restores the rest
            self._restore()
            raise

    def _restore(self) -> None:
        back = [(stand_in, original) for original, stand_in in self._stand_ins.items()]
        back += [(new, old) for old, new in self._made]
        _swap_everywhere(back, [])
        self._made.clear()

    def _stand_in(self, original: _Function, ours: _Function) -> _Function:
        @functools.wraps(original)
        def stand_in(*args: Any, **kwargs: Any) -> Any:
            return (ours if self._blocks else original)(*args, **kwargs)

        return stand_in


def unless_named(theirs: _Function, ours: _Function, variable: str) -> _Function:
    """Return a function that calls theirs where a backend of theirs is named, and ours elsewhere.

    A backend is named by the argument ``backend``, if there is one, or else by the environment variable. The name
    ``"auto"``, in any case, leaves the choice open.
    """
    signature = inspect.signature(theirs)

    @functools.wraps(theirs)
    def chosen(*args: Any, **kwargs: Any) -> Any:
        backend = signature.bind(*args, **kwargs).arguments.get("backend")
        if backend is None:
            backend = os.environ.get(variable, "auto")
        return (ours if means_automatic(backend) else theirs)(*args, **kwargs)

    return chosen


def means_automatic(backend: Any) -> bool:
    return isinstance(backend, str) and backend.lower() == "auto"


def _swap_everywhere(pairs: Iterable[_Pair], made: list[_Pair]) -> None:
    """Replace the first object of each pair by the second.

    Where a static method, a partial function or a tuple holds a function that is replaced, another one takes its place.
    The list ``made`` gets these pairs too, so that the walk back puts the very same objects back.

    These places are visited: the names of every module in sys.modules, and the lists and dicts among them; the names
    of its classes; default arguments; members of enums; and the attributes of every torch.nn.Module that is alive,
    because models and losses keep the function with which they were made.
    """
    walk = _Walk({id(old): new for old, new in pairs}, made)
    for module in list(sys.modules.values()):
        # The type is asked, because isinstance would ask a lazy module for its class, and so import it.
        if issubclass(type(module), ModuleType):
            walk.names(vars(module), containers=True)
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.nn.Module):
            walk.names(vars(thing))


class _Walk:
    """One walk, which visits every class and container once."""

    def __init__(self, swap: dict[int, Any], made: list[_Pair]) -> None:
        self.swap = swap
        self.made = made
        self.seen: set[int] = set()

    def new(self, value: Any) -> Any:
        """Return what takes the place of a value: the value itself where no function is to be replaced."""
        found = self.swap.get(id(value))
        if found is not None:
            return found
        new = self.rebuilt(value)
        if new is not value:
            self.made.append((value, new))  # this keeps the value alive, so that its id stays its own
            self.swap[id(value)] = new
        return new

    def rebuilt(self, value: Any) -> Any:
        """Return a value that holds what takes the place of a function, if this value holds the function."""
        kind = type(value)
        if kind is staticmethod or kind is classmethod:
            inner = self.swap.get(id(value.__func__))
            return value if inner is None else kind(inner)
        if kind is functools.partial:
            inner = self.swap.get(id(value.func))
            if inner is None:
                return value
            partial = functools.partial(inner, *value.args, **value.keywords)
            vars(partial).update(vars(value))
            return partial
        if kind is tuple and any(id(item) in self.swap for item in value):
            return tuple(self.swap.get(id(item), item) for item in value)
        return value

    def names(self, names: dict[Any, Any], *, containers: bool = False) -> None:
        """Replace in a namespace, and in what it holds."""
        for name, value in list(names.items()):
            if type(value) in _PLAIN:
                continue
            new = self.new(value)
            if new is not value:
                names[name] = new
            else:
                self.inside(value, containers=containers)

    def inside(self, value: Any, *, containers: bool = False) -> None:
        """Replace inside of a function or a class; with ``containers`` also inside of a list or a dict."""
        kind = type(value)
        if kind is FunctionType:
            self.function(value)
        elif kind is staticmethod or kind is classmethod:
            self.inside(value.__func__)
        elif issubclass(kind, type):
            if self.first_time(value):
                self.class_(value)
        elif containers and kind is dict:
            if self.first_time(value):
                self.names(value)
        elif containers and kind is list and self.first_time(value):
            for i, item in enumerate(value):
                new = self.new(item)
                if new is not item:
                    value[i] = new

    def function(self, function: FunctionType) -> None:
        """Replace in the default arguments, but not inside of them: a function may be a default of itself.

        A decorator may have put another function around this one, which then has the default arguments.
        """
        defaults = function.__defaults__
        if defaults is not None:
            for default in defaults:
                self.new(default)  # so that the tuple of all defaults finds it
            new = self.new(defaults)
            if new is not defaults:
                function.__defaults__ = new
        by_keyword = function.__kwdefaults__ or {}
        for name, value in list(by_keyword.items()):
            new = self.new(value)
            if new is not value:
                by_keyword[name] = new
        inner = vars(function).get("__wrapped__")
        if type(inner) is FunctionType and self.first_time(inner):
            self.function(inner)

    def class_(self, owner: type) -> None:
        """Replace in the attributes of a class, and in the values and attributes of the members of an enum."""
        for name, value in list(vars(owner).items()):
            if type(value) in _PLAIN:
                continue
            new = self.new(value)
            if new is not value:
                type.__setattr__(owner, name, new)
            else:
                self.inside(value)
        if issubclass(owner, enum.Enum):
            for member in owner:
                before = member._value_
                self.names(vars(member))
                if member._value_ is not before:
                    with contextlib.suppress(TypeError):  # a value without a hash is in no dictionary
                        owner._value2member_map_.pop(before, None)
                        owner._value2member_map_[member._value_] = member

    def first_time(self, value: Any) -> bool:
        """Return whether the value was not visited before, and note that it is now."""
        if id(value) in self.seen:
            return False
        self.seen.add(id(value))
        return True
