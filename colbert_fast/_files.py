"""Files that are whole or not there: written beside, forced to the disk, and renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the path of an empty file to fill. At the end it takes the name ``path`` in one step.

    Whoever has the old file open or mapped keeps it. If the context ends with an exception, the file is removed, and
    what was at ``path`` before is still there. If the process is killed, the unfinished file stays beside, with the
    ending ``.part``. A link is followed.

    Raises
    ------
    OSError
        The file cannot be written; or a folder, a device or a pipe is at ``path``, which must not be replaced.
    """
    target = Path(path).resolve()
    if kind_of(target) not in (None, stat.S_IFREG):
        msg = f"{path} is not an ordinary file, and is not replaced by one"
        raise OSError(msg)
    beside = path_beside(target)
    try:
        create(beside)
        mode = beside.stat().st_mode
        yield beside
        # A library may have put a file of its own, for its user only, in the place of ours.
        beside.chmod(stat.S_IMODE(mode))
        to_disk(beside)
        os.replace(beside, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)  # a full disk does not say which file it refused
        raise
    # Without this, a crash of the machine could undo the new name. Some systems cannot open a folder.
    with contextlib.suppress(OSError):
        to_disk(target.parent)


def kind_of(path: Path) -> int | None:
    """Return what is at the path, as the module `stat` names it, or None if nothing is there."""
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except FileNotFoundError:
        return None


def path_beside(path: Path) -> Path:
    """Return a new name beside a file, for what will replace the file."""
    # Short: a file system allows 255 bytes for a name, and the name of the user may be long.
    return path.with_name(f"{path.name[:40]}.{secrets.token_hex(4)}.part")


def create(path: Path) -> None:
    """Make an empty file, where nothing may be."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))


def to_disk(path: Path) -> None:
    """Wait until the disk has the content of a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
