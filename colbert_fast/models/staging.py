"""Hidden folders in which the files of another folder are made ready: their names, their locks, what kills leave."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # Windows: nothing says there whether a hidden folder is in use, and what a kill left stays.
    fcntl = None  # type: ignore[assignment]

MARK = ".colbert_fast-"


def recover(folder: str | os.PathLike[str]) -> None:
    """Put back a folder that a killed process had set aside; nothing where the folder is there.

    Only where two folders cannot be exchanged in one step is the old one set aside before the new one comes. A process
    that does this now is waited for.
    """
    target = os.path.realpath(folder)
    parent = os.path.dirname(target)
    if not os.path.lexists(target) and hidden(parent, target, "replaced"):
        with alone(parent):
            put_back(target)


def put_back(target: str) -> None:
    """As `recover`, for who is alone already."""
    if not os.path.lexists(target):
        for aside in hidden(os.path.dirname(target), target, "replaced"):
            with contextlib.suppress(OSError):
                os.rename(aside, target)
                return


@contextlib.contextmanager
def alone(parent: str) -> Iterator[None]:
    """Wait until no other process or thread is here with this folder, as far as the file system has locks."""
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
    """Let no save of ours replace a folder while its files are read, as far as the file system has locks."""
    descriptor = None
    try:
        while fcntl is not None:
            try:
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                if os.path.samestat(os.fstat(descriptor), os.stat(folder)):
                    break
            except (OSError, TypeError, ValueError):  # no folder, which the load will say; or no locks
                break
            _unlock(descriptor)
            descriptor = None
        yield
    finally:
        _unlock(descriptor)


class Stage:
    """A hidden folder in `parent`, locked while it is in use, in which the files for `target` are written."""

    def __init__(self, parent: str, target: str) -> None:
        while True:
            self.path = hidden_name(parent, target, "saving")
            # What umask gives; or closed until it has the permissions of the folder that it replaces.
            os.mkdir(self.path, 0o700 if os.path.isdir(target) else 0o777)
            try:
                self._lock = _lock(self.path)
            except (BlockingIOError, FileNotFoundError):
                # Another process took it for a leftover before it was locked, and removes it.
                continue
            except BaseException:
                os.rmdir(self.path)
                raise
            with contextlib.suppress(FileNotFoundError):
                self._status = os.stat(self.path)
                if self._lock is None or os.path.samestat(self._status, os.fstat(self._lock)):
                    break

    def is_here(self) -> bool:
        """Whether the new files are still at `path`; after the exchange the old ones are there, or nothing."""
        try:
            return os.path.samestat(self._status, os.stat(self.path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Unlock the folder, wherever it is now."""
        lock, self._lock = self._lock, None
        _unlock(lock)


def hidden_name(parent: str, target: str, kind: str) -> str:
    """A new path in `parent` for a hidden folder: being written, or old and set aside."""
    return os.path.join(parent, f"{_prefix(target, kind)}{secrets.token_hex(6)}")


def hidden(parent: str, target: str, kind: str) -> list[str]:
    """The hidden folders of a kind that `parent` has for `target`."""
    prefix = _prefix(target, kind)
    try:
        return [os.path.join(parent, name) for name in os.listdir(parent) if name.startswith(prefix)]
    except OSError:
        return []


def _prefix(target: str, kind: str) -> str:
    # A digest, for the name of the target may be as long as a name can be.
    digest = hashlib.sha256(os.fsencode(os.path.basename(target))).hexdigest()
    return f"{MARK}{kind}-{digest[:12]}-"


def _lock(folder: str) -> int | None:
    """Lock a folder and return the descriptor that holds the lock, or None where folders cannot be locked.

    Raises BlockingIOError where another process or thread holds it. The system takes the lock from a killed process.
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
        # A child forked meanwhile has the descriptor too, which would keep the lock.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def remove_leftovers(parent: str, target: str) -> None:
    """Remove what killed processes left for `target`; what is locked is in use."""
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
    """Remove a hidden folder with all there is in it, as far as this process may."""
    for parent, names, _ in os.walk(folder):
        for name in names:
            inner = os.path.join(parent, name)
            # A folder of the user that may not be written has come along with its permissions.
            if not os.path.islink(inner):
                with contextlib.suppress(OSError):
                    os.chmod(inner, 0o700)
    shutil.rmtree(folder, ignore_errors=True)


def copy_permissions(old: str, new: str) -> None:
    """Give a new folder the owner and the permissions of an old one, as far as this process may."""
    status = os.stat(old)
    if hasattr(os, "chown"):
        with contextlib.suppress(OSError):
            os.chown(new, status.st_uid, status.st_gid)
    with contextlib.suppress(OSError):
        shutil.copystat(old, new)
