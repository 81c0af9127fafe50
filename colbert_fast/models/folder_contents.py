"""The content of a folder: brought to the disk, linked into another folder, removed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator

from colbert_fast.models.staging import MARK, copy_permissions

# Does a path, relative to the old folder and with "/" between its parts, belong to what is replaced? The path of a
# folder belongs to it if the folder need not stay when it is empty.
Replaced = Callable[[str], bool]


def walk(folder: str, inside: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Relative path and entry of everything in a folder, a folder before its content; links are not followed."""
    try:
        with os.scandir(os.path.join(folder, inside)) as entries:
            listed = list(entries)
    except FileNotFoundError:  # removed meanwhile, by a training that keeps its last checkpoints, say
        return
    for entry in listed:
        if entry.name.startswith(MARK):
            continue
        path = f"{inside}/{entry.name}" if inside else entry.name
        yield path, entry
        if entry.is_dir(follow_symlinks=False):
            yield from walk(folder, path)


def publish(folder: str) -> frozenset[str]:
    """Give new files the permissions that umask says, bring them to the disk, and return their paths."""
    probe = os.path.join(folder, f"{MARK}probe")
    os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    # The umask itself can only be read by changing it for a moment, for all threads.
    mode = stat.S_IMODE(os.stat(probe).st_mode)
    os.unlink(probe)
    written = set()
    for path, entry in walk(folder):
        if not entry.is_dir():
            with open(entry.path, "r+b") as file:
                os.fsync(file.fileno())
            os.chmod(entry.path, mode)
            written.add(path)
    return frozenset(written)


def sync(folder: str) -> None:
    """Bring the list of a folder's files to the disk."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that has nothing to bring to a disk
            raise
    finally:
        os.close(descriptor)


def sync_folders(folder: str) -> None:
    """Bring the lists of a folder and of all folders in it to the disk."""
    for _, entry in walk(folder):
        if entry.is_dir(follow_symlinks=False):
            sync(entry.path)
    sync(folder)


def carry(old: str, new: str, belongs: Replaced, written: frozenset[str]) -> None:
    """Link into `new` whatever `old` has that is not replaced."""
    made: list[str] = []
    for path, entry in walk(old):
        there = os.path.join(new, path)
        is_folder = entry.is_dir(follow_symlinks=False)
        if is_folder and (path in written or not belongs(path)):
            _check_same_kind(path, entry, path not in written)
            _make_folders(new, path, made)
        elif not is_folder and path not in written and not (belongs(path) and may_go(entry, there)):
            _check_same_kind(path, entry, not os.path.isdir(there))
            _make_folders(new, os.path.dirname(path), made)
            # Another process may remove or replace a file meanwhile.
            with contextlib.suppress(FileNotFoundError):
                _link(entry, there)
    _copy_all_permissions(old, new, made)


def may_go(entry: os.DirEntry[str], there: str) -> bool:
    """A file with the name of a module's folder is the user's; a link may be the folder of a module elsewhere."""
    return entry.is_symlink() or not os.path.isdir(there)


def _check_same_kind(path: str, entry: os.DirEntry[str], same: bool) -> None:
    if not same:
        kinds = ("folder", "file") if entry.is_dir(follow_symlinks=False) else ("file", "folder")
        msg = f"path must not hold a {kinds[0]} {path!r}, where a {kinds[1]} of the checkpoint goes; got {entry.path!r}"
        raise FileExistsError(msg)


def _make_folders(new: str, path: str, made: list[str]) -> None:
    """Make the folder `path` of `new` and those around it, and list in `made` which were not there."""
    there = os.path.join(new, path)
    if path and not os.path.isdir(there):
        _make_folders(new, os.path.dirname(path), made)
        with contextlib.suppress(FileExistsError):
            os.mkdir(there, 0o700)
            made.append(path)


def _copy_all_permissions(old: str, new: str, made: list[str]) -> None:
    """Give folders the permissions and the times they have in `old`, once their content is there."""
    for path in reversed(made):
        with contextlib.suppress(OSError):
            copy_permissions(os.path.join(old, path), os.path.join(new, path))


def _link(entry: os.DirEntry[str], there: str) -> None:
    if entry.is_symlink():
        os.symlink(os.readlink(entry.path), there)
        return
    try:
        os.link(entry.path, there)
    except OSError:
        # A file system without hard links; or a file of somebody else, which may not be linked.
        if not entry.is_file():
            raise
        shutil.copy2(entry.path, there)


def retire(old: str, new: str, belongs: Replaced, written: frozenset[str]) -> None:
    """Remove the old folder. What came to it after `carry`, and is not replaced, moves to the new one.

    The checkpoint is saved by now: what cannot be removed is left to the next call.
    """
    folders: list[str] = []
    made: list[str] = []
    for path, entry in walk(old):
        with contextlib.suppress(OSError):
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
                if not belongs(path):
                    _make_folders(new, path, made)
            elif path in written or belongs(path) or _is_same(entry, os.path.join(new, path)):
                _in_writable_folder(os.unlink, entry.path)
            else:
                _make_folders(new, os.path.dirname(path), made)
                _in_writable_folder(os.replace, entry.path, os.path.join(new, path))
    _copy_all_permissions(old, new, made)
    with contextlib.suppress(OSError):
        for folder in reversed(folders):
            _in_writable_folder(os.rmdir, folder)
        os.rmdir(old)


def _in_writable_folder(remove: Callable[..., None], path: str, *to: str) -> None:
    try:
        remove(path, *to)
    except PermissionError:
        os.chmod(os.path.dirname(path), 0o700)
        remove(path, *to)


def _is_same(entry: os.DirEntry[str], there: str) -> bool:
    try:
        if entry.is_symlink():
            return os.readlink(entry.path) == os.readlink(there)
        return os.path.samestat(os.lstat(entry.path), os.lstat(there))
    except OSError:
        return False
