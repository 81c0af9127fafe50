"""Pure-Python wheels used without installing them."""

from __future__ import annotations

import zipfile
from pathlib import Path

from benchmarks import machine


def unpack(folder: Path, into: Path) -> list[str]:
    """Unpack the wheels whose distribution is not installed.

    Returns
    -------
    list
        The names of the wheels that were unpacked into ``into``, which belongs on the path.
    """
    unpacked = []
    for wheel in sorted(folder.glob("*.whl")):
        name, _, tag = wheel.stem.partition("-")
        if machine.version(name.replace("_", "-")) is not None or not tag.endswith("-none-any"):
            continue
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(into)
        unpacked.append(wheel.name)
    return unpacked
