"""Measures of a ranking, under the names that neural-cherche (ranx) gives to them, computed by ir-measures."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, overload

from colbert_fast._extras import need
from colbert_fast.utils.documents import checked_list
from colbert_fast.utils.judgements import Judgements, checked_judgements

need("colbert_fast.utils.evaluate", "retrieval", {"ir-measures": "0.3.6"})

import ir_measures
from ir_measures import AP, RR, NumRelRet, P, R, Rprec, SetF, SetP, SetR, Success, nDCG

_DEFAULT = ("ndcg@10", "hits@1", "hits@2", "hits@3", "hits@4", "hits@5", "hits@10")
# What a name stands for without a cutoff. A ranking is never longer than the cutoff of `hit_rate`.
_WHOLE: dict[str, Any] = {
    "f1": SetF,
    "hit_rate": Success @ 1_000_000,
    "hits": NumRelRet,
    "map": AP,
    "mrr": RR,
    "ndcg": nDCG,
    "precision": SetP,
    "r-precision": Rprec,
    "recall": SetR,
}
# With a cutoff: the measures that `_value` makes one number of.
_CUT: dict[str, list[Any]] = {
    "f1": [P, R],
    "hit_rate": [Success],
    "hits": [P],
    "map": [AP],
    "mrr": [RR],
    "ndcg": [nDCG],
    "precision": [P],
    "recall": [R],
}
_NAME = re.compile(r"(?P<name>[a-z0-9_]+(?:-precision)?)(?:@(?P<cut>[1-9]\d*))?(?:-l(?P<level>[1-9]\d*))?")


@overload
def evaluate(
    scores: Sequence[Sequence[Mapping[str, Any]]], qrels: Judgements, queries: Sequence[str], metrics: str
) -> float: ...
@overload
def evaluate(
    scores: Sequence[Sequence[Mapping[str, Any]]], qrels: Judgements, queries: Sequence[str], metrics: tuple[()] = ()
) -> dict[str, float]: ...
@overload
def evaluate(
    scores: Sequence[Sequence[Mapping[str, Any]]], qrels: Judgements, queries: Sequence[str], metrics: Sequence[str]
) -> dict[str, float] | float: ...
def evaluate(
    scores: Sequence[Sequence[Mapping[str, Any]]],
    qrels: Judgements,
    queries: Sequence[str],
    metrics: str | Sequence[str] = (),
) -> dict[str, float] | float:
    """Measure rankings against judgements, as neural-cherche does; ir-measures computes them.

    Only the order of each ranking counts, not its scores, so that there are no ties. A mean is over all queries of
    `qrels`: a judged query that is not in `queries` counts as 0, and queries without judgements are left out.

    Parameters
    ----------
    scores
        The ranking of each query, best first: dicts with the document's identifier as "id". If a document comes twice
        in a ranking, the first place counts. Identifiers are compared as str.
    qrels
        The judgements of each query, by the query: an integer for each document, 1 or more if it is relevant.
    queries
        The query of each ranking. Queries may be repeated if `scores` has one ranking for each distinct query.
    metrics
        Names: "ndcg", "map", "mrr", "recall", "precision", "f1", "hits" (the number of relevant documents found),
        "hit_rate" (1 if one is found), with or without a cutoff ("ndcg@10"), and "r-precision". The ending "-l2" asks
        for judgements of 2 or more. Default: "ndcg@10" and hits@1, 2, 3, 4, 5 and 10.

    Returns
    -------
    dict or float
        The mean of each measure by its name; for a single name, the mean alone, as in neural-cherche.

    Raises
    ------
    TypeError, ValueError
        `scores` and `queries` are no lists, or do not fit; a result has no "id"; there are no judgements, or one is no
        integer; or a name is unknown.
    """
    names = [metrics] if isinstance(metrics, str) else checked_list("metrics", metrics, object, "names")
    names = names or list(_DEFAULT)
    parsed = {name: _parsed(name) for name in names}
    judged = {query: {str(d): v for d, v in given.items()} for query, given in checked_judgements(qrels).items()}
    if not judged:
        msg = "qrels must have the judgements of one query or more; got an empty dict"
        raise ValueError(msg)
    run = _run_of(scores, queries)
    means = {}
    for name, (kind, cut, level) in parsed.items():
        relevant = {q: {d: v if v >= level else 0 for d, v in given.items()} for q, given in judged.items()}
        found = _by_query(kind, cut, relevant, run)
        means[name] = sum(found.get(query, 0.0) for query in judged) / len(judged)
    return means[names[0]] if len(names) == 1 else means


def _parsed(metric: Any) -> tuple[str, int, int]:
    """Return the name of a measure, its cutoff (0: none), and the lowest judgement of a relevant document."""
    match = _NAME.fullmatch(metric) if isinstance(metric, str) else None
    if match is None or match["name"] not in _WHOLE or (match["name"] == "r-precision" and match["cut"]):
        msg = f"metrics must be names of {sorted(_WHOLE)}, with @k for a cutoff and -lN for a level; got {metric!r}"
        raise ValueError(msg)
    return match["name"], int(match["cut"] or 0), int(match["level"] or 1)


def _run_of(scores: Any, queries: Any) -> dict[str, dict[str, float]]:
    """Return a value for each document of each ranking, which falls with the place."""
    rankings = checked_list("scores", scores, Iterable, "rankings, one for each query")
    asked = checked_list("queries", queries, Hashable, "queries")
    distinct = list(dict.fromkeys(asked))
    if len(rankings) == len(distinct):
        asked = distinct
    if len(rankings) != len(asked):
        given = f"{len(rankings)} rankings for {len(asked)} queries ({len(distinct)} distinct ones)"
        msg = f"scores needs one ranking for each query; got {given}"
        raise ValueError(msg)
    run: dict[str, dict[str, float]] = {}
    for index, (query, ranking) in enumerate(zip(asked, rankings, strict=True)):
        values = run.setdefault(query, {})
        for place, result in enumerate(ranking):
            if not isinstance(result, Mapping) or "id" not in result:
                msg = f'scores[{index}][{place}] must be a dict with an "id"; got {result!r}'
                raise ValueError(msg)
            values.setdefault(str(result["id"]), -float(place))
    return run


def _by_query(
    kind: str, cut: int, qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]]
) -> dict[str, float]:
    """Return the measure of each query that was judged and ranked."""
    numbers = {str(number): query for number, query in enumerate(qrels) if query in run}
    judged = {number: qrels[query] for number, query in numbers.items()}
    ranked = {number: run[query] for number, query in numbers.items()}
    parts = [measure @ cut for measure in _CUT[kind]] if cut else [_WHOLE[kind]]
    values: dict[str, list[float]] = {}
    for part in parts:
        for found in ir_measures.iter_calc([part], judged, ranked):
            values.setdefault(numbers[found.query_id], []).append(found.value)
    return {query: _value(kind, cut, found) for query, found in values.items()}


def _value(kind: str, cut: int, found: list[float]) -> float:
    if cut and kind == "hits":
        return float(round(found[0] * cut))
    if cut and kind == "f1":
        return 2 * found[0] * found[1] / (sum(found) or 1.0)
    return float(found[0])
