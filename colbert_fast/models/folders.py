"""Replace the files of a folder in one step: whoever looks finds the old ones or the new ones, never a mixture.

The new files are written to a hidden folder beside the old one, which the two then exchange names with. What is in
the old folder and is not replaced, such as the notes of its owner, comes along as hard links. A process that is killed
leaves a hidden folder behind; the next call for the same path removes it.
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

# The parent folder cannot be written, or the folder cannot be moved: a mount point, somebody else's folder.
_IMMOVABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV)
# The system, or the file system, does not exchange folders.
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM)
# Nothing loads a checkpoint without these. Where files are moved one by one they come last.
_LAST = ("adapter_config.json", "modules.json", "config.json")


def replace(
    path: str | os.PathLike[str],
    write: Callable[[str], None],
    replaced: Callable[[str, frozenset[str]], Replaced],
) -> None:
    """Replace the files of a folder by those that `write` makes.

    Parameters
    ----------
    path
        The folder, made where it does not exist. Of a link to a folder, the folder is replaced and the link stays.
    write
        Called with an empty folder to write to; an error it raises leaves everything as it was.
    replaced
        Called with the old folder and the paths of the new files; says which old files are replaced.

    Raises
    ------
    FileExistsError
        `path` is something else than a folder; or it holds a checkpoint and cannot be moved, as a mount point; or it
        has a folder where a file must be written, or a file in place of a folder.
    OSError
        What the system says, such as a full disk.
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
    """Write to `stage` and exchange it with `target`. Returns the error of a target that cannot be moved."""
    written: frozenset[str] = frozenset()
    here = _working_folder(target)
    parent = os.path.dirname(target)
    with contextlib.ExitStack() as stack:
        try:
            if not _can_exchange(stage.path):
                # The target is missing for a moment: nobody else may take it for a new one.
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
                with alone(target):  # Loads of ours read it to the end first.
                    _install(stage.path, target)
            except OSError as error:
                if error.errno not in _IMMOVABLE or not os.path.isdir(target):
                    raise
                return error
            sync(parent)
        finally:
            # An interrupt may come at any line, also at those below: a lock that stayed would lock the target.
            try:
                # What lies there says whether the exchange took place.
                if stage.is_here():
                    remove_tree(stage.path)
                else:
                    stage.release()
                    if here is not None:
                        with contextlib.suppress(OSError):
                            os.chdir(here)
                    if os.path.isdir(stage.path):
                        # Asked again, for another process may have been quicker to put its own there.
                        retire(stage.path, target, replaced(stage.path, written), written)
            finally:
                stage.release()
    return None


def _mounted(parent: str, target: str) -> OSError | None:
    """The error of a folder where another disk is mounted: a folder beside it lies on a disk that cannot replace it."""
    try:
        same = os.stat(target).st_dev == os.stat(parent).st_dev
    except FileNotFoundError:
        return None
    return None if same else OSError(errno.EBUSY, os.strerror(errno.EBUSY), target)


def _can_exchange(folder: str) -> bool:
    """Whether two folders inside this one can be exchanged."""
    one, other = (os.path.join(folder, f"{MARK}{name}") for name in ("one", "other"))
    os.mkdir(one)
    os.mkdir(other)
    code = _exchange(one, other)
    os.rmdir(one)
    os.rmdir(other)
    return code == 0


def _resolved(path: str | os.PathLike[str]) -> str:
    """The folder itself behind links, with its parents made, or FileExistsError for what is no folder."""
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
    """Put `stage` in place of `target`. What was there is then at the path of `stage`."""
    while True:
        try:
            os.rename(stage, target)  # nothing there, or an empty folder
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        code = _exchange(stage, target)
        if code in _NO_EXCHANGE:
            code = _set_aside(stage, target)
        if code == 0:
            return
        # Another process took the target away, or was quicker to put its own there: once more.
        if code not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
            raise OSError(code, os.strerror(code), target)


def _exchange(one: str, other: str) -> int:
    """Exchange the names of two folders in one step; returns 0, or the error's number.

    Python has no function for it, nor has any package that this one needs. Where torch runs, glibc has it.
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
    """Do in several steps what `_exchange` does in one; `recover` mends what a kill between them leaves."""
    aside = hidden_name(os.path.dirname(target), target, "replaced")
    try:
        os.rename(target, aside)
        try:
            os.rename(stage, target)
        except BaseException:
            os.rename(aside, target)
            raise
        # Another process may have removed it already.
        with contextlib.suppress(FileNotFoundError):
            os.rename(aside, stage)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _working_folder(target: str) -> str | None:
    """The path of the process's working folder where it is `target` or lies in it, or else None."""
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
    """Write to a folder that cannot be exchanged, which must hold no checkpoint: file by file, configuration last."""
    if held := [name for name in _LAST if os.path.lexists(os.path.join(target, name))]:
        msg = (
            f"path must not hold a checkpoint ({held[0]}) where the folder cannot be replaced in one step "
            f"({obstacle.strerror}); got {target!r}: save to a folder inside it, or empty it first"
        )
        raise FileExistsError(msg) from obstacle
    stage = Stage(target, target)
    moved: list[str] = []
    try:
        write(stage.path)
        written = publish(stage.path)
        belongs = replaced(target, written)
        # Of an earlier save that was killed here, say.
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
