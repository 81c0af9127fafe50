"""What commands write: standard output, one line on standard error, and whole files."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from colbert_fast import _files

# The exit statuses that a shell reports for a command that Ctrl-C ended, and for one that wrote to a closed pipe.
INTERRUPTED, CLOSED_PIPE = 128 + 2, 128 + 13
# The number of characters of a line of `tell` at most.
_LONGEST = 1000
# What moves the cursor of a terminal, changes its title or its colours, or ends such a sequence. A text or an id of
# somebody else may hold it.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def write(text: str, failed: int = 1, data: bool = False) -> int:
    """Print to standard output, and return the exit status.

    It is 0 if all of the text was written, CLOSED_PIPE if nobody reads it any more, and ``failed`` after another error.
    A letter that the encoding of standard output lacks becomes an escape, and so does a character that controls a
    terminal. With ``data``, which a machine reads, the encoding is UTF-8 as in files, because an escape would change an
    id, or make JSON that nobody can read.
    """
    encoding = "utf-8" if data else getattr(sys.stdout, "encoding", None) or "utf-8"
    text = text if data else _harmless(text)
    try:
        _print(f"{text}\n".encode(encoding, "backslashreplace"), encoding)
        return 0
    except BrokenPipeError:
        status = CLOSED_PIPE
    except OSError as error:
        tell(f"cannot write to standard output: {error.strerror or error}")
        status = failed
    # Python would try to write the rest of its buffer at the end, and fail again. So the rest goes to the null device.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def _harmless(text: str) -> str:
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _print(raw: bytes, encoding: str) -> None:
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None:  # a stream in memory
        print(raw.decode(encoding), end="", flush=True)
        return
    sys.stdout.flush()
    rest = memoryview(raw)
    while rest:
        # Without a buffer (PYTHONUNBUFFERED), a disk that gets full takes the first part and raises no error.
        count = buffer.write(rest)
        if not count:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        rest = rest[count:]
    buffer.flush()


def tell(message: str) -> None:
    """Print one line to standard error. Do nothing if standard error cannot be written."""
    line = _harmless(" ".join(message.split()))
    if len(line) > _LONGEST:
        # Such as a message that quotes a line of a file. What is wrong is told at the beginning or at the end.
        line = f"{line[: _LONGEST - 300]} ... {line[-295:]}"
    with contextlib.suppress(OSError):
        print(f"colbert-fast: {line}", file=sys.stderr, flush=True)


def flush_stderr() -> None:
    """Write the buffer of standard error now. If this fails, forget the buffer."""
    try:
        sys.stderr.flush()
    except OSError:
        # Python would try to write the buffer again at the end, fail, and change the exit status.
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def shortened(text: str, width: int = 92) -> str:
    """Return the text on at most ``width`` characters."""
    return text if len(text) <= width else text[: width - 3].rstrip() + "..."


def check_output(path: Path, *, ordinary: bool = False) -> None:
    """Raise OSError now if a file could not be written there later, after minutes of work.

    ``ordinary``: refuse a device or a pipe too.
    """
    with _told(path):
        kind = _files.kind_of(path)
        if kind == stat.S_IFDIR:
            problem = "it is a folder"
        elif kind not in (None, stat.S_IFREG):
            problem = "it is not an ordinary file" if ordinary else ""
        elif not path.parent.is_dir():
            problem = f"the folder {path.parent} does not exist"
        else:
            problem = ""
            beside = _files.path_beside(path.resolve())
            _files.create(beside)
            beside.unlink()
        if problem:
            raise OSError(problem)


def make_folder(path: Path) -> None:
    """Make a folder and its parents. A folder that is there already stays as it is."""
    with _told(path):
        path.mkdir(parents=True, exist_ok=True)


def folder_bytes(folder: str) -> int:
    """Return what the files in a folder take on the disk."""
    return sum(path.stat().st_size for path in Path(folder).iterdir() if path.is_file())


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield the path of an empty file to fill. At the end it takes the name ``path`` in one step.

    If the context ends with an exception, the file is removed, and what was at ``path`` before is still there. If the
    process is killed, the unfinished file stays beside, with the ending ``.part``.

    A device or a pipe has no content to keep, so its own path is yielded. Never let a library that replaces files write
    to it: that would put a file in the place of the device. See `check_output`.
    """
    with _told(path):
        if _files.kind_of(path) not in (None, stat.S_IFREG):
            yield path
            return
        with _files.whole_file(path) as beside:
            yield beside


def write_file(path: Path, text: str) -> None:
    """Write a file in UTF-8, whole or not at all."""
    with whole_file(path) as beside:
        beside.write_bytes(text.encode("utf-8", "backslashreplace"))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a file of lines. Each line ends in a newline."""
    write_file(path, "".join(f"{line}\n" for line in lines))


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Name the file that the user asked for in errors of the system. A closed pipe stays what it is."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        msg = f"cannot write {path}: {error.strerror or error}"
        raise OSError(msg) from None
