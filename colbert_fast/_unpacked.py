"""Refuses to be imported out of an archive, such as a zipapp."""

from __future__ import annotations

from pathlib import Path


def refuse_archive(path: str) -> None:
    """Raise ImportError if the module in ``path`` is not in a folder but in an archive.

    Python loads no extension from an archive, and the model and the texts of the demo are read as files. Programs such
    as PyInstaller keep modules in an archive of their own, but say that they are in a folder, which has these files.
    """
    for folder in Path(path).parents:
        if folder.is_dir():
            return
        if folder.is_file():
            msg = (
                f"colbert_fast cannot be imported from the archive {folder}: Python loads no C++ extension from there. "
                "Install it into a folder, with pip install --target FOLDER, and put the folder on sys.path; or let a "
                "tool make the archive that unpacks itself, such as shiv or pex"
            )
            raise ImportError(msg)


refuse_archive(__file__)
