"""The source tree. Neither the tests nor the processes that they start import colbert_fast from it."""

from __future__ import annotations

import json
import subprocess
from importlib.metadata import distribution
from pathlib import Path

# `make test` runs a copy of the tests in a folder of the tree.
SOURCE = next(folder for folder in Path(__file__).resolve().parents if (folder / "setup.py").is_file())


def files() -> set[str]:
    """Return the files that git has, or would have after `git add`; in an sdist, the files that its list names."""
    command = ["git", "-C", str(SOURCE), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, text=True, check=False) if (SOURCE / ".git").exists() else None
    if done is not None and done.returncode == 0:
        names = done.stdout.split("\0")
    else:
        names = (SOURCE / "colbert_fast.egg-info" / "SOURCES.txt").read_text(encoding="utf-8").splitlines()
    return {name for name in names if ".egg-info/" not in name and (SOURCE / name).is_file()}


def package() -> set[str]:
    """Return the files of the package."""
    return {name for name in files() if name.startswith("colbert_fast/") and not name.endswith((".so", ".pyd"))}


def is_editable() -> bool:
    """Whether this environment is one of `make dev`, whose colbert_fast is the source tree."""
    return bool(json.loads(distribution("colbert-fast").read_text("direct_url.json") or "{}").get("dir_info"))
