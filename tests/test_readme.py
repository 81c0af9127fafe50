"""The README's examples run, and give the shapes that they promise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(block: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(block, names)
    return names


def test_scoring_embeddings() -> None:
    names = run(BLOCKS[0])
    assert names["scores"].shape == (2, 3)
    assert names["best"].shape == names["numbers"].shape == (2, 2)
    assert names["pairs"].shape == (2,)
    assert names["small"].tokens.nbytes * 4 == names["packed"].tokens.nbytes


@pytest.mark.needs("demo")
def test_scoring_texts() -> None:
    names = run("import colbert_fast as cf\n" + BLOCKS[1] + BLOCKS[2])
    assert names["scores"].shape == (2,)
    assert names["numbers"].tolist() == [[1]]
    assert 0 < float(names["best"]) <= 1


def test_every_example_is_run() -> None:
    assert len(BLOCKS) == 3
