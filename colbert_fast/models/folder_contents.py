"""Work on everything that a folder holds: write it to the disk, link it into another folder, remove it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator

from colbert_fast.models.staging import MARK, copy_permissions

# A function that takes a path, relative to the old folder and with "/" between its parts, and says whether the path
# belongs to what is replaced. A folder belongs to what is replaced if it need not stay when it is empty.
Replaced = Callable[[str], bool]


def walk(folder: str, inside: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield the relative path and the entry of everything in a folder. Links are not followed.

    A folder comes before what it holds. Hidden folders of `staging` are left out.
    """
    try:
        with os.scandir(os.path.join(folder, inside)) as entries:
            listed = list(entries)
    except FileNotFoundError:  # removed in the meantime, for example by a training that keeps few checkpoints
        return
    for entry in listed:
        if entry.name.startswith(MARK):
            continue
        path = f"{inside}/{entry.name}" if inside else entry.name
        yield path, entry
        if entry.is_dir(follow_symlinks=False):
            yield from walk(folder, path)


def publish(folder: str) -> frozenset[str]:
    """Give new files the permissions that the umask allows, write them to the disk, and return their paths."""
    probe = os.path.join(folder, f"{MARK}probe")
    os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    # A new file shows which permissions the umask allows. The umask itself can only be read if it is changed for a
    # moment, which all threads would notice.
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
    """Write the list of a folder's files to the disk."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # these two: a file system that has no such list to write
            raise
    finally:
        os.close(descriptor)


def sync_folders(folder: str) -> None:
    """Write the lists of files of a folder, and of all folders inside it, to the disk."""
    for _, entry in walk(folder):
        if entry.is_dir(follow_symlinks=False):
            sync(entry.path)
    sync(folder)


def carry(old: str, new: str, belongs: Replaced, written: frozenset[str]) -> None:
    """Link into `new` everything in `old` that is not replaced. `written` holds the paths of the new files."""
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
            # Another process may remove or replace the file in the meantime.
            with contextlib.suppress(FileNotFoundError):
                _link(entry, there)
    _copy_all_permissions(old, new, made)


def may_go(entry: os.DirEntry[str], there: str) -> bool:
    """Return whether a file of the old folder may be removed, although its name is a name of the checkpoint.

    A file may not be removed if the new checkpoint has a folder of this name: the file is then the user's. A link may
    be removed, because it may stand for the folder of a module that lies elsewhere.
    """
    return entry.is_symlink() or not os.path.isdir(there)


def _check_same_kind(path: str, entry: os.DirEntry[str], same: bool) -> None:
    """Raise FileExistsError if a file stands where a folder must be, or a folder where a file must be."""
    if not same:
        kinds = ("folder", "file") if entry.is_dir(follow_symlinks=False) else ("file", "folder")
        msg = f"path must not hold a {kinds[0]} {path!r}, where a {kinds[1]} of the checkpoint goes; got {entry.path!r}"
        raise FileExistsError(msg)


def _make_folders(new: str, path: str, made: list[str]) -> None:
    """Make the folder `path` inside `new`, with its parents. Add the folders that did not exist to `made`."""
    there = os.path.join(new, path)
    if path and not os.path.isdir(there):
        _make_folders(new, os.path.dirname(path), made)
        with contextlib.suppress(FileExistsError):
            os.mkdir(there, 0o700)
            made.append(path)


def _copy_all_permissions(old: str, new: str, made: list[str]) -> None:
    """Give the folders in `made` the permissions and the times that they have in `old`.

    This comes last: a folder that is written to gets a new time, and its permissions may forbid to write to it.
    """
    for path in reversed(made):
        with contextlib.suppress(OSError):
            copy_permissions(os.path.join(old, path), os.path.join(new, path))


def _link(entry: os.DirEntry[str], there: str) -> None:
    """Link a file to the path `there`. If the system refuses the link, copy the file."""
    if entry.is_symlink():
        os.symlink(os.readlink(entry.path), there)
        return
    try:
        os.link(entry.path, there)
    except OSError:
        # The file system has no hard links, or somebody else owns the file and the system forbids to link it.
        if not entry.is_file():
            raise
        shutil.copy2(entry.path, there)


def retire(old: str, new: str, belongs: Replaced, written: frozenset[str]) -> None:
    """Remove the old folder. A file that came to it after `carry`, and that is not replaced, moves to the new folder.

    The checkpoint is saved by now. What cannot be removed is left for the next call.
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
    """Remove or move a file. If its folder forbids this, make the folder writable and try again."""
    try:
        remove(path, *to)
    except PermissionError:
        os.chmod(os.path.dirname(path), 0o700)
        remove(path, *to)


def _is_same(entry: os.DirEntry[str], there: str) -> bool:
    """Return whether the path `there` is the same file as the entry, or an equal link."""
    try:
        if entry.is_symlink():
            return os.readlink(entry.path) == os.readlink(there)
        return os.path.samestat(os.lstat(entry.path), os.lstat(there))
    except OSError:
        return False
