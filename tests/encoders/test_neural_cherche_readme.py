"""The program that neural-cherche's README shows runs with another name in the import, and gives the same results."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from tiny import DATA

pytestmark = pytest.mark.needs("retrieval")


def test_the_whole_program(minilm_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DATA))
    program = importlib.import_module("neural_cherche_readme")
    recorded = json.loads((DATA / "neural_cherche_readme.json").read_text(encoding="utf-8"))
    ours = program.run("colbert_fast", minilm_checkpoint, tmp_path / "checkpoint")
    assert ours["losses"] == pytest.approx(recorded["losses"], rel=1e-5)
    assert ours["measures"] == pytest.approx(recorded["measures"])
    # retrieve.BM25 has another formula than neural-cherche, so its scores differ and only the order is compared.
    assert list(map(list, ours["candidates"])) == list(map(list, recorded["candidates"]))
    for mine, theirs in zip(ours["rankings"], recorded["rankings"], strict=True):
        assert list(mine) == list(theirs)
        assert mine == pytest.approx(theirs, rel=1e-5)
