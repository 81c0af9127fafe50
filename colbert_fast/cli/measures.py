"""Measure rankings by ir-measures."""

from __future__ import annotations

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
        if cutoff is not None and cutoff > depth:
            msg = f"{name} needs --depth {cutoff} or more; got {depth}"
            raise ValueError(msg)
        found.append(measure)
    return list(dict.fromkeys(found))


def measured(
    measures: Sequence[Any],
    qrels: dict[str, dict[str, int]],
    queries: Texts,
    corpus_ids: Sequence[str],
    rankings: Sequence[Ranking],
) -> dict[str, float]:
    """Return the mean of each measure over all queries with judgements, those without results included."""
    import ir_measures

    run = {
        # Measures sort by score, and equal scores by id. The ranks in place of the scores keep our order.
        name: {corpus_ids[number]: float(-rank) for rank, (number, _) in enumerate(ranking)}
        for name, ranking in zip(queries.ids, rankings, strict=True)
    }
    found = ir_measures.calc_aggregate(list(measures), qrels, run)
    return {str(measure): float(found[measure]) for measure in measures}
