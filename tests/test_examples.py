"""Every file in examples/ runs, as a user would run it.

Its first line says what it needs, in the words of lacking.py: `# needs: demo`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def needed(example: Path) -> list[str]:
    first = example.read_text(encoding="utf-8").partition("\n")[0]
    assert first.startswith("# needs: "), (
        f"the first line of {example.name} must be `# needs: NAME, ...` or `# needs: nothing`"
    )
    return [name for name in first.removeprefix("# needs: ").split(", ") if name != "nothing"]


@pytest.mark.parametrize(
    "example",
    [pytest.param(e, id=e.stem, marks=[pytest.mark.needs(name) for name in needed(e)]) for e in EXAMPLES],
)
def test_example_runs(example: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(example)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_there_are_examples() -> None:
    assert EXAMPLES
