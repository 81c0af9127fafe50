"""Rankings: TREC run files, and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence

from colbert_fast.cli.texts import Texts, lines, shown

TREC, JSON, JSONL = "trec", "json", "jsonl"
# The results of one query: the number of each document and its score, best first.
Ranking = list[tuple[int, float]]


def read_run(path: str, queries: Texts, corpus: Texts) -> list[list[int]]:
    """Read a TREC run file: ``query Q0 document rank score tag`` on each line.

    Returns
    -------
    list of list of int
        For each of the queries the numbers of its documents, in the order of the file.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        A line that cannot be read or that names an unknown id, or two lines for one pair. The message names the line.
    """
    places = {name: place for place, name in enumerate(queries.ids)}
    numbers = {name: number for number, name in enumerate(corpus.ids)}
    found: list[dict[int, None]] = [{} for _ in queries.ids]
    for line_number, line in lines(path):
        where = f"{shown(path)}, line {line_number}"
        fields = line.split()
        if len(fields) != 6:
            msg = f"{where}: a line must have 6 columns, query Q0 document rank score tag; got {len(fields)}"
            raise ValueError(msg)
        for name, known, what in ((fields[0], places, "query"), (fields[2], numbers, "document")):
            if name not in known:
                msg = f"{where}: the {what} {name!r} is not in the file of {'queries' if known is places else 'texts'}"
                raise ValueError(msg)
        row, number = found[places[fields[0]]], numbers[fields[2]]
        if number in row:
            msg = f"{where}: an earlier line has the document {fields[2]!r} for the query {fields[0]!r} already"
            raise ValueError(msg)
        row[number] = None
    return [list(row) for row in found]


def check_trec_ids(texts: Texts, what: str) -> None:
    """Raise ValueError for an id that a run file cannot hold: white space ends a column."""
    for name in texts.ids:
        if not name or any(letter.isspace() for letter in name):
            msg = f"the id {name!r} of a {what} has white space, which a TREC run cannot hold; --format json can"
            raise ValueError(msg)


def as_trec(
    queries: Texts, corpus_ids: Sequence[str], rankings: Sequence[Ranking], system: str = "colbert-fast"
) -> Iterator[str]:
    """Yield the lines of a TREC run file. The tag, which is their last column, is the name of the system."""
    tag = "-".join(system.split()) or "colbert-fast"
    for name, ranking in zip(queries.ids, rankings, strict=True):
        for rank, (number, score) in enumerate(ranking, start=1):
            yield f"{name} Q0 {corpus_ids[number]} {rank} {score:.9g} {tag}"


def as_json(queries: Texts, corpus_ids: Sequence[str], rankings: Sequence[Ranking]) -> Iterator[str]:
    """Yield one JSON object for each query: ``{"query": id, "results": [{"id", "score"}, ...]}``."""
    for name, ranking in zip(queries.ids, rankings, strict=True):
        # JSON has no NaN and no infinity.
        results = [
            {"id": corpus_ids[number], "score": score if math.isfinite(score) else None} for number, score in ranking
        ]
        yield json.dumps({"query": name, "results": results}, ensure_ascii=False)


def as_lines(form: str, queries: Texts, corpus_ids: Sequence[str], rankings: Sequence[Ranking]) -> list[str]:
    """Return the lines of rankings in one of the three formats. A TREC run without results has no line."""
    if form == TREC:
        return list(as_trec(queries, corpus_ids, rankings))
    rows = list(as_json(queries, corpus_ids, rankings))
    return ["[", ",\n".join(rows), "]"] if form == JSON else rows
