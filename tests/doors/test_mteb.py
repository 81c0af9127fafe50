from __future__ import annotations

import math
from typing import Any, ClassVar

import datasets
import mteb
import pytest
import torch
from counting import Counting
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import SearchProtocol

from colbert_fast.integrations.mteb import LateInteractionSearch

QUERIES = {"q1": "capital of france", "q2": "what is the fruit?", "q3": "berlin"}
SENTENCES = [
    *("paris is in france", "bananas", "the capital of berlin", "berlin! the fruit", "the", "rich in potassium"),
    *("france is the capital of paris", "bananas in berlin", "a fruit is what the", "of of of", "capital"),
    *("is it in paris?", "bananas of france", "cap"),
]
CORPUS = {f"d{i}": text for i, text in enumerate(SENTENCES)}
TITLES = {"d3": "france"}
EVERYTHING = {query: list(CORPUS) for query in QUERIES}
RELEVANT = {"q1": {"d0": 1, "d6": 2}, "q2": {"d1": 1, "d8": 1}, "q3": {"d7": 1, "d13": 1}}


class Capitals(AbsTaskRetrieval):
    metadata = TaskMetadata(
        name="Capitals",
        description="A few sentences.",
        reference="https://example.com",
        dataset={"path": "none", "revision": "none"},
        type="Retrieval",
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
        date=("2026-01-01", "2026-01-02"),
        domains=[],
        task_subtypes=[],
        license="cc-by-4.0",
        annotations_creators="derived",
        dialect=[],
        sample_creation="found",
        bibtex_citation="",
    )
    candidates: ClassVar[dict[str, list[str]] | None] = None

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        rows = [{"id": name, "text": text, "title": TITLES.get(name, "")} for name, text in CORPUS.items()]
        split = {
            "corpus": datasets.Dataset.from_list(rows),
            "queries": datasets.Dataset.from_list([{"id": name, "text": text} for name, text in QUERIES.items()]),
            "relevant_docs": RELEVANT,
            "top_ranked": self.candidates,
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


class Reranked(Capitals):
    metadata = Capitals.metadata.model_copy(update={"name": "Reranked", "type": "Reranking"})
    candidates: ClassVar = {"q1": ["d3", "d0", "d5", "d13"], "q2": ["d8", "d1", "d0"], "q3": ["d7"]}


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    datasets.disable_progress_bars()


def ndcg(scores: dict[str, dict[str, float]]) -> float:
    """Mean nDCG@10 with linear gains, as trec_eval counts."""
    total = 0.0
    for query, relevant in RELEVANT.items():
        ranked = sorted(scores[query], key=lambda name: -scores[query][name])[:10]
        gained = sum(relevant.get(name, 0) / math.log2(rank + 2) for rank, name in enumerate(ranked))
        ideal = sum(gain / math.log2(rank + 2) for rank, gain in enumerate(sorted(relevant.values(), reverse=True)))
        total += gained / ideal
    return total / len(RELEVANT)


def evaluated(model: Any, task: AbsTaskRetrieval) -> float:
    options = {"batch_size": 4, "show_progress_bar": False}
    results = mteb.evaluate(model, task, cache=None, co2_tracker=False, encode_kwargs=options, show_progress_bar=False)
    (score,) = results.task_results[0].scores["test"]
    assert score["main_score"] == score["ndcg_at_10"]
    return score["ndcg_at_10"]


def by_hand(encoder: Counting, names: dict[str, list[str]]) -> dict[str, dict[str, float]]:
    texts = {name: f"{TITLES.get(name, '')} {text}".strip() for name, text in CORPUS.items()}
    return {
        query: dict(zip(names[query], encoder.by_hand(text, [texts[n] for n in names[query]]), strict=True))
        for query, text in QUERIES.items()
    }


@pytest.mark.parametrize("chunk", [10_000, 4])
@pytest.mark.parametrize("task", [Capitals, Reranked])
def test_ndcg_is_that_of_scores_by_hand(encoder: Counting, task: type[Capitals], chunk: int) -> None:
    model = LateInteractionSearch(encoder, name="tiny/colbert", corpus_chunk_size=chunk)
    assert isinstance(model, SearchProtocol)
    wanted = task.candidates or EVERYTHING
    expected = ndcg(by_hand(encoder, wanted))
    assert 0.1 < expected < 0.95
    encoder.documents.clear()
    assert evaluated(model, task()) == pytest.approx(expected, abs=1e-5)
    assert sum(encoder.documents) == len({name for names in wanted.values() for name in names})
    assert max(encoder.documents) <= chunk


@pytest.mark.parametrize("task", [Capitals, Reranked])
def test_ndcg_is_that_of_mtebs_own_search(loaded: Any, task: type[Capitals]) -> None:
    """mteb has a search for encoders of sentence-transformers."""
    theirs = evaluated(loaded.encoder, task())
    assert 0.1 < theirs < 0.95
    ours = evaluated(LateInteractionSearch(loaded.encoder, name="tiny/colbert"), task())
    assert ours == pytest.approx(theirs, abs=1e-6)


def test_the_scores_and_the_order(encoder: Counting) -> None:
    task = Capitals()
    task.load_data()
    split = task.dataset["default"]["test"]
    model = LateInteractionSearch(encoder, name="tiny/colbert", corpus_chunk_size=3)
    options = {"task_metadata": task.metadata, "hf_split": "test", "hf_subset": "default", "num_proc": None}
    with pytest.raises(ValueError, match=r"index\(\) must come before search\(\)"):
        model.search(split["queries"], top_k=5, encode_kwargs={}, **options)
    model.index(split["corpus"], encode_kwargs={}, **options)
    found = model.search(split["queries"], top_k=5, encode_kwargs={}, **options)
    for query, scores in by_hand(encoder, EVERYTHING).items():
        best = sorted(scores, key=lambda name: -scores[name])[:5]
        assert list(found[query]) == best
        assert list(found[query].values()) == pytest.approx([scores[name] for name in best], rel=1e-5)
    only = {"q1": ["d3", "d0", "d3"], "q2": []}
    few = model.search(split["queries"], top_k=5, encode_kwargs={}, top_ranked=only, **options)
    assert {query: set(names) for query, names in few.items()} == {"q1": {"d0", "d3"}, "q2": set(), "q3": set()}


def test_results_are_kept_apart_by_how_the_checkpoint_is_loaded(checkpoint: str, loads: list[Any]) -> None:
    def about(**options: Any) -> Any:
        return LateInteractionSearch(checkpoint, name="me/mine", **options).mteb_model_meta

    assert about(device="cpu", token="a secret") == about() and about().experiment_name is None
    assert about(revision="abc").revision == "abc" and about().revision == "no_revision_available"
    names = {about(max_length_query=n, dtype=torch.float32).experiment_name for n in (8, 16)}
    assert len(names) == 2 and not loads


def test_the_name(checkpoint: str, loads: list[Any], encoder: Counting) -> None:
    model = LateInteractionSearch(checkpoint)
    assert model.mteb_model_meta.name == checkpoint
    assert model.mteb_model_meta.model_type == ["late-interaction"]
    assert not loads
    LateInteractionSearch(checkpoint, device="cpu", max_length_query=30).model.get()
    assert loads == [(checkpoint, {"device": "cpu", "max_length_query": 30})]
    with pytest.raises(TypeError, match="only a checkpoint that is loaded here takes device"):
        LateInteractionSearch(encoder, name="me/mine", device="cpu")
    assert LateInteractionSearch(checkpoint, name="me/mine").mteb_model_meta.name == "me/mine"
    with pytest.raises(ValueError, match="name is required for an encoder"):
        LateInteractionSearch(encoder)
    with pytest.raises(ValueError, match="corpus_chunk_size"):
        LateInteractionSearch(checkpoint, corpus_chunk_size=0)
