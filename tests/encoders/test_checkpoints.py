"""The kinds of checkpoint that models.ColBERT loads and writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from tiny import DOCUMENTS, HIDDEN, METADATA, QUERIES, SIZE, close

from colbert_fast.models import ColBERT, files

FRESH = "has no ColBERT projection"


def scores_of(encoder: ColBERT) -> torch.Tensor:
    return encoder.scores(QUERIES, DOCUMENTS, tqdm_bar=False)


def raising(error: Exception) -> Callable[..., str]:
    def call(*args: object, **kwargs: object) -> str:
        raise error

    return call


@pytest.fixture
def multi_vector(plain: Path, tmp_path: Path) -> Path:
    """A MultiVectorEncoder folder with prompts and with short maximum lengths."""
    torch.manual_seed(3)
    modules = [
        Transformer(str(plain), model_kwargs={"add_pooling_layer": False}, query_length=9, document_length=11),
        Dense(HIDDEN, SIZE, bias=False, activation_function=None, module_input_name="token_embeddings"),
        MultiVectorMask(),
        Normalize(module_input_name="token_embeddings"),
    ]
    encoder = MultiVectorEncoder(modules=modules, prompts={"query": "find ", "document": "doc "}, device="cpu")
    encoder.save_pretrained(str(tmp_path / "multi_vector"), create_model_card=False)
    return tmp_path / "multi_vector"


def same_as_sentence_transformers(folder: Path, *, width: tuple[int, int]) -> ColBERT:
    """The rows, scores and shapes equal those that MultiVectorEncoder computes."""
    ours, theirs = ColBERT(folder, device="cpu"), MultiVectorEncoder(str(folder), device="cpu")
    q, d = theirs.encode_query(QUERIES), theirs.encode_document(DOCUMENTS)
    for mine, expected in ((ours.encode_queries(QUERIES), q), (ours.encode_documents(DOCUMENTS), d)):
        assert [len(rows) for rows in mine] == [len(rows) for rows in expected]
        for rows, expected_rows in zip(mine, expected, strict=True):
            close(rows, expected_rows)
    close(scores_of(ours), theirs.similarity_pairwise(q, d))
    padded = [
        ours.encode(texts, query_mode=mode)["embeddings"] for texts, mode in ((QUERIES, True), (DOCUMENTS, False))
    ]
    assert (padded[0].shape[1], padded[1].shape[1]) == width
    assert ours.linear is not None
    assert ours.linear.weight.shape == (SIZE, HIDDEN)
    return ours


class TestDelegated:
    def test_multi_vector_encoder(self, multi_vector: Path) -> None:
        ours = same_as_sentence_transformers(multi_vector, width=(9, 11))
        assert (ours.query_prefix, ours.document_prefix) == ("find ", "doc ")

    def test_multi_vector_encoder_without_lengths(self, multi_vector: Path) -> None:
        config = multi_vector / "sentence_bert_config.json"
        settings = json.loads(config.read_text())
        del settings["query_length"], settings["document_length"]
        config.write_text(json.dumps(settings))
        same_as_sentence_transformers(multi_vector, width=(64, 64))

    def test_mean_maxsim(self, multi_vector: Path) -> None:
        config = multi_vector / "config_sentence_transformers.json"
        settings = json.loads(config.read_text())
        config.write_text(json.dumps({**settings, "similarity_fn_name": "meanmaxsim"}))
        same_as_sentence_transformers(multi_vector, width=(9, 11))

    def test_pylate(self, pylate: Path) -> None:
        ours = same_as_sentence_transformers(pylate, width=(14, 18))
        # Every query is filled with [MASK] up to the maximum length. Punctuation of documents has no embedding.
        assert ours.encode_queries(QUERIES).lengths.tolist() == [14] * 4
        dot = ours.encode_documents(["berlin.", "berlin"]).lengths
        assert dot[0] == dot[1]

    def test_stanford(self, stanford: Path) -> None:
        ours = same_as_sentence_transformers(stanford, width=(10, 16))
        assert ours.query_prefix == "[unused0] "

    @pytest.mark.parametrize("kind", ["pylate", "stanford"])
    def test_training_and_state_dict(self, kind: str, request: pytest.FixtureRequest) -> None:
        ours = ColBERT(request.getfixturevalue(kind), device="cpu")
        expected = scores_of(ours)
        state = {name: value.clone() for name, value in ours.state_dict().items()}
        ours.train()
        scores_of(ours).sum().backward()
        assert ours.linear is not None
        assert ours.linear.weight.grad is not None
        with torch.no_grad():
            ours.linear.weight.zero_()
        ours.eval().load_state_dict(state)
        assert torch.equal(scores_of(ours), expected)

    @pytest.mark.parametrize("kind", ["pylate", "stanford"])
    def test_saved_for_sentence_transformers(self, kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
        ours = ColBERT(request.getfixturevalue(kind), device="cpu")
        ours.save_pretrained(tmp_path, format="sentence-transformers")
        close(
            scores_of(same_as_sentence_transformers(tmp_path, width=(ours.max_length_query, ours.max_length_document))),
            scores_of(ours),
        )

    @pytest.mark.parametrize("kind", ["pylate", "stanford"])
    def test_neural_cherche_cannot_express_query_expansion(
        self, kind: str, request: pytest.FixtureRequest, tmp_path: Path
    ) -> None:
        ours = ColBERT(request.getfixturevalue(kind), device="cpu")
        with pytest.raises(ValueError, match="cannot express query expansion; pass format="):
            ours.save_pretrained(tmp_path)
        assert not list(tmp_path.iterdir())

    def test_a_plain_multi_vector_encoder_becomes_neural_cherche(self, multi_vector: Path, tmp_path: Path) -> None:
        ours = ColBERT(multi_vector, device="cpu")
        ours.save_pretrained(tmp_path / "new")
        again = ColBERT(tmp_path / "new", device="cpu")
        close(again.encode(QUERIES)["embeddings"], ours.encode(QUERIES)["embeddings"])


class TestFresh:
    def test_a_plain_transformer_starts_untrained_and_says_so_once(self, plain: Path) -> None:
        with pytest.warns(UserWarning, match=FRESH) as caught:
            encoder = ColBERT(plain, embedding_size=24, device="cpu")
        assert len(caught) == 1
        assert caught[0].filename == __file__
        assert "embedding_size=None" in str(caught[0].message)
        assert encoder.embedding_size == 24
        assert encoder.linear is not None
        # The bound of Xavier's initialisation. torch.nn.Linear itself would start within 1 / sqrt(hidden size).
        bound = (6 / (HIDDEN + 24)) ** 0.5
        assert bound * 0.9 < encoder.linear.weight.abs().max() <= bound
        assert encoder(["berlin"])["embeddings"].shape == (1, 32, 24)
        assert encoder(["berlin"], query_mode=False, padding=True)["embeddings"].shape[2] == 24

    def test_the_seed_decides_the_projection(self, plain: Path) -> None:
        weights = []
        for _ in range(2):
            torch.manual_seed(5)
            with pytest.warns(UserWarning, match=FRESH):
                weights.append(ColBERT(plain, device="cpu").state_dict()["linear.weight"])
        assert torch.equal(*weights)

    def test_no_projection(self, plain: Path) -> None:
        encoder = ColBERT(plain, embedding_size=None, device="cpu", query_prefix="", document_prefix="")
        assert encoder.linear is None
        assert encoder.embedding_size == HIDDEN
        inputs = encoder.tokenizer(["berlin is"], return_tensors="pt")
        states = encoder.model(**inputs).last_hidden_state
        close(encoder(["berlin is"], padding=True)["embeddings"], torch.nn.functional.normalize(states, dim=2))

    @pytest.mark.parametrize("folder", ["", "0_Transformer"])
    def test_a_dense_sentence_transformer(self, plain: Path, tmp_path: Path, folder: str) -> None:
        shutil.copytree(plain, tmp_path / folder, dirs_exist_ok=True)
        kinds = ["sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"]
        modules = [{"idx": i, "name": str(i), "path": [folder, "1_Pooling"][i], "type": kinds[i]} for i in (0, 1)]
        (tmp_path / "modules.json").write_text(json.dumps(modules))
        (tmp_path / "config_sentence_transformers.json").write_text("{}")
        encoders = [ColBERT(path, None, "cpu", max_length_document=20) for path in (tmp_path, plain)]
        close(*map(scores_of, encoders))
        with pytest.warns(UserWarning, match=FRESH):
            ColBERT(tmp_path, device="cpu")

    def test_the_real_one(self, minilm: Path) -> None:
        encoder = ColBERT(minilm, embedding_size=None, device="cpu", query_prefix="", document_prefix="")
        assert encoder.embedding_size == 384
        documents = ["Berlin is the capital of Germany.", "Bananas are rich in potassium."]
        scores = encoder.scores(["What is the capital of Germany?"], documents, tqdm_bar=False)
        assert scores[0] > scores[1] + 1


class TestFiles:
    def test_files_win_over_arguments(self, neural_cherche: Path) -> None:
        with pytest.warns(UserWarning, match="files win over arguments") as caught:
            encoder = ColBERT(neural_cherche, 64, "cpu", 5, 6, query_prefix="x", padding=True)
        assert len(caught) == 1
        assert encoder.embedding_size == SIZE
        assert {name: getattr(encoder, name) for name in METADATA} == METADATA

    def test_arguments_fill_what_version_1_0_0_did_not_write(self, make_neural_cherche: Callable[..., Path]) -> None:
        folder = make_neural_cherche(metadata={"max_length_query": 7, "max_length_document": 9})
        encoder = ColBERT(folder, device="cpu", query_prefix="find ", add_special_tokens=False)
        assert (encoder.max_length_query, encoder.max_length_document) == (7, 9)
        assert (encoder.query_prefix, encoder.document_prefix) == ("find ", "[D] ")
        assert encoder.add_special_tokens is False

    def test_a_folder_without_metadata(self, neural_cherche: Path, tmp_path: Path) -> None:
        shutil.copytree(neural_cherche, tmp_path, dirs_exist_ok=True)
        (tmp_path / "metadata.json").unlink()
        encoder = ColBERT(tmp_path, device="cpu")
        assert (encoder.max_length_query, encoder.max_length_document) == (32, 350)
        assert encoder.embedding_size == SIZE

    @pytest.mark.parametrize("name", ["missing/folder/deep", "/missing", "./missing", "../missing"])
    def test_a_missing_folder(self, name: str) -> None:
        with pytest.raises(FileNotFoundError, match="model_name_or_path must be a folder"):
            ColBERT(name, device="cpu")

    def test_a_file(self, neural_cherche: Path) -> None:
        with pytest.raises(FileNotFoundError, match="no folder"):
            ColBERT(neural_cherche / "linear.pt", device="cpu")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            (
                "linear.pt",
                {"weight": torch.zeros(SIZE, HIDDEN + 1)},
                r"must fit the transformer.*got weight \[16, 33\]",
            ),
            ("linear.pt", {"weight": torch.zeros(SIZE)}, "must hold"),
            ("linear.pt", {"bias": torch.zeros(SIZE)}, r"must hold.*got \['bias'\]"),
            ("linear.pt", [1, 2], "must hold.*got list"),
            ("metadata.json", "{", "is not JSON"),
            ("metadata.json", "[]", "must hold a JSON object; got list"),
            ("metadata.json", json.dumps({**METADATA, "max_length_query": 0}), "max_length_query must be 1 or more"),
        ],
    )
    def test_broken_files(self, neural_cherche: Path, tmp_path: Path, name: str, content: Any, message: str) -> None:
        shutil.copytree(neural_cherche, tmp_path, dirs_exist_ok=True)
        if isinstance(content, str):
            (tmp_path / name).write_text(content)
        else:
            torch.save(content, tmp_path / name)
        with pytest.raises(ValueError, match=message):
            ColBERT(tmp_path, device="cpu")

    def test_a_hub_that_does_not_answer_is_no_missing_projection(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(files, "hf_hub_download", raising(LocalEntryNotFoundError("no connection")))
        with pytest.raises(FileNotFoundError, match=r"hub could not be asked for its linear\.pt"):
            ColBERT("someone/colbert", device="cpu")

    def test_a_file_the_hub_has_not_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(files, "hf_hub_download", raising(EntryNotFoundError("404")))
        assert files.Files("someone/colbert", {}).find("linear.pt") is None
        assert files.Files("someone/colbert", {}).read_json("metadata.json") == {}

    def test_a_file_known_to_be_missing_is_missing_offline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(files, "hf_hub_download", raising(LocalEntryNotFoundError("no connection")))
        monkeypatch.setattr(files, "try_to_load_from_cache", lambda *args, **kwargs: files._CACHED_NO_EXIST)
        assert files.Files("someone/colbert", {}).find("linear.pt") is None

    def test_the_hub_is_asked_with_the_given_access(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        asked: dict[str, Any] = {}

        def download(repository: str, name: str, **kwargs: Any) -> str:
            asked.update(kwargs, repository=repository, name=name)
            return str(tmp_path / name)

        monkeypatch.setattr(files, "hf_hub_download", download)
        access = {"cache_folder": "c", "revision": "r", "token": "t"}
        assert files.Files("someone/colbert", access).find("linear.pt") == str(tmp_path / "linear.pt")
        expected = {"repository": "someone/colbert", "name": "linear.pt", "cache_dir": "c", "revision": "r"}
        assert asked == {**expected, "token": "t", "local_files_only": False, "force_download": False}
        files.Files("someone/colbert", {**access, "model_kwargs": {"force_download": True}}).find("linear.pt")
        assert asked["force_download"] is True
