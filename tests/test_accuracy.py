"""The script that measures what int8 documents cost on a collection."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import embeddings

import colbert_fast as cf
from benchmarks import accuracy


def test_ndcg() -> None:
    gains = {"a": 1.0, "b": 1.0}
    assert accuracy.ndcg(["a", "b", "x"], gains) == 1
    assert accuracy.ndcg(["x", "y"], gains) == 0
    ideal = 1 + 1 / math.log2(3)
    assert accuracy.ndcg(["x", "a", "y", "b"], gains) == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / ideal)
    assert accuracy.ndcg(["x", "a"], gains, depth=1) == 0
    assert accuracy.ndcg(["b", "c"], {"b": 1.0, "c": 2.0}) == pytest.approx(
        (1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3))
    )


class Encoder:
    """Every text is a number, the number of its embedding."""

    def __init__(self) -> None:
        self.items = embeddings([7] * 12, 16)

    def encode_queries(self, texts: list[str], **kwargs: Any) -> cf.PackedTokens:
        return cf.PackedTokens.from_list([self.items[int(text)] for text in texts])

    encode_documents = encode_queries


@pytest.mark.needs("benchmarks")
def test_a_collection(tmp_path: Path) -> None:
    lines = [json.dumps({"_id": f"d{i}", "title": "", "text": str(i)}) for i in range(12)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    (tmp_path / "queries.jsonl").write_text("\n".join(json.dumps({"_id": f"q{i}", "text": str(i)}) for i in (3, 8, 9)))
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq3\td3\t1\nq8\td8\t1\n")
    torch.manual_seed(0)
    result = accuracy.measure(tmp_path, Encoder(), None)
    assert (result["documents"], result["queries"], result["tokens"], result["dim"]) == (12, 3, 84, 16)
    assert result["ndcg_10"] == result["ndcg_10_int8"] == result["same_first"] == 1  # each query is a document
    assert 0 < result["mean_error_per_query_token"] < result["max_error_per_query_token"] < 0.01
    assert 0.8 < result["kendall_tau"] <= 1
    assert result["mebibytes_int8"] == result["mebibytes"] * (16 + 4) / 64
    assert accuracy.measure(tmp_path, Encoder(), 6)["documents"] == 6
