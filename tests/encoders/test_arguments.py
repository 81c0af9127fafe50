"""Every argument that the user gives is used, or refused with a message."""

from __future__ import annotations

import inspect
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import MultiVectorEncoder
from tiny import DOCUMENTS, HIDDEN, METADATA, QUERIES, SIZE, close, config, tokenizer, write_json
from transformers import ModernBertConfig, ModernBertModel

from colbert_fast import models
from colbert_fast.models import ColBERT

# The settings in a folder of each kind; None for a setting that the folder does not have.
SAID: dict[str, dict[str, Any]] = {
    "pylate": {
        "max_length_query": 14,
        "max_length_document": 18,
        "query_prefix": "[unused0]",
        "document_prefix": "[unused1]",
    },
    "stanford": {
        "max_length_query": 10,
        "max_length_document": 16,
        "query_prefix": "[unused0] ",
        "document_prefix": "[unused1] ",
    },
    "multi_vector": {
        "max_length_query": 64,
        "max_length_document": 64,
        "query_prefix": "find ",
        "document_prefix": "doc ",
    },
    "plain": {
        "max_length_query": 32,
        "max_length_document": 350,
        "query_prefix": "[Q] ",
        "document_prefix": "[D] ",
    },
    "bge_m3": {"max_length_query": 64, "max_length_document": 64, "query_prefix": "", "document_prefix": ""},
}
GIVEN: dict[str, Any] = {
    "max_length_query": 40,
    "max_length_document": 13,
    "query_prefix": "my query: ",
    "document_prefix": "",
    "padding": "longest",
    "truncation": False,
    "add_special_tokens": False,
}
LONG = "berlin capital of france " * 12


def load(folder: Path, **given: Any) -> ColBERT:
    """Load the folder without warnings: if it has no projection, ask for none."""
    bare = {"embedding_size": None} if folder.name.startswith("plain") else {}
    return ColBERT(folder, device="cpu", **bare, **given)


@pytest.fixture(params=SAID)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(kind: str, request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(kind)
    return path


def test_the_signature_shows_the_defaults() -> None:
    parameters = inspect.signature(ColBERT).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    assert defaults == {
        "model_name_or_path": inspect.Parameter.empty,
        "embedding_size": 128,
        "device": None,
        "max_length_query": 32,
        "max_length_document": 350,
        "query_prefix": "[Q] ",
        "document_prefix": "[D] ",
        "padding": "max_length",
        "truncation": True,
        "add_special_tokens": True,
        "freeze_layers_except_last_n": None,
        "kwargs": inspect.Parameter.empty,
    }


def test_the_defaults_of_neural_cherche_1_4_3(plain: Path, pylate: Path) -> None:
    for folder in (plain, pylate):
        encoder = load(folder, **{**models.NEURAL_CHERCHE_1_4_3, "max_length_document": 20})
        assert (encoder.max_length_query, encoder.max_length_document) == (64, 20)
    assert models.NEURAL_CHERCHE_1_4_3 == {"max_length_query": 64, "max_length_document": 256}


class TestWhereArgumentsWin:
    def test_what_the_files_say(self, kind: str, folder: Path) -> None:
        encoder = load(folder)
        assert {name: getattr(encoder, name) for name in SAID[kind]} == SAID[kind]

    @pytest.mark.parametrize("name", GIVEN)
    def test_what_the_user_gives(self, name: str, kind: str, folder: Path) -> None:
        encoder = load(folder, **{name: GIVEN[name]})
        assert {**SAID[kind], name: GIVEN[name]}.items() <= {
            key: getattr(encoder, key) for key in {*SAID[kind], name}
        }.items()

    @pytest.mark.parametrize(
        ("name", "default"), [("max_length_query", 32), ("query_prefix", "[Q] "), ("document_prefix", "[D] ")]
    )
    def test_a_default_that_is_given_is_given(self, name: str, default: object, folder: Path) -> None:
        assert getattr(load(folder, **{name: default}), name) == default

    def test_by_position(self, kind: str, folder: Path) -> None:
        size = None if kind == "plain" else SIZE
        encoder = ColBERT(folder, size, "cpu", 20, 30, "q ", "d ", "longest", False, False)
        names = ("max_length_query", "max_length_document", "query_prefix", "document_prefix", "padding", "truncation")
        assert [getattr(encoder, name) for name in names] == [20, 30, "q ", "d ", "longest", False]

    def test_a_subclass(self, pylate: Path) -> None:
        class Mine(ColBERT):
            def __init__(self, folder: Path, max_length_query: int = 20) -> None:
                super().__init__(folder, device="cpu", max_length_query=max_length_query)

        assert Mine(pylate).max_length_query == 20
        assert ColBERT(pylate, device="cpu").max_length_query == 14

    def test_prefixes_and_lengths_reach_the_rows(self, kind: str, folder: Path) -> None:
        encoder = load(folder, query_prefix="paris ", document_prefix="france ", max_length_document=13)
        bare = load(folder, query_prefix="", document_prefix="", max_length_document=13)
        prefixed = ["france berlin", "france " + LONG]
        close(
            encoder.encode(["berlin", LONG], query_mode=False)["embeddings"],
            bare.encode(prefixed, query_mode=False)["embeddings"],
        )
        close(encoder.encode(["berlin"])["embeddings"], bare.encode(["paris berlin"])["embeddings"])
        kept = 12 if kind == "bge_m3" else 13
        assert encoder.encode_documents([LONG]).lengths.tolist() == [kept]

    @pytest.mark.parametrize("kind", ["pylate", "stanford"])
    @pytest.mark.parametrize("later", [False, True])
    @pytest.mark.parametrize("length", [5, 40])
    def test_query_expansion_has_the_length_that_is_given(self, length: int, later: bool, folder: Path) -> None:
        if later:
            encoder = load(folder)
            encoder.max_length_query = length
        else:
            encoder = load(folder, max_length_query=length)
        assert encoder.max_length_query == length
        assert encoder.encode_queries(["berlin", LONG]).lengths.tolist() == [length, length]
        assert encoder.encode(["berlin"])["embeddings"].shape[1] == length
        theirs = MultiVectorEncoder(str(folder), device="cpu")
        transformer: Any = theirs[0]
        transformer.query_expansion = {**transformer.query_expansion, "length": length}
        for mine, expected in zip(encoder.encode_queries(["berlin"]), theirs.encode_query(["berlin"]), strict=True):
            close(mine, expected)

    @pytest.mark.parametrize("value", [0, -1, "40", 1.5, True])
    @pytest.mark.parametrize("kind", ["pylate"])
    def test_a_length_that_expansion_cannot_have(self, value: Any, folder: Path) -> None:
        encoder = load(folder)
        with pytest.raises((TypeError, ValueError), match="max_length_query must be"):
            encoder.max_length_query = value
        assert encoder.max_length_query == 14

    def test_expansion_that_only_fills_up(self, pylate: Path, tmp_path: Path) -> None:
        shutil.copytree(pylate, tmp_path, dirs_exist_ok=True)
        path = tmp_path / "config_sentence_transformers.json"
        expansion = {"strategy": "min", "attend": False, "length": 14}
        write_json(path, {**json.loads(path.read_text()), "query_expansion": expansion, "query_length": None})
        lengths = {}
        for given in (None, 10, 20, 40):
            encoder = load(tmp_path, **({} if given is None else {"max_length_query": given}))
            lengths[given] = encoder.encode_queries(["berlin", LONG]).lengths.tolist()
        longest = MultiVectorEncoder(str(tmp_path), device="cpu").encode_query([LONG])[0].shape[0]
        assert lengths == {None: [14, longest], 10: [10, 10], 20: [14, 20], 40: [14, 40]}

    def test_modern_bert_without_lengths(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        sizes = {**config().to_dict(), "max_position_embeddings": 8192, "pad_token_id": 0, "initializer_range": 0.5}
        sizes |= {f"{name}_token_id": 2 for name in ("cls", "bos")} | {f"{name}_token_id": 3 for name in ("sep", "eos")}
        names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        kept = {name: size for name, size in sizes.items() if name in names or "token_id" in name}
        ModernBertModel(ModernBertConfig(**kept)).save_pretrained(tmp_path)
        own = tokenizer()
        own.model_max_length = 8191
        own.save_pretrained(tmp_path)
        names = ["sentence_transformers.models.Transformer", "sentence_transformers.multi_vector_encoder.modules"]
        types = [names[0], f"{names[1]}.MultiVectorMask", "sentence_transformers.base.modules.normalize.Normalize"]
        entries = [
            {"idx": i, "name": str(i), "path": path, "type": kind}
            for i, (path, kind) in enumerate(zip(["", "1_Mask", "2_Normalize"], types, strict=True))
        ]
        write_json(tmp_path / "modules.json", entries)
        write_json(tmp_path / "config_sentence_transformers.json", {"model_type": "MultiVectorEncoder"})
        for name in ("1_Mask", "2_Normalize"):
            (tmp_path / name).mkdir()
            write_json(tmp_path / name / "config.json", {})
        write_json(tmp_path / "2_Normalize" / "config.json", {"module_input_name": "token_embeddings"})
        assert ColBERT(tmp_path, device="cpu").max_length_document == 8191
        encoder = ColBERT(tmp_path, device="cpu", max_length_document=300)
        shape = encoder.encode([LONG * 9], query_mode=False)["embeddings"].shape
        assert shape == (1, 300, HIDDEN)

    @pytest.mark.parametrize("kind", ["pylate", "stanford", "multi_vector", "bge_m3"])
    @pytest.mark.parametrize("size", [SIZE + 1, None])
    def test_another_size_of_the_projection(self, size: int | None, folder: Path) -> None:
        with pytest.raises(ValueError, match=f"embedding_size must be {SIZE}, as in .*; got {size}"):
            ColBERT(folder, size, device="cpu")
        assert ColBERT(folder, SIZE, device="cpu").embedding_size == SIZE

    @pytest.mark.parametrize("name", ["max_length_query", "max_length_document"])
    def test_a_length_beyond_the_positions(self, name: str, folder: Path) -> None:
        message = f"{name} must be at most 64, the number of positions of the transformer; got 65"
        with pytest.raises(ValueError, match=message):
            load(folder, **{name: 65})
        assert getattr(load(folder, **{name: 64}), name) == 64

    def test_saved_and_loaded_again(self, pylate: Path, tmp_path: Path) -> None:
        given = {"max_length_query": 20, "max_length_document": 11, "query_prefix": "q ", "document_prefix": "d "}
        encoder = load(pylate, **given)
        encoder.save_pretrained(tmp_path, format="sentence-transformers")
        again = load(tmp_path)
        assert {name: getattr(again, name) for name in given} == given
        close(again.scores(QUERIES, DOCUMENTS, tqdm_bar=False), encoder.scores(QUERIES, DOCUMENTS, tqdm_bar=False))


class TestWhereFilesWin:
    @pytest.mark.parametrize("name", GIVEN)
    def test_one_that_differs(self, name: str, neural_cherche: Path) -> None:
        with pytest.warns(UserWarning) as caught:
            encoder = ColBERT(neural_cherche, device="cpu", **{name: GIVEN[name]})
        (warning,) = caught
        said = str(warning.message)
        assert f"{name}={GIVEN[name]!r} (its files say {METADATA[name]!r}" in said
        assert f"set encoder.{name} = {GIVEN[name]!r}" in said
        assert warning.filename == __file__
        assert getattr(encoder, name) == METADATA[name]

    def test_several_in_one_warning(self, neural_cherche: Path) -> None:
        with pytest.warns(UserWarning) as caught:
            ColBERT(neural_cherche, 64, "cpu", 33, 351, "x")
        (warning,) = caught
        said = str(warning.message)
        for word in ("max_length_query=33", "max_length_document=351", "query_prefix='x'", "embedding_size=64"):
            assert word in said
        assert "document_prefix" not in said

    def test_a_default_that_is_given_and_differs(self, neural_cherche: Path) -> None:
        with pytest.warns(UserWarning, match="max_length_query=32"):
            ColBERT(neural_cherche, device="cpu", max_length_query=32)

    def test_the_same_as_the_files(self, neural_cherche: Path) -> None:
        encoder = ColBERT(neural_cherche, SIZE, device="cpu", **METADATA)
        assert encoder.max_length_query == METADATA["max_length_query"]

    @pytest.mark.parametrize("size", [64, None])
    def test_the_size_of_the_projection(self, size: int | None, neural_cherche: Path) -> None:
        with pytest.warns(UserWarning, match=rf"embedding_size={size} \(its projection is one of {SIZE} dimensions"):
            assert ColBERT(neural_cherche, size, device="cpu").embedding_size == SIZE

    def test_a_checkpoint_that_says_it_has_no_projection(self, make_neural_cherche: Callable[..., Path]) -> None:
        folder = make_neural_cherche(metadata={**METADATA, "embedding_size": None})
        with pytest.warns(UserWarning, match=r"embedding_size=16 \(its projection is none"):
            assert ColBERT(folder, SIZE, device="cpu").linear is None

    def test_gaps_in_the_files_are_filled(self, make_neural_cherche: Callable[..., Path]) -> None:
        folder = make_neural_cherche(metadata={"max_length_query": 7, "max_length_document": 9})
        encoder = ColBERT(folder, device="cpu", query_prefix="find ", truncation=False)
        assert (encoder.query_prefix, encoder.truncation, encoder.max_length_query) == ("find ", False, 7)

    def test_metadata_with_one_setting(self, make_neural_cherche: Callable[..., Path]) -> None:
        folder = make_neural_cherche(metadata={"query_prefix": "find "})
        encoder = ColBERT(folder, device="cpu")
        assert (encoder.query_prefix, encoder.max_length_query) == ("find ", 32)

    def test_metadata_of_another_program(self, plain: Path, tmp_path: Path) -> None:
        shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
        write_json(tmp_path / "metadata.json", {"truncation": "no", "author": "someone"})
        assert ColBERT(tmp_path, None, device="cpu").truncation is True

    def test_a_length_that_fills_a_gap_must_fit(self, neural_cherche: Path, tmp_path: Path) -> None:
        shutil.copytree(neural_cherche, tmp_path, dirs_exist_ok=True)
        (tmp_path / "metadata.json").unlink()
        with pytest.raises(ValueError, match="max_length_document must be at most 64"):
            ColBERT(tmp_path, device="cpu", max_length_document=350)
        # The user did not ask for 350: it is the default, so it may be above the transformer's positions.
        assert ColBERT(tmp_path, device="cpu").max_length_document == 350

    def test_lengths_of_the_files_may_be_beyond_the_positions(self, make_neural_cherche: Callable[..., Path]) -> None:
        folder = make_neural_cherche(metadata={**METADATA, "max_length_document": 1000})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert ColBERT(folder, device="cpu").max_length_document == 1000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("truncation", "no"),
        ("truncation", None),
        ("add_special_tokens", 1),
        ("max_length_query", 10**30),
        ("max_length_query", 2**40),
        ("max_length_document", 0),
        ("max_length_document", True),
        ("padding", False),
        ("padding", 1),
        ("query_prefix", None),
        ("embedding_size", 0),
        ("n_mask_tokens", "5"),
    ],
)
def test_values_that_no_encoder_can_have(name: str, value: object, neural_cherche: Path) -> None:
    with pytest.raises((TypeError, ValueError), match=name):
        ColBERT(neural_cherche, device="cpu", **{name: value})


def test_attributes_of_neural_cherche(neural_cherche: Path) -> None:
    encoder = ColBERT(str(neural_cherche), device="cpu")
    assert encoder.query_pad_token == encoder.tokenizer.mask_token == "[MASK]"
    assert encoder.original_pad_token == encoder.tokenizer.pad_token == "[PAD]"
    assert encoder.model_folder == str(neural_cherche)
    assert encoder.n_mask_tokens == 5
    assert ColBERT(neural_cherche, device="cpu", n_mask_tokens=7).n_mask_tokens == 7
