"""Projections that lie beside a transformer: with a bias, of BGE-M3, and in other formats."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder
from tiny import DOCUMENTS, HIDDEN, QUERIES, SIZE, close, write_json

from colbert_fast.models import ColBERT


def states_of(encoder: ColBERT, text: str) -> torch.Tensor:
    inputs = encoder.tokenizer([text], return_tensors="pt")
    states: torch.Tensor = encoder.model(**inputs).last_hidden_state[0].detach()
    return states


class TestBias:
    @pytest.fixture
    def folder(self, neural_cherche: Path, tmp_path: Path) -> Path:
        shutil.copytree(neural_cherche, tmp_path, dirs_exist_ok=True)
        torch.save({"weight": torch.randn(SIZE, HIDDEN), "bias": torch.randn(SIZE)}, tmp_path / "linear.pt")
        return tmp_path

    def test_it_is_added(self, folder: Path) -> None:
        linear = torch.load(folder / "linear.pt", weights_only=True)
        encoder = ColBERT(folder, device="cpu")
        assert encoder.linear is not None
        assert torch.equal(encoder.linear.bias, linear["bias"])
        rows = states_of(encoder, "[Q] berlin") @ linear["weight"].T + linear["bias"]
        close(encoder.encode_queries(["berlin"])[0], torch.nn.functional.normalize(rows, dim=1))
        assert "linear.bias" in encoder.state_dict()

    def test_pad_rows_stay_zero(self, folder: Path) -> None:
        encoder = ColBERT(folder, device="cpu")
        rows = encoder.encode(["berlin"], query_mode=False)["embeddings"][0]
        used = len(encoder.tokenizer("[D] berlin")["input_ids"])
        assert rows.any(1).tolist() == [True] * used + [False] * (20 - used)

    def test_saved_for_sentence_transformers(self, folder: Path, tmp_path: Path) -> None:
        encoder = ColBERT(folder, device="cpu")
        encoder.save_pretrained(tmp_path / "saved", format="sentence-transformers")
        theirs = MultiVectorEncoder(str(tmp_path / "saved"), device="cpu")
        close(theirs.encode_query(["berlin"])[0], encoder.encode_queries(["berlin"])[0])


class TestBiasOfStanford:
    @pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
    def test_it_is_added(self, name: str, stanford: Path, tmp_path: Path) -> None:
        shutil.copytree(stanford, tmp_path, dirs_exist_ok=True)
        weights = {**load_file(tmp_path / "model.safetensors"), "linear.bias": torch.randn(SIZE).half()}
        (tmp_path / "model.safetensors").unlink()
        if name == "model.safetensors":
            save_file(weights, tmp_path / name, {"format": "pt"})
        else:
            torch.save(weights, tmp_path / name)
        encoder, bare = ColBERT(tmp_path, device="cpu"), ColBERT(stanford, device="cpu")
        assert encoder.linear is not None
        assert bare.linear is not None
        assert torch.equal(encoder.linear.bias, weights["linear.bias"].float())
        with torch.no_grad():
            bare.linear.bias = torch.nn.Parameter(encoder.linear.bias.clone())
        close(encoder.encode_queries(["berlin"])[0], bare.encode_queries(["berlin"])[0])
        encoder.save_pretrained(tmp_path / "saved", format="sentence-transformers")
        again = ColBERT(tmp_path / "saved", device="cpu")
        close(again.encode_queries(["berlin"])[0], encoder.encode_queries(["berlin"])[0])


class TestBgeM3:
    def expected(self, encoder: ColBERT, folder: Path, text: str) -> torch.Tensor:
        """Return the rows that FlagEmbedding computes: the states after [CLS], projected and normalised."""
        linear = torch.load(folder / "colbert_linear.pt", weights_only=True)
        rows = states_of(encoder, text)[1:] @ linear["weight"].T + linear["bias"]
        return torch.nn.functional.normalize(rows, dim=1)

    def test_rows_and_scores(self, bge_m3: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            encoder = ColBERT(bge_m3, device="cpu")
        assert encoder.embedding_size == SIZE
        documents = [*DOCUMENTS[:2], "paris! " * 10, DOCUMENTS[3]]
        q = [self.expected(encoder, bge_m3, text) for text in QUERIES]
        d = [self.expected(encoder, bge_m3, text) for text in documents]
        for mine, rows in zip(encoder.encode_queries(QUERIES), q, strict=True):
            close(mine, rows)
        for mine, rows in zip(encoder.encode_documents(documents), d, strict=True):
            close(mine, rows)
        scores = torch.stack([(a @ b.T).max(1).values.sum() for a, b in zip(q, d, strict=True)])
        close(encoder.scores(QUERIES, documents, tqdm_bar=False), scores)

    def test_nothing_scores_at_least_zero(self, bge_m3: Path) -> None:
        encoder = ColBERT(bge_m3, device="cpu", padding="max_length")
        q, d = (self.expected(encoder, bge_m3, text) for text in ("berlin", "paris"))
        close(encoder.scores(["berlin"], ["paris"], tqdm_bar=False), (q @ d.T).max(1).values.sum()[None])

    def test_prefixes_of_the_user(self, bge_m3: Path) -> None:
        encoder = ColBERT(bge_m3, device="cpu", query_prefix="paris ")
        close(encoder.encode_queries(["berlin"])[0], self.expected(encoder, bge_m3, "paris berlin"))

    def test_saved_for_sentence_transformers(self, bge_m3: Path, tmp_path: Path) -> None:
        encoder = ColBERT(bge_m3, device="cpu")
        encoder.save_pretrained(tmp_path, format="sentence-transformers")
        theirs = MultiVectorEncoder(str(tmp_path), device="cpu")
        close(theirs.encode_query(["berlin"])[0], encoder.encode_queries(["berlin"])[0])
        close(
            ColBERT(tmp_path, device="cpu").scores(QUERIES, DOCUMENTS, tqdm_bar=False),
            encoder.scores(QUERIES, DOCUMENTS, tqdm_bar=False),
        )

    def test_the_projection_of_neural_cherche_wins(self, bge_m3: Path, tmp_path: Path) -> None:
        shutil.copytree(bge_m3, tmp_path, dirs_exist_ok=True)
        weight = torch.randn(SIZE + 1, HIDDEN)
        torch.save({"weight": weight}, tmp_path / "linear.pt")
        encoder = ColBERT(tmp_path, device="cpu")
        assert encoder.linear is not None
        assert torch.equal(encoder.linear.weight, weight)
        assert encoder.query_prefix == "[Q] "


class TestOtherFormats:
    """Late-interaction checkpoints whose files do not say "MultiVectorEncoder" but show it in another way."""

    def test_a_dense_module_of_tokens(self, multi_vector: Path, tmp_path: Path) -> None:
        shutil.copytree(multi_vector, tmp_path, dirs_exist_ok=True)
        write_json(tmp_path / "config_sentence_transformers.json", {"prompts": {"query": "find "}})
        encoder = ColBERT(tmp_path, device="cpu")
        assert encoder.embedding_size == SIZE
        expected = MultiVectorEncoder(str(tmp_path), device="cpu").encode_query(["berlin"])[0]
        close(encoder.encode_queries(["berlin"])[0], expected)

    def test_pylate_without_settings(self, pylate: Path, tmp_path: Path) -> None:
        shutil.copytree(pylate, tmp_path, dirs_exist_ok=True)
        (tmp_path / "config_sentence_transformers.json").unlink()
        assert ColBERT(tmp_path, device="cpu").embedding_size == SIZE
