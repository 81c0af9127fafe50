"""The lock of writers: at most one thread of one process writes into a folder."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
import time
from collections.abc import Iterator

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

NAME = "writer.lock"
_PAUSE = 0.01
# What the system says if somebody else holds the lock.
_HELD = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)


class WriterLock:
    """The exclusive lock of a folder, which the system takes back when a process ends.

    Parameters
    ----------
    folder
        Of the collection.
    """

    def __init__(self, folder: str) -> None:
        self.path: str = os.path.join(folder, NAME)
        self._threads = threading.Lock()
        self._owner: int | None = None

    @contextlib.contextmanager
    def held(self, wait: float) -> Iterator[None]:
        """Hold the lock. Raise TimeoutError if it cannot be had within ``wait`` seconds."""
        until = time.monotonic() + wait
        if self._owner == threading.get_ident():  # it would wait for itself
            msg = f"an iterator of ids or metadata must not change {os.path.dirname(self.path)}, which waits for it"
            raise RuntimeError(msg)
        if not self._threads.acquire(timeout=max(wait, 0)):
            msg = f"another thread of this process writes to {os.path.dirname(self.path)}; waited {wait:g} seconds"
            raise TimeoutError(msg)
        try:
            self._owner = threading.get_ident()
            # A link, in a folder that somebody else has made, might lead to a file that is dear.
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
            try:
                self._lock(descriptor, wait, until)
                try:
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, str(os.getpid()).encode())
                    yield
                finally:
                    # A forked child may have the descriptor too, so closing it would not give the lock back.
                    _unlock(descriptor)
            finally:
                os.close(descriptor)
        finally:
            self._owner = None
            self._threads.release()

    def _lock(self, descriptor: int, wait: float, until: float) -> None:
        while True:
            try:
                _try_lock(descriptor)
                return
            except OSError as error:
                if error.errno not in _HELD:
                    error.filename = self.path  # a file system without locks, for one
                    raise
                if time.monotonic() >= until:
                    holder = _holder(descriptor)
                    who = f"process {holder}" if holder.isdecimal() else "another process"
                    msg = f"{who} writes to {os.path.dirname(self.path)}; waited {wait:g} seconds"
                    raise TimeoutError(msg) from None
            time.sleep(_PAUSE)


if sys.platform == "win32":

    def _try_lock(descriptor: int) -> None:
        _at_the_lock(descriptor, msvcrt.LK_NBLCK)

    def _unlock(descriptor: int) -> None:
        _at_the_lock(descriptor, msvcrt.LK_UNLCK)

    def _at_the_lock(descriptor: int, what: int) -> None:
        # The locked byte lies beyond the number of the process, which others may read.
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)
        msvcrt.locking(descriptor, what, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)

else:

    def _try_lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _holder(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, 20).decode("ascii", "replace")
