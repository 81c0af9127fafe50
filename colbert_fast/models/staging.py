"""The hidden folders in which new files are prepared: their names, their locks, and what a killed process leaves.

There are two kinds. A "saving" folder holds the new files while they are written. A "replaced" folder is the old folder
that was set aside, on a system that cannot exchange two folders in one step.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # Windows has no such locks: nothing says whether a hidden folder is in use, so leftovers stay.
    fcntl = None  # type: ignore[assignment]

MARK = ".colbert_fast-"


def recover(folder: str | os.PathLike[str]) -> None:
    """Put back a folder that a killed process had set aside. If the folder exists, do nothing.

    The old folder is set aside only on a system that cannot exchange two folders in one step. If another process is
    doing this now, wait for it.
    """
    target = os.path.realpath(folder)
    parent = os.path.dirname(target)
    if not os.path.lexists(target) and hidden(parent, target, "replaced"):
        with alone(parent):
            put_back(target)


def put_back(target: str) -> None:
    """Do what `recover` does, for a caller that holds the lock of `alone` already."""
    if not os.path.lexists(target):
        for aside in hidden(os.path.dirname(target), target, "replaced"):
            with contextlib.suppress(OSError):
                os.rename(aside, target)
                return


@contextlib.contextmanager
def alone(parent: str) -> Iterator[None]:
    """Hold the exclusive lock of a folder: at most one process or thread is in this context.

    Waits for the lock. Without effect on a file system that has no locks.
    """
    descriptor = None
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                descriptor = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        _unlock(descriptor)


@contextlib.contextmanager
def reading(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a shared lock of a folder, so that no save replaces the folder while its files are read.

    Without effect on a file system that has no locks.
    """
    descriptor = None
    try:
        while fcntl is not None:
            try:
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                if os.path.samestat(os.fstat(descriptor), os.stat(folder)):
                    break
            except (OSError, TypeError, ValueError):  # no locks; or no folder, for which the load raises the error
                break
            _unlock(descriptor)
            descriptor = None
        yield
    finally:
        _unlock(descriptor)


class Stage:
    """A hidden folder in `parent` into which the new files for `target` are written. It is locked while it is used."""

    def __init__(self, parent: str, target: str) -> None:
        while True:
            self.path: str = hidden_name(parent, target, "saving")
            # A new folder gets the permissions that the umask allows. A folder that replaces another one is closed to
            # others until it has the permissions of the old folder.
            os.mkdir(self.path, 0o700 if os.path.isdir(target) else 0o777)
            try:
                self._lock = _lock(self.path)
            except (BlockingIOError, FileNotFoundError):
                # Before the folder was locked, another process thought that it was a leftover, and removes it.
                continue
            except BaseException:
                os.rmdir(self.path)
                raise
            with contextlib.suppress(FileNotFoundError):
                self._status = os.stat(self.path)
                if self._lock is None or os.path.samestat(self._status, os.fstat(self._lock)):
                    break

    def is_here(self) -> bool:
        """Return whether the new files are still at `path`. After the exchange the old files are there, or nothing."""
        try:
            return os.path.samestat(self._status, os.stat(self.path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Unlock the folder, which may have another name by now."""
        lock, self._lock = self._lock, None
        _unlock(lock)


def hidden_name(parent: str, target: str, kind: str) -> str:
    """Return a new path in `parent` for a hidden folder for `target`, of the kind "saving" or "replaced"."""
    return os.path.join(parent, f"{_prefix(target, kind)}{secrets.token_hex(6)}")


def hidden(parent: str, target: str, kind: str) -> list[str]:
    """Return the paths of the hidden folders in `parent` for `target`, of the kind "saving" or "replaced"."""
    prefix = _prefix(target, kind)
    try:
        return [os.path.join(parent, name) for name in os.listdir(parent) if name.startswith(prefix)]
    except OSError:
        return []


def _prefix(target: str, kind: str) -> str:
    # A digest of the target's name and not the name itself, which may be as long as the file system allows.
    digest = hashlib.sha256(os.fsencode(os.path.basename(target))).hexdigest()
    return f"{MARK}{kind}-{digest[:12]}-"


def _lock(folder: str) -> int | None:
    """Lock a folder and return the descriptor that holds the lock, or None if folders cannot be locked here.

    Raises BlockingIOError if another process or thread holds the lock. When a process is killed, the system releases
    its locks.
    """
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _unlock(descriptor: int | None) -> None:
    if descriptor is not None:
        # A child that was forked in the meantime has the descriptor too. Without LOCK_UN the child would keep the lock.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def remove_leftovers(parent: str, target: str) -> None:
    """Remove the hidden folders that killed processes left for `target`. A locked folder is in use and stays."""
    if hidden(parent, target, "replaced"):
        with alone(parent):
            if os.path.isdir(target):
                for aside in hidden(parent, target, "replaced"):
                    remove_tree(aside)
    for leftover in hidden(parent, target, "saving"):
        with contextlib.suppress(OSError):
            lock = _lock(leftover)
            if lock is not None:
                remove_tree(leftover)
                _unlock(lock)


def remove_tree(folder: str) -> None:
    """Remove a hidden folder and everything in it, as far as the permissions of this process allow."""
    for parent, names, _ in os.walk(folder):
        for name in names:
            inner = os.path.join(parent, name)
            # A folder of the user keeps its permissions in the hidden folder. They may forbid to remove files from it.
            if not os.path.islink(inner):
                with contextlib.suppress(OSError):
                    os.chmod(inner, 0o700)
    shutil.rmtree(folder, ignore_errors=True)


def copy_permissions(old: str, new: str) -> None:
    """Give a new folder the owner, permissions and times of an old one, as far as this process is allowed to."""
    status = os.stat(old)
    if hasattr(os, "chown"):
        with contextlib.suppress(OSError):
            os.chown(new, status.st_uid, status.st_gid)
    with contextlib.suppress(OSError):
        shutil.copystat(old, new)
