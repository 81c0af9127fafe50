"""Embeddings that the contenders search: of a collection in BEIR's layout, or synthetic; and their exact ranking.

They are kept as .npy files in a folder, because contenders that need another torch read them too: this module needs
numpy alone, until it has to encode texts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from benchmarks.beir import lines, read_judgements

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
# How many of the best documents the exact ranking keeps: those that tie with the last of the k best are among them.
KEPT = 50
# Scores this close, relative to the larger one, count as equal: nobody has to break ties of float32 as float64 does.
TIE = 1e-6
_FILES = ("documents", "lengths", "queries", "query_lengths", "exact_numbers", "exact_scores")


@dataclass(frozen=True)
class Data:
    """Documents ``[total, dim]`` float16, one after the other, and queries ``[total, dim]`` float32."""

    documents: Array
    lengths: Array
    queries: Array
    query_lengths: Array
    exact_numbers: Array
    """``[queries, KEPT]``: the best documents, best first."""
    exact_scores: Array
    """``[queries, KEPT]`` float64: their scores."""
    about: dict[str, Any]
    """The name of the data, how they were made, and ``judged``: by query a dict from document numbers to gains."""

    @classmethod
    def read(cls, folder: Path) -> Data:
        """Map the files of a folder into memory."""
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _FILES}
        return cls(**arrays, about=json.loads((folder / "about.json").read_text(encoding="utf-8")))

    def write(self, folder: Path) -> None:
        """Write all files; the last one, which says that the folder is whole, is about.json."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            np.save(folder / f"{name}.npy", getattr(self, name))
        (folder / "about.json").write_text(json.dumps(self.about) + "\n", encoding="utf-8")

    def batches(self, documents: int) -> Iterator[tuple[int, Array, Array]]:
        """Yield the number of the first document, the rows in float32, and the lengths: so many documents a time."""
        ends = np.concatenate([[0], np.cumsum(self.lengths)])
        for first in range(0, len(self.lengths), documents):
            last = min(first + documents, len(self.lengths))
            yield first, self.documents[ends[first] : ends[last]].astype(np.float32), self.lengths[first:last]

    def items(self) -> list[Array]:
        """Return every document in float32."""
        return [item for _, rows, lengths in self.batches(1000) for item in np.split(rows, np.cumsum(lengths)[:-1])]

    def asked(self) -> list[Array]:
        """Return every query."""
        return np.split(np.array(self.queries), np.cumsum(self.query_lengths)[:-1])

    def right(self, query: int, k: int) -> set[int]:
        """Return the documents that may stand among the k best: more than k, where several tie for the last place."""
        scores = self.exact_scores[query]
        enough = scores >= scores[k - 1] - TIE * abs(scores[k - 1])
        return {int(number) for number in self.exact_numbers[query][enough]}


def with_exact(documents: Array, lengths: Array, queries: Array, query_lengths: Array, about: dict[str, Any]) -> Data:
    """Rank all documents by float32 products of numpy, and the best of them again in float64."""
    nothing = np.zeros((0, 0))
    data = Data(documents, lengths, queries, query_lengths, nothing, nothing, about)
    starts = np.cumsum(query_lengths) - query_lengths
    blocks = []
    for _, rows, block in data.batches(200):
        best = np.maximum.reduceat(rows @ queries.T, np.cumsum(block) - block, axis=0)
        blocks.append(np.add.reduceat(best, starts, axis=1))
    scores = np.concatenate(blocks).T
    kept = min(KEPT, scores.shape[1])
    numbers = np.argpartition(-scores, kept - 1, axis=1)[:, :kept]
    ends = np.concatenate([[0], np.cumsum(lengths)])
    exact = np.empty(numbers.shape)
    for query, (asked, found) in enumerate(zip(data.asked(), numbers, strict=True)):
        for place, number in enumerate(found):
            tokens = documents[ends[number] : ends[number + 1]].astype(np.float64)
            exact[query, place] = (asked.astype(np.float64) @ tokens.T).max(1).sum()
    # Best first; of equal scores the smaller number, as topk ranks them.
    order = np.lexsort((numbers, -exact), axis=1)
    numbers, exact = np.take_along_axis(numbers, order, 1), np.take_along_axis(exact, order, 1)
    return Data(documents, lengths, queries, query_lengths, numbers, exact, about)


def unit(rows: Array) -> Array:
    """Scale rows to length 1."""
    scaled: Array = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return scaled


# Of the synthetic embeddings. What a token is made of: the area of its document, the narrower topic, its word, and
# noise of its own. With these weights the tenth best document has as many close followers as in Cranfield, embedded by
# the demo's model: in both, on average 14, 25 and 40 documents of `exact_scores` have a score that is above the tenth
# minus 0.01, 0.03 and 0.05 a query token.
AREA, TOPIC, WORD, NOISE, COMMON = 0.3, 0.3, 0.8, 0.6, 0.3
PER_AREA, PER_TOPIC, WORDS, WORDS_OF_TOPIC = 400, 50, 20_000, 100


def synthetic(documents: int, queries: int, dim: int = 128, seed: int = 0) -> Data:
    """Make unit vectors around topics: documents of 70 tokens on average, and queries about one document each."""
    random = np.random.default_rng(seed)
    # Text embeddings vary much more in some directions than in others.
    spread = (np.arange(dim) + 1.0) ** -0.4
    spread = (spread / np.sqrt((spread**2).mean())).astype(np.float32)

    def directions(*shape: int) -> Array:
        made: Array = random.standard_normal((*shape, dim), dtype=np.float32) / np.float32(np.sqrt(dim))
        return made

    areas, topics = directions(max(documents // PER_AREA, 1)), directions(max(documents // PER_TOPIC, 1))
    words, common = directions(WORDS), COMMON * directions()
    rank = np.arange(WORDS) + 10.0
    frequent = np.cumsum(1 / rank) / np.sum(1 / rank)
    of_topic = random.integers(WORDS, size=(len(topics), WORDS_OF_TOPIC))
    topic = random.integers(len(topics), size=documents)
    lengths = np.clip(np.rint(random.lognormal(np.log(70) - 0.08, 0.4, documents)), 5, 300).astype(np.int64)

    def tokens(topic: Array, word: Array) -> Array:
        """Embed these words where they stand in documents of these topics."""
        made = AREA * areas[topic % len(areas)] + TOPIC * topics[topic] + WORD * words[word] + common
        made += NOISE * directions(len(word))
        made *= spread
        return unit(made)

    rows = np.empty((int(lengths.sum()), dim), np.float16)
    word = np.empty(len(rows), np.int64)
    topic_of_row = np.repeat(topic, lengths)
    for first in range(0, len(rows), 1 << 18):
        here = topic_of_row[first : first + (1 << 18)]
        local = of_topic[here, random.integers(WORDS_OF_TOPIC, size=len(here))]
        common_word = np.minimum(np.searchsorted(frequent, random.random(len(here))), WORDS - 1)
        word[first : first + len(here)] = np.where(random.random(len(here)) < 0.5, local, common_word)
        rows[first : first + len(here)] = tokens(here, word[first : first + len(here)])
    query_lengths = random.integers(12, 33, queries)
    source = random.integers(documents, size=queries)
    starts = np.cumsum(lengths) - lengths
    asked = [
        tokens(np.full(n, topic[d]), word[starts[d] + random.integers(lengths[d], size=n)])
        for d, n in zip(source, query_lengths, strict=True)
    ]
    about = {"name": f"synthetic-{documents}", "source": f"synthetic, seed {seed}", "judged": None}
    return with_exact(rows, lengths, np.concatenate(asked), query_lengths, about)


def of_collection(folder: Path, queries: int, dim: int) -> Data:
    """Encode a collection in BEIR's layout with the demo's model, and keep its ``dim`` main directions.

    The model's 384 numbers a token are projected to the directions in which the documents' tokens are longest, and
    scaled to length 1. This stands in for the projection of a ColBERT checkpoint.
    """
    from benchmarks.accuracy import demo_encoder

    encoder = demo_encoder()
    corpus, asked = lines(folder / "corpus.jsonl"), lines(folder / "queries.jsonl")[:queries]
    texts = [f"{line.get('title', '')} {line['text']}".strip() for line in corpus]
    packed = encoder.encode_documents(texts, tqdm_bar=True), encoder.encode_queries([line["text"] for line in asked])
    documents, ask = ([item.numpy().astype(np.float32) for item in items] for items in packed)
    numbers = {line["_id"]: number for number, line in enumerate(corpus)}
    judged = read_judgements(folder / "qrels" / "test.tsv")
    gains = [{numbers[d]: g for d, g in judged.get(line["_id"], {}).items() if d in numbers} for line in asked]
    about = {"name": f"{folder.name}-{dim}", "source": f"{folder.name}, all-MiniLM-L6-v2", "judged": gains}
    return projected(documents, ask, dim, about)


def projected(documents: list[Array], queries: list[Array], dim: int, about: dict[str, Any]) -> Data:
    """Keep the ``dim`` main directions of all tokens, and rank. Rows of zeros, which pad, are left out."""
    documents, queries = ([item[item.any(1)] for item in items] for items in (documents, queries))
    rows, asked = np.concatenate(documents), np.concatenate(queries)
    if dim < rows.shape[1]:
        _, vectors = np.linalg.eigh(rows.T.astype(np.float64) @ rows)
        main = vectors[:, ::-1][:, :dim].astype(np.float32)
        rows, asked = unit(rows @ main), unit(asked @ main)
    lengths, query_lengths = (np.array([len(item) for item in items]) for items in (documents, queries))
    return with_exact(rows.astype(np.float16), lengths, asked, query_lengths, about)
