"""Replace the files of a folder in one step: other processes see the old files or the new files, never a mixture.

The new files are written to a hidden folder beside the old folder. Then the two folders exchange their names. Files of
the old folder that are not replaced, such as notes of the user, are linked into the new folder with hard links. A
process that is killed leaves a hidden folder behind; the next call for the same path removes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

from colbert_fast.models.folder_contents import Replaced, carry, may_go, publish, retire, sync, sync_folders, walk
from colbert_fast.models.staging import (
    MARK,
    Stage,
    alone,
    copy_permissions,
    hidden_name,
    put_back,
    recover,
    remove_leftovers,
    remove_tree,
)

# The errors for a folder that cannot be moved: its parent cannot be written, it is a mount point, or somebody else owns
# it.
_IMMOVABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV)
# The errors of a system, or of a file system, that cannot exchange the names of two folders.
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM)
# No library loads a checkpoint without these files. Where files are moved one by one, these files are moved last.
_LAST = ("adapter_config.json", "modules.json", "config.json")


def replace(
    path: str | os.PathLike[str],
    write: Callable[[str], None],
    replaced: Callable[[str, frozenset[str]], Replaced],
) -> None:
    """Replace the files of a folder by the files that `write` makes.

    Parameters
    ----------
    path
        The folder. It is made if it does not exist. If `path` is a link to a folder, this folder is replaced and the
        link stays.
    write
        Called with an empty folder, into which it writes the new files. If it raises an error, everything stays as it
        was.
    replaced
        Called with the old folder and the paths of the new files. Returns a function that says which paths of the old
        folder belong to what is replaced.

    Raises
    ------
    FileExistsError
        `path` is not a folder; or it holds a checkpoint and cannot be moved, as a mount point cannot; or it has a
        folder where a file must be written, or a file where a folder must be made.
    OSError
        An error of the system, such as a full disk.
    """
    target = _resolved(path)
    parent = os.path.dirname(target)
    recover(target)
    remove_leftovers(parent, target)
    remove_leftovers(target, target)
    if os.path.isdir(target) and not os.access(target, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), target)
    obstacle = _mounted(parent, target)
    if obstacle is None:
        try:
            stage = Stage(parent, target)
        except OSError as error:
            if not os.path.isdir(target) or error.errno not in _IMMOVABLE:
                raise
            obstacle = error
        else:
            obstacle = _replace_by(stage, target, write, replaced)
    if obstacle is not None:
        with alone(target):
            _fill(target, write, replaced, obstacle)


def _replace_by(
    stage: Stage, target: str, write: Callable[[str], None], replaced: Callable[[str, frozenset[str]], Replaced]
) -> OSError | None:
    """Write to `stage` and exchange it with `target`. If `target` cannot be moved, return the error, else None."""
    written: frozenset[str] = frozenset()
    here = _working_folder(target)
    parent = os.path.dirname(target)
    with contextlib.ExitStack() as stack:
        try:
            if not _can_exchange(stage.path):
                # The target will be missing for a moment. With this lock, no other process makes a new folder there.
                stack.enter_context(alone(parent))
                put_back(target)
            if os.path.isdir(target):
                copy_permissions(target, stage.path)
            write(stage.path)
            written = publish(stage.path)
            if os.path.isdir(target):
                carry(target, stage.path, replaced(target, written), written)
            sync_folders(stage.path)
            try:
                with alone(target):  # waits until every `reading` of the old folder has ended
                    _install(stage.path, target)
            except OSError as error:
                if error.errno not in _IMMOVABLE or not os.path.isdir(target):
                    raise
                return error
            sync(parent)
        finally:
            # An interrupt may come at any line, also below. The lock must always be released: the lock stays with its
            # folder, which may be the target by now.
            try:
                # If the new files are still at this path, the exchange did not take place.
                if stage.is_here():
                    remove_tree(stage.path)
                else:
                    stage.release()
                    if here is not None:
                        with contextlib.suppress(OSError):
                            os.chdir(here)
                    if os.path.isdir(stage.path):
                        # `replaced` is called again, because another process may have put its own folder there first.
                        retire(stage.path, target, replaced(stage.path, written), written)
            finally:
                stage.release()
    return None


def _mounted(parent: str, target: str) -> OSError | None:
    """Return an error if `target` is the mount point of another disk, else None.

    A folder beside a mount point lies on another disk, so the two cannot exchange their names.
    """
    try:
        same = os.stat(target).st_dev == os.stat(parent).st_dev
    except FileNotFoundError:
        return None
    return None if same else OSError(errno.EBUSY, os.strerror(errno.EBUSY), target)


def _can_exchange(folder: str) -> bool:
    """Return whether the system can exchange the names of two folders inside `folder`."""
    one, other = (os.path.join(folder, f"{MARK}{name}") for name in ("one", "other"))
    os.mkdir(one)
    os.mkdir(other)
    code = _exchange(one, other)
    os.rmdir(one)
    os.rmdir(other)
    return code == 0


def _resolved(path: str | os.PathLike[str]) -> str:
    """Return the path with links followed, and make the parent folders. Raise FileExistsError if it is no folder."""
    name = os.fspath(path)
    if not isinstance(name, str):
        msg = f"path must be a str or a path of str; got {path!r}"
        raise TypeError(msg)
    for part in (Path(name), *Path(name).parents):
        if os.path.lexists(part) and not os.path.isdir(part):
            kind = "link to nothing" if part.is_symlink() and not os.path.exists(part) else "file"
            msg = f"path must be a folder; got the {kind} {str(part)!r}"
            raise FileExistsError(msg)
    target = os.path.realpath(name)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    return target


def _install(stage: str, target: str) -> None:
    """Put the folder `stage` in the place of `target`. An old folder is then at the path of `stage`."""
    while True:
        try:
            os.rename(stage, target)  # works if `target` does not exist or is an empty folder
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        code = _exchange(stage, target)
        if code in _NO_EXCHANGE:
            code = _set_aside(stage, target)
        if code == 0:
            return
        # Another process removed the target, or put its own folder there, in the meantime: try again.
        if code not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
            raise OSError(code, os.strerror(code), target)


def _exchange(one: str, other: str) -> int:
    """Exchange the names of two folders in one step. Return 0, or the number of the error.

    Python has no function for this, and the packages that we need have none either. Every glibc that torch supports
    has one.
    """
    try:
        if sys.platform == "linux":
            at_fdcwd, rename_exchange = -100, 2
            libc = ctypes.CDLL(None, use_errno=True)
            names = os.fsencode(one), os.fsencode(other)
            failed = libc.renameat2(at_fdcwd, names[0], at_fdcwd, names[1], ctypes.c_uint(rename_exchange))
        elif sys.platform == "darwin":
            rename_swap = 2
            libc = ctypes.CDLL(None, use_errno=True)
            failed = libc.renamex_np(os.fsencode(one), os.fsencode(other), ctypes.c_uint(rename_swap))
        else:
            return errno.ENOSYS
    except AttributeError:
        return errno.ENOSYS
    return ctypes.get_errno() if failed else 0


def _set_aside(stage: str, target: str) -> int:
    """Do in several renames what `_exchange` does in one step. After a kill between two renames, `recover` helps."""
    aside = hidden_name(os.path.dirname(target), target, "replaced")
    try:
        os.rename(target, aside)
        try:
            os.rename(stage, target)
        except BaseException:
            os.rename(aside, target)
            raise
        # Another process may have removed the old folder already.
        with contextlib.suppress(FileNotFoundError):
            os.rename(aside, stage)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _working_folder(target: str) -> str | None:
    """Return the path of the process's working folder if it is `target` or lies inside `target`, else None."""
    try:
        here = os.path.realpath(os.getcwd())
    except OSError:
        return None
    return here if (here + os.sep).startswith(target.rstrip(os.sep) + os.sep) else None


def _fill(
    target: str,
    write: Callable[[str], None],
    replaced: Callable[[str, frozenset[str]], Replaced],
    obstacle: OSError,
) -> None:
    """Fill a folder that cannot be exchanged. The files are moved one by one, the configuration last.

    Raises FileExistsError if the folder holds a checkpoint.
    """
    if held := [name for name in _LAST if os.path.lexists(os.path.join(target, name))]:
        msg = (
            f"path must not hold a checkpoint ({held[0]}) if the folder cannot be replaced in one step "
            f"({obstacle.strerror}); got {target!r}: save to a folder inside it, or empty it first"
        )
        raise FileExistsError(msg) from obstacle
    stage = Stage(target, target)
    moved: list[str] = []
    try:
        write(stage.path)
        written = publish(stage.path)
        belongs = replaced(target, written)
        # Remove files of a checkpoint, which an earlier save may have left here when it was killed.
        for path, entry in list(walk(target)):
            if not entry.is_dir(follow_symlinks=False) and belongs(path) and may_go(entry, f"{stage.path}/{path}"):
                os.unlink(entry.path)
        for path, entry in walk(stage.path):
            if entry.is_dir():
                os.makedirs(os.path.join(target, path), exist_ok=True)
        for path in sorted(written, key=lambda path: _LAST.index(path) if path in _LAST else -1):
            there = os.path.join(target, path)
            if path in _LAST:
                sync_folders(target)
            moved.append(there)
            os.replace(os.path.join(stage.path, path), there)
        moved.clear()
        sync_folders(target)
    finally:
        try:
            for there in moved:
                with contextlib.suppress(OSError):
                    os.unlink(there)
            remove_tree(stage.path)
        finally:
            stage.release()
