"""The source tree, from which neither the tests nor what they start import colbert_fast."""

from __future__ import annotations

import json
import subprocess
from importlib.metadata import distribution
from pathlib import Path

# `make test` runs a copy of the tests, below it.
SOURCE = next(folder for folder in Path(__file__).resolve().parents if (folder / "setup.py").is_file())


def files() -> set[str]:
    """What git has, or would have after `git add`; of an unpacked sdist, whose maker had git, every file."""
    command = ["git", "-C", str(SOURCE), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0 and (SOURCE / ".git").exists():
        names = done.stdout.split("\0")
    else:
        names = [path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*") if "__pycache__" not in path.parts]
    return {name for name in names if (SOURCE / name).is_file()}


def package() -> set[str]:
    """The files of the package."""
    return {name for name in files() if name.startswith("colbert_fast/") and not name.endswith((".so", ".pyd"))}


def is_editable() -> bool:
    """Whether this environment is one of `make dev`, whose colbert_fast is the source tree."""
    return bool(json.loads(distribution("colbert-fast").read_text("direct_url.json") or "{}").get("dir_info"))
