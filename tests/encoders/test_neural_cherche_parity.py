"""The numbers equal neural-cherche 1.4.3's: recorded numbers, and its formula computed again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import DATA, DOCUMENTS, METADATA, QUERIES, close
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedConfig,
    RobertaConfig,
)

import colbert_fast as cf
from colbert_fast.models import ColBERT


@pytest.fixture(scope="module")
def oracle() -> dict[str, Any]:
    """The numbers that neural-cherche 1.4.3 computed with transformers 4.48 on a CPU."""
    return json.loads((DATA / "neural_cherche_oracle.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def encoder(minilm_checkpoint: Path) -> ColBERT:
    return ColBERT(minilm_checkpoint, device="cpu")


@torch.no_grad()
def run_formula(folder: Path, texts: list[str], query_mode: bool) -> torch.Tensor:
    """Compute neural-cherche's forward pass: padded tokens, masked states, projection, normalisation."""
    metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    side = "query" if query_mode else "document"
    inputs = AutoTokenizer.from_pretrained(folder)(
        [metadata[f"{side}_prefix"] + text for text in texts],
        padding=metadata["padding"],
        truncation=metadata["truncation"],
        max_length=metadata[f"max_length_{side}"],
        add_special_tokens=metadata["add_special_tokens"],
        return_tensors="pt",
    )
    states = model(**inputs, output_hidden_states=True).hidden_states[-1] * inputs["attention_mask"].unsqueeze(-1)
    weight = torch.load(folder / "linear.pt", weights_only=True)["weight"]
    return torch.nn.functional.normalize(states @ weight.T, dim=2)


def padded_maxsim(q: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    return torch.einsum("bsh,bth->bst", q, d).max(2).values.sum(1)


def test_scores_equal_the_recorded_ones(encoder: ColBERT, oracle: dict[str, Any]) -> None:
    queries, documents = zip(*oracle["pairs"], strict=True)
    scores = encoder.scores(queries, documents, tqdm_bar=False)
    torch.testing.assert_close(scores, torch.tensor(oracle["scores"]), rtol=1e-5, atol=0)


def test_broadcast_equals_the_recorded_one(encoder: ColBERT, oracle: dict[str, Any]) -> None:
    queries, documents = (list(side[:3]) for side in zip(*oracle["pairs"], strict=True))
    one_query = encoder.scores(queries[:1], documents, tqdm_bar=False)
    close(one_query, torch.tensor(oracle["scores_1query_3docs"]))
    one_document = encoder.scores(queries, documents[:1], tqdm_bar=False)
    close(one_document, torch.tensor(oracle["scores_3queries_1doc"]))


@pytest.mark.parametrize("side", ["q", "d"])
def test_embeddings_equal_the_recorded_ones(encoder: ColBERT, oracle: dict[str, Any], side: str) -> None:
    texts = [pair[0 if side == "q" else 1] for pair in oracle["pairs"]]
    embeddings = encoder.encode(texts, query_mode=side == "q")["embeddings"]
    assert list(embeddings.shape) == oracle["shapes"][side]
    real = embeddings.norm(dim=2)
    assert (real > 0.5).sum(1).tolist() == oracle[f"n_real_{side}"]
    assert set(real.round().unique().tolist()) <= {0.0, 1.0}
    recorded = {name: value for name, value in oracle["emb_values"].items() if name.startswith(side)}
    for name, values in recorded.items():
        text, token = (int("".join(filter(str.isdigit, part))) for part in name.split("_")[:2])
        torch.testing.assert_close(embeddings[text, token, :5], torch.tensor(values), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("query_mode", [True, False])
def test_embeddings_equal_the_formula(neural_cherche: Path, query_mode: bool) -> None:
    texts = QUERIES if query_mode else DOCUMENTS
    ours = ColBERT(neural_cherche, device="cpu").encode(texts, query_mode=query_mode)["embeddings"]
    close(ours, run_formula(neural_cherche, texts, query_mode))


@pytest.mark.parametrize("size", [1, 2, 16])
def test_pad_rows_put_a_floor_of_0_under_each_maximum(make_neural_cherche: Callable[..., Path], size: int) -> None:
    """With few dimensions, the similarities of a query token with a short document are often all negative."""
    folder = make_neural_cherche(size)
    queries, documents = QUERIES * 4, [text for text in DOCUMENTS for _ in QUERIES]
    q, d = run_formula(folder, queries, True), run_formula(folder, documents, False)
    expected = padded_maxsim(q, d)
    if size == 1:
        ragged = torch.stack([(a[a.any(1)] @ b[b.any(1)].T).max(1).values.sum() for a, b in zip(q, d, strict=True)])
        assert (expected - ragged).abs().max() > 0.1
    encoder = ColBERT(folder, device="cpu")
    close(encoder.scores(queries, documents, tqdm_bar=False), expected)
    ours = encoder.encode(queries)["embeddings"], encoder.encode(documents, query_mode=False)["embeddings"]
    close(cf.maxsim_pairwise(*ours, pad="zero"), expected)
    pairs = torch.arange(len(queries)).repeat(2, 1).T
    close(cf.maxsim_pairs(*ours, pairs, pad="zero"), expected)
    if size == 1:
        assert (cf.maxsim_pairwise(*ours) - expected).abs().max() > 0.1


@pytest.mark.parametrize(
    "change",
    [
        {"query_prefix": "", "document_prefix": ""},
        {"add_special_tokens": False},
        {"max_length_query": 3, "max_length_document": 4},
        {"max_length_query": 64, "max_length_document": 64},
    ],
    ids=lambda change: next(iter(change)) + str(next(iter(change.values()))),
)
def test_settings_in_the_metadata_are_followed(
    make_neural_cherche: Callable[..., Path], change: dict[str, Any]
) -> None:
    folder = make_neural_cherche(metadata={**METADATA, **change})
    ours = ColBERT(folder, device="cpu")
    for texts, query_mode in ((QUERIES, True), (DOCUMENTS, False)):
        close(ours.encode(texts, query_mode=query_mode)["embeddings"], run_formula(folder, texts, query_mode))


@pytest.mark.parametrize("kind", [DistilBertConfig, MPNetConfig, ModernBertConfig, RobertaConfig, ElectraConfig])
def test_other_transformers(
    make_neural_cherche: Callable[..., Path], kind: type[PreTrainedConfig], tmp_path: Path
) -> None:
    folder = make_neural_cherche(kind=kind)
    ours = ColBERT(folder, device="cpu")
    close(ours.encode(QUERIES)["embeddings"], run_formula(folder, QUERIES, True))
    # neural-cherche's parameters are the parameters of the masked-language model and of the projection.
    state = AutoModelForMaskedLM.from_pretrained(folder).state_dict(prefix="model.")
    mine = ours.state_dict()
    assert mine.keys() - state.keys() == {"linear.weight"}
    ours.load_state_dict({**state, "linear.weight": mine["linear.weight"]})
    ours.save_pretrained(tmp_path)
    close(run_formula(tmp_path, QUERIES, True), run_formula(folder, QUERIES, True))


def test_padding_to_the_longest_text(make_neural_cherche: Callable[..., Path]) -> None:
    folder = make_neural_cherche(metadata={**METADATA, "padding": True})
    ours = ColBERT(folder, device="cpu")
    expected = run_formula(folder, QUERIES, True)
    close(ours.encode(QUERIES)["embeddings"], expected)


def test_neural_cherche_gets_the_saved_weights(neural_cherche: Path, tmp_path: Path) -> None:
    """neural-cherche loads checkpoints with AutoModelForMaskedLM."""
    ours = ColBERT(neural_cherche, device="cpu")
    ours.save_pretrained(tmp_path)
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path).base_model.state_dict()
    mine = ours.model.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    close(run_formula(tmp_path, QUERIES, True), run_formula(neural_cherche, QUERIES, True))


def test_neural_cherche_gets_the_scores_of_an_encoder_without_projection(plain: Path, tmp_path: Path) -> None:
    ours = ColBERT(plain, embedding_size=None, device="cpu", max_length_query=12, max_length_document=20)
    ours.save_pretrained(tmp_path)
    theirs = padded_maxsim(run_formula(tmp_path, QUERIES, True), run_formula(tmp_path, DOCUMENTS, False))
    close(ours.scores(QUERIES, DOCUMENTS, tqdm_bar=False), theirs)
