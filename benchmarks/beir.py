"""Collections in BEIR's layout, and nDCG: with nothing but the standard library."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

Document = TypeVar("Document", bound=Hashable)


def lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def read_judgements(path: Path) -> dict[str, dict[str, float]]:
    """Gains of documents by query."""
    judged: dict[str, dict[str, float]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            judged.setdefault(row["query-id"], {})[row["corpus-id"]] = float(row["score"])
    return judged


def ndcg(ranking: Sequence[Document], gains: Mapping[Document, float], depth: int = 10) -> float:
    """Normalised discounted cumulative gain of the first ``depth`` documents."""
    ideal = sorted(gains.values(), reverse=True)[:depth]
    found = [gains.get(document, 0.0) for document in ranking[:depth]]
    best = sum(gain / math.log2(rank + 2) for rank, gain in enumerate(ideal))
    return sum(gain / math.log2(rank + 2) for rank, gain in enumerate(found)) / best if best else 0.0
