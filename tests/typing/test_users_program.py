"""A program of a user: `make typecheck` checks its types, and `make test` runs it.

It touches every public function, class, method and attribute, and says the type of each result. The functions of
refused.py are wrong programs.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import assert_type

import colbert_fast as cf
from colbert_fast import losses, rank, utils
from colbert_fast.collection import Collection as SameCollection

Q = torch.nn.functional.normalize(torch.randn(2, 3, 8), dim=-1)
D = torch.nn.functional.normalize(torch.randn(5, 4, 8), dim=-1)
ROWS: NDArray[np.float32] = D[0].numpy()


def test_scores() -> None:
    assert_type(cf.__version__, str)
    assert_type(cf.maxsim(Q, D), Tensor)
    assert_type(cf.maxsim(list(Q), [ROWS], chunk_elements=100, length_normalize=True, device="cpu", pad="zero"), Tensor)
    assert_type(cf.maxsim(Q, D, torch.ones(2, 3), np.ones((5, 4)), backend="torch"), Tensor)
    assert_type(cf.maxsim_pairwise(Q, D[:2], device=torch.device("cpu")), Tensor)
    assert_type(cf.maxsim_pairs(Q, D, [(0, 1), (1, 4)]), Tensor)
    assert_type(cf.maxsim_pairs(Q, D, np.array([[0, 1]])), Tensor)
    scores, argmax = cf.maxsim_with_argmax(Q, D, pairs=torch.tensor([[0, 1]]))
    assert_type(scores, Tensor)
    assert_type(argmax, Tensor)
    assert_type(cf.topk(Q, D, k=2, candidates=[[0, 1], [3]]), tuple[Tensor, Tensor])
    assert_type(cf.topk(Q, D, 1, candidates=np.array([[0, 1], [2, 3]])), tuple[Tensor, Tensor])
    for backend in cf.backends():
        assert_type(backend.name, str)
        assert_type(backend.unsupported, str | None)
    before = cf.get_num_threads()
    assert_type(before, int)
    cf.set_num_threads(before)


def test_packed(tmp_path: Path) -> None:
    packed = cf.PackedTokens.from_list(list(D))
    assert_type(packed, cf.PackedTokens)
    assert_type(cf.PackedTokens.from_padded(D, mask=torch.ones(5, 4)), cf.PackedTokens)
    assert_type(cf.PackedTokens.from_nested(torch.nested.nested_tensor(list(D), layout=torch.jagged)), cf.PackedTokens)
    assert_type(cf.PackedTokens(packed.tokens, packed.starts, packed.lengths, packed.scales), cf.PackedTokens)
    assert_type(packed.tokens, Tensor)
    assert_type(packed.starts, Tensor)
    assert_type(packed.lengths, Tensor)
    assert_type(packed.scales, Tensor | None)
    assert_type(packed.max_length, int)
    assert_type(packed.rows, int)
    assert_type(packed.dim, int)
    assert_type(packed.dtype, torch.dtype)
    assert_type(packed.device, torch.device)
    assert_type(len(packed), int)
    # One item, or some of them.
    assert_type(packed[0], Tensor)
    item: Tensor = packed[np.int64(0)]  # a new numpy is Any to mypy, which checks for our oldest Python
    assert_type(item, Tensor)
    assert_type(packed[1:3], cf.PackedTokens)
    assert_type(packed[[2, 0]], cf.PackedTokens)
    assert_type(packed[[True, False, True, False, False]], cf.PackedTokens)
    assert_type(packed[range(2)], cf.PackedTokens)
    assert_type(packed[torch.tensor([1])], cf.PackedTokens)
    assert_type(packed[np.array([1])], cf.PackedTokens)
    assert_type(list(packed), list[Tensor])
    assert_type(cf.PackedTokens.cat([packed, packed]), cf.PackedTokens)
    assert_type(packed.to_padded(), tuple[Tensor, Tensor])
    assert_type(packed.with_tokens(packed.tokens * 2), cf.PackedTokens)
    assert_type(packed.to("cpu", torch.float16), cf.PackedTokens)
    assert_type(packed.to(torch.float16), cf.PackedTokens)
    assert_type(packed.quantize("int8"), cf.PackedTokens)
    packed.save(tmp_path / "corpus.safetensors")
    assert_type(cf.PackedTokens.load(tmp_path / "corpus.safetensors"), cf.PackedTokens)


def test_collection(tmp_path: Path) -> None:
    with cf.Collection(tmp_path / "books", codes="int4+4", exact="float32", wait=1) as books:
        assert_type(books, SameCollection)
        assert_type(books.add(["a", "b", "c"], list(D[:3]), [{"year": 1990}, None, {"year": 2001}]), int)
        assert_type(books.add(iter(["c"]), D[3:4], replace=True, lengths=None), int)
        assert_type(books.path, str)
        assert_type(books.codes, str)
        assert_type(books.exact, str | None)
        assert_type(books.dim, int | None)
        assert_type(books.about, dict[str, str])
        assert_type(len(books), int)
        assert_type("a" in books, bool)
        assert_type(iter(books), Iterator[str])
        assert_type(books["a"], Tensor)
        assert_type(books[["a", "b"]], cf.PackedTokens)
        assert_type(books.ids("year > ?", [1980]), list[str])
        assert_type(books.metadata("a"), dict[str, Any] | None)
        found = books.topk(Q, 2, where="year > :first", parameters={"first": 1980})
        scores, ids = found
        assert_type(scores, Tensor)
        assert_type(ids, list[list[str | None]])
        assert_type(found.scores, Tensor)
        assert_type(found.ids, list[list[str | None]])
        assert_type(found.certified, bool)
        assert_type(found.read, Tensor)
        assert_type(books.recall(Q, 1, 2, among=["a", "b"]), float)
        books.update(["a"], [{"year": 1991}])
        books.describe({"model": "none"})
        assert_type(books.delete(["b"]), int)
        books.compact()
        books.refresh()
        books.verify()
        books.close()


class Encoder:
    """An encoder of the user's own, as `rerank` takes it."""

    device = "cpu"
    similarity_fn_name = "maxsim"

    def encode_query(self, texts: list[str], **options: Any) -> list[Tensor]:
        return [Q[0] for _ in texts]

    def encode_document(self, texts: list[str], **options: Any) -> list[Tensor]:
        return [D[number % len(D)] for number, _ in enumerate(texts)]


def test_reranking() -> None:
    one = cf.rerank(Encoder(), "a query", ["one", "two"], k=1)
    assert_type(one, list[dict[str, Any]])
    many = cf.rerank(Encoder(), ["a query", "another"], [("x", "one"), ("y", "two")])
    assert_type(many, list[list[dict[str, Any]]])
    assert one[0]["text"] and many[1][0]["id"]


def test_explanation(tmp_path: Path) -> None:
    explanation = cf.Explanation.from_embeddings(Q[0], D[0], ["a", "b", "c"], length_normalize=True)
    assert_type(explanation, cf.Explanation)
    assert_type(explanation.query.text, str)
    assert_type(explanation.document.tokens[0].string, str)
    assert_type(explanation.similarities, "np.ndarray[Any, Any]")
    assert_type(explanation.score, float)
    assert_type(explanation.mean, bool)
    for row in explanation.rows:
        assert_type(row.query_index, int)
        assert_type(row.document_token, str)
        assert_type(row.similarity, float)
        assert_type(row.share, float)
        if row.query_kind == "marker":
            assert_type(row.query_token, str)
    assert_type(explanation.to_dict(), dict[str, Any])
    assert_type(explanation.to_html(), str)
    explanation.save_html(tmp_path / "page.html")


@pytest.mark.needs("plot")
def test_figures() -> None:
    explanation = cf.Explanation.from_embeddings(Q[0], D[0], ["a", "b", "c"])
    figure, axes = explanation.plot()
    explanation.plot_image(np.zeros((4, 4)), (2, 2), query_token=0)
    assert figure is axes.figure


def test_ranking() -> None:
    embeddings = rank.TokenEmbeddings(pad_row=False)
    embeddings["x"] = ROWS
    embeddings.update({"y": ROWS})
    assert_type(embeddings["x"], NDArray[np.float32])
    assert_type(embeddings.packed, cf.PackedTokens)
    assert_type(embeddings.numbers(["x"]), list[int])
    assert_type(embeddings.dim, int)
    assert_type(embeddings.order, list[Any])
    embeddings.add_packed(["z"], cf.PackedTokens.from_list([ROWS]))
    embeddings.add_from(embeddings.copy(), ["x"])
    assert_type(embeddings | {"w": ROWS}, rank.TokenEmbeddings)
    assert_type(embeddings.popitem()[1], NDArray[np.float32])
    ranker = rank.ColBERT(key="id", on=["title", "text"], model=Encoder(), device="cpu")
    assert_type(ranker.key, str)
    assert_type(ranker.on, list[str])
    assert_type(ranker.device, str | torch.device)
    documents = [{"id": 1, "title": "one", "text": "text"}, {"id": 2, "title": "two", "text": "text"}]
    queries = ranker.encode_queries(["a query"], tqdm_bar=False)
    assert_type(queries, rank.TokenEmbeddings)
    assert_type(ranker.encode_candidates_documents(documents, [documents], tqdm_bar=False), rank.TokenEmbeddings)
    encoded = ranker.encode_documents(documents, tqdm_bar=False)
    ranked = ranker([documents], queries, encoded, k=1, tqdm_bar=False)
    assert_type(ranked, list[list[dict[str, Any]]])
    from colbert_fast import retrieve

    retriever = retrieve.ColBERT(key="id", on="text", model=Encoder())
    assert_type(retriever.add(encoded), retrieve.ColBERT)
    assert_type(retriever.documents_embeddings, rank.TokenEmbeddings)
    assert_type(retriever(queries, k=1, tqdm_bar=False), list[list[dict[str, Any]]])


@pytest.mark.needs("retrieval")
def test_retrieval_by_words() -> None:
    from colbert_fast import retrieve

    documents = [{"id": "1", "text": "late interaction"}, {"id": "2", "text": "bananas"}]
    assert_type(retrieve.TfIdf(key="id", on="text").add({}), retrieve.TfIdf)
    retriever = retrieve.BM25(key="id", on="text", k1=1.2)
    assert_type(retriever.add(retriever.encode_documents(documents)), retrieve.BM25)
    found = retriever(retriever.encode_queries(["interaction"]), k=1, tqdm_bar=False)
    assert_type(found, list[list[dict[str, Any]]])
    assert_type(retriever.n_documents, int)
    qrels = {"interaction": {"1": 1}}
    assert_type(utils.evaluate(found, qrels, ["interaction"], "ndcg@10"), float)
    assert_type(utils.evaluate(found, qrels, ["interaction"]), dict[str, float])
    assert_type(utils.evaluate(found, qrels, ["interaction"], ["map", "mrr"]), dict[str, float] | float)


def test_training_data(tmp_path: Path) -> None:
    scores = utils.colbert_scores(Q, D[:2], D[2:4], in_batch_negatives=True)
    assert_type(scores, dict[str, Tensor])
    ranking = losses.Ranking()
    assert_type(ranking(**scores), Tensor)
    assert_type(ranking.cross_entropy, torch.nn.CrossEntropyLoss)
    assert_type(next(utils.batchify(["a", "b"], 1, tqdm_bar=False)), list[str])
    assert_type(next(utils.batchify(Q, 1, tqdm_bar=False)), Tensor)
    triples = [("a query", "its answer", "another text")]
    assert_type(
        next(utils.iter(triples, epochs=1, batch_size=1, tqdm_bar=False)), tuple[list[str], list[str], list[str]]
    )
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text('{"_id": "1", "text": "one"}\n{"_id": "2", "text": "two"}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "a query"}\n')
    (tmp_path / "qrels" / "test.tsv").write_text("q\t1\t1\n")
    documents, queries, qrels = utils.load_beir(tmp_path)
    assert_type(documents, list[dict[str, str]])
    assert_type(queries, list[str])
    assert_type(qrels, dict[str, dict[str, int]])
    assert_type(utils.read_beir(tmp_path)[1], dict[str, str])
    assert_type(utils.get_beir_triples("id", "text", documents, queries, qrels), list[tuple[str, str, str]])
    with pytest.warns(UserWarning, match="Duplicate"):
        utils.duplicates_queries_warning()


@pytest.mark.needs("models")
def test_encoder(tmp_path: Path, no_network: None, monkeypatch: pytest.MonkeyPatch) -> None:

    from colbert_fast import models, train
    from colbert_fast.integrations import sentence_transformers as doors

    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "encoders"))
    save_model = importlib.import_module("tiny").save_model
    encoder = models.ColBERT(save_model(tmp_path / "model"), device="cpu", embedding_size=None)
    assert_type(encoder.eval(), models.ColBERT)
    assert_type(encoder.max_length_query, int)
    assert_type(encoder.max_length_document, int)
    assert_type(encoder.query_prefix, str)
    assert_type(encoder.padding, bool | str)
    assert_type(encoder.model_folder, str)
    assert_type(encoder.query_pad_token, str | None)
    assert_type(encoder.n_mask_tokens, int)
    assert_type(encoder.model, torch.nn.Module)
    assert_type(encoder.linear, torch.nn.Linear | None)
    assert_type(encoder.device, str)
    assert_type(encoder.embedding_size, int)
    encoder.max_length_query = 8
    texts = ["berlin", "paris"]
    assert_type(encoder(texts), dict[str, Tensor])
    assert_type(encoder(texts, query_mode=False, packed=True), dict[str, cf.PackedTokens])
    assert_type(encoder.encode(texts, query_mode=False), dict[str, Tensor])
    assert_type(encoder.encode_queries(texts), cf.PackedTokens)
    assert_type(encoder.encode_documents(texts, batch_size=1), cf.PackedTokens)
    assert_type(encoder.encode_packed(texts, query_mode=True), cf.PackedTokens)
    assert_type(encoder.scores(texts, texts, tqdm_bar=False), Tensor)
    assert_type(encoder.rerank("berlin", texts), list[dict[str, Any]])
    assert_type(encoder.rerank(texts, texts, k=1), list[list[dict[str, Any]]])
    assert_type(encoder.explain("berlin", "paris"), cf.Explanation)
    assert_type(cf.explain(encoder, "berlin", "paris"), cf.Explanation)
    assert_type(encoder.state_dict(), dict[str, Any])
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    assert_type(train.train_colbert(encoder, optimizer, texts, texts, texts[::-1]), dict[str, Tensor])
    assert_type(utils.freeze_layers(encoder, 1), models.ColBERT)
    assert_type(encoder.save_pretrained(tmp_path / "saved", format="sentence-transformers"), models.ColBERT)
    lengths = models.NEURAL_CHERCHE_1_4_3
    assert_type(lengths["max_length_query"], int)
    theirs = doors.MultiVectorEncoder(str(tmp_path / "saved"), device="cpu")
    assert_type(doors.accelerate(doors.restore(theirs)), doors.MultiVectorEncoder)
    assert_type(doors.maxsim(Q, D), Tensor)


def test_doors() -> None:
    from colbert_fast.integrations import colpali, pylate

    assert_type(colpali.score_multi_vector(list(Q), list(D), padding="skip"), Tensor)
    assert_type(colpali.maxsim_inbatch(Q, D), Tensor)
    assert_type(colpali.maxsim_kd(Q, D[:4].view(2, 2, 4, 8)), Tensor)
    assert_type(pylate.colbert_scores(Q, D, documents_mask=torch.ones(5, 4)), Tensor)
    assert_type(pylate.colbert_scores_pairwise(Q, D[:2]), Tensor)
    assert_type(pylate.colbert_kd_scores(Q, D[:4].view(2, 2, 4, 8)), Tensor)
    assert_type(pylate.ColBERTScores()(Q, D[:4].view(2, 2, 4, 8)), Tensor)
    assert_type(pylate.rerank([["x"]], [Q[0]], [[D[0]]]), list[list[dict[str, Any]]])


def test_a_pickle_is_the_same() -> None:
    assert isinstance(pickle.loads(pickle.dumps(cf.PackedTokens.from_list(list(D)))), cf.PackedTokens)
