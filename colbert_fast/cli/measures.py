"""Measure rankings by ir-measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from colbert_fast.cli.runs import Ranking
from colbert_fast.cli.texts import Texts

DEFAULT = ("nDCG@10", "R@100", "RR@10")


def parse(names: Sequence[str], depth: int) -> list[Any]:
    """Return the measures of these names, in the notation of ir-measures. ``depth``: results of each query."""
    import ir_measures

    found = []
    for name in names:
        try:
            measure = ir_measures.parse_measure(name)
        except (NameError, ValueError, SyntaxError, TypeError, KeyError) as error:
            msg = f"no measure {name!r} ({error}); examples are nDCG@10, R@100, RR@10, P@5, AP"
            raise ValueError(msg) from None
        cutoff = measure.params.get("cutoff")
        if cutoff is not None and (type(cutoff) is not int or cutoff < 1):
            # trec_eval ends the process at a cutoff of 0.
            msg = f"the cutoff of {name} must be a number of 1 or more; got {cutoff}"
            raise ValueError(msg)
        if cutoff is not None and cutoff > depth:
            msg = f"{name} needs --depth {cutoff} or more; got {depth}"
            raise ValueError(msg)
        found.append(measure)
    return list(dict.fromkeys(found))


def check(measures: Sequence[Any], qrels: dict[str, dict[str, int]]) -> None:
    """Raise ValueError now, not after minutes of work, for a measure that cannot be taken of these judgements.

    A measure may need another package, a parameter, or numbers as ids.
    """
    import ir_measures

    query, judged = next(iter(qrels.items()))
    for measure in measures:
        try:
            ir_measures.calc_aggregate([measure], qrels, {query: dict.fromkeys(judged, 1.0)})
        except Exception as error:  # what is raised depends on the program that takes the measure
            msg = f"the measure {measure} cannot be taken: {error}"
            raise ValueError(msg) from None


def measured(
    measures: Sequence[Any],
    qrels: dict[str, dict[str, int]],
    queries: Texts,
    corpus_ids: Sequence[str],
    rankings: Sequence[Ranking],
) -> dict[str, float]:
    """Return the mean of each measure over all queries with judgements, those without results included.

    ir-measures gets the same scores that a run file holds, so it measures the same of the file. It orders equal scores
    by the ids of the documents.
    """
    import ir_measures

    run = {
        # NaN has no place in an order.
        name: {corpus_ids[number]: -math.inf if math.isnan(score) else score for number, score in ranking}
        for name, ranking in zip(queries.ids, rankings, strict=True)
    }
    found = ir_measures.calc_aggregate(list(measures), qrels, run)
    return {str(measure): float(found[measure]) for measure in measures}
