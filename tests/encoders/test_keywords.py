"""What neural-cherche passes on to `from_pretrained` reaches the model, the tokenizer or the configuration."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import MultiVectorEncoder
from tiny import QUERIES, close, write_json

from colbert_fast.models import ColBERT, keywords

KINDS = ["neural_cherche", "pylate", "stanford", "multi_vector", "bge_m3", "plain", "dense"]


def load(folder: Path, **given: Any) -> ColBERT:
    """Load the folder without warnings: if it has no projection, ask for none."""
    bare = {"embedding_size": None} if folder.name.startswith(("plain", "dense")) else {}
    return ColBERT(folder, device="cpu", **bare, **given)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_checkpoint(kind: str, request: pytest.FixtureRequest) -> None:
    encoder: Any = load(
        request.getfixturevalue(kind),
        attn_implementation="eager",
        torch_dtype=torch.bfloat16,
        trust_remote_code=False,
        cache_dir="nowhere",
        token=False,
        low_cpu_mem_usage=True,
        use_safetensors=True,
        hidden_dropout_prob=0.25,
        output_attentions=True,
        model_max_length=40,
        use_fast=True,
        num_labels=3,
        force_download=False,
    )
    assert encoder.model.config._attn_implementation == "eager"
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.bfloat16}
    assert encoder.model.config.hidden_dropout_prob == 0.25
    assert encoder.model.config.output_attentions is True
    assert encoder.tokenizer.model_max_length == 40 and encoder.model.config.num_labels == 3
    assert encoder.encode(QUERIES)["embeddings"].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_stay(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    ours = load(folder, attn_implementation="eager", dtype="float32").encode(QUERIES)["embeddings"]
    close(ours, load(folder).encode(QUERIES)["embeddings"])


def test_what_has_two_places(plain: Path) -> None:
    """A name goes beside what the three dicts hold already, which stay as they were."""
    mine: dict[str, Any] = {"attn_implementation": "eager"}
    encoder: Any = load(plain, dtype="float64", model_kwargs=mine, config_kwargs={"layer_norm_eps": 0.5})
    assert mine == {"attn_implementation": "eager"}
    assert encoder.model.dtype == torch.float64
    assert encoder.model.config._attn_implementation == "eager"
    assert encoder.model.config.layer_norm_eps == 0.5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dtype": "float32", "torch_dtype": "float32"}, "torch_dtype and dtype are one argument that was given twice"),
        ({"torch_dtype": "float16", "model_kwargs": {"dtype": "float32"}}, r"torch_dtype and model_kwargs\['dtype'\]"),
        ({"dtype": "float16", "model_kwargs": {"torch_dtype": "float32"}}, r"dtype and model_kwargs\['torch_dtype'\]"),
        ({"model_kwargs": {"torch_dtype": "float16", "dtype": "float32"}}, "dtype and torch_dtype are one argument"),
        ({"cache_dir": "a", "cache_folder": "b"}, "cache_dir and cache_folder"),
        ({"use_auth_token": "a", "token": "b"}, "use_auth_token and token"),
        (
            {"attn_implementation": "eager", "model_kwargs": {"attn_implementation": "sdpa"}},
            r"attn_implementation and model_kwargs\['attn_implementation'\]",
        ),
        ({"use_fast": True, "processor_kwargs": {"use_fast": False}}, r"use_fast and processor_kwargs\['use_fast'\]"),
        (
            {"hidden_dropout_prob": 0.0, "config_kwargs": {"hidden_dropout_prob": 0.1}},
            r"hidden_dropout_prob and config_kwargs\['hidden_dropout_prob'\]",
        ),
        ({"max_length": 64}, r"unknown keyword arguments \['max_length'\]"),
        ({"max_lenght_query": 64, "n_gpu": 2}, r"unknown keyword arguments \['max_lenght_query', 'n_gpu'\]"),
        ({"model_type": "bert"}, "unknown keyword arguments"),
        ({"subfolder": "x"}, "unknown keyword arguments"),
        ({"model_kwargs": "eager", "dtype": "float16"}, "model_kwargs must be a dict; got str"),
        ({"config_kwargs": [1]}, "config_kwargs must be a dict; got list"),
    ],
)
def test_what_is_refused(given: dict[str, Any], message: str, plain: Path) -> None:
    with pytest.raises(TypeError, match=message):
        load(plain, **given)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"attn_implementation": "nonsense"}, ".*attn_implementation"),
        ({"load_in_8bit": True}, ".*8.?bit"),
        ({"use_kernels": "nonsense", "model_kwargs": {"nonsense": 1}}, ".*nonsense"),
        ({"variant": "fp16"}, ".*fp16"),
        ({"hidden_size": 48}, ".* its weights embeddings.LayerNorm.bias, embeddings.LayerNorm.weight, .* and 15 more"),
        ({"max_position_embeddings": 128}, ".* its weights .*position_embeddings"),
    ],
)
@pytest.mark.parametrize("kind", ["neural_cherche", "pylate"])
def test_what_transformers_refuses(
    given: dict[str, Any], reason: str, kind: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    with pytest.raises(ValueError, match=rf"^'{re.escape(str(folder))}' cannot be loaded: {reason}"):
        load(folder, **given)


@pytest.mark.parametrize("dtype", ["int32", "nonsense", 16])
def test_what_is_no_dtype(dtype: Any, plain: Path) -> None:
    with pytest.raises(ValueError, match="dtype must be a floating-point"):
        load(plain, torch_dtype=dtype)


def test_names_of_the_hub() -> None:
    sorted_, rest = keywords.sort_keywords({"cache_dir": "c", "use_auth_token": "t", "revision": "r", "more": 1})
    assert sorted_ == {"cache_folder": "c", "token": "t", "revision": "r"}
    assert rest == {"more": 1}


def test_a_forced_download_is_one_of_every_file(monkeypatch: pytest.MonkeyPatch) -> None:
    sorted_, _ = keywords.sort_keywords({"force_download": True})
    assert sorted_ == {name: {"force_download": True} for name in ("model_kwargs", "processor_kwargs", "config_kwargs")}
    asked: list[Any] = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        "colbert_fast.models.files.hf_hub_download", lambda *names, **given: asked.append(given["force_download"])
    )
    keywords.Files("some/repository", sorted_).find("linear.pt")
    keywords.Files("some/repository", {}).find("linear.pt")
    assert asked == [True, False]


def test_a_folder_has_no_revisions(plain: Path) -> None:
    with pytest.warns(UserWarning, match="revision='v1' is not used: .* is a folder") as caught:
        load(plain, revision="v1")
    assert caught[0].filename == __file__


def test_fewer_layers(neural_cherche: Path) -> None:
    with pytest.warns(UserWarning, match="holds layers .* You asked for this with num_hidden_layers"):
        encoder: Any = load(neural_cherche, num_hidden_layers=1)
    assert len(encoder.model.encoder.layer) == 1
    assert encoder.encode(QUERIES)["embeddings"].isfinite().all()


def test_the_configuration_of_a_model_that_transformers_does_not_have(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model_type": "somebodys", "depth": 3})
    files = keywords.Files(tmp_path, {})
    assert keywords.sort_by_config(files, {}, {"depth": 2}) == {"config_kwargs": {"depth": 2}}
    with pytest.raises(TypeError, match="unknown"):
        keywords.sort_by_config(files, {}, {"hidden_dropout_prob": 0.0})


def test_no_name_is_in_two_tables() -> None:
    ours = set(keywords._OWN) & {*keywords._OF_MODEL, *keywords._OF_TOKENIZER}
    assert not ours
    assert set(keywords._OF_MODEL) & set(keywords._OF_TOKENIZER) == {"code_revision", "force_download"}
    theirs = MultiVectorEncoder.__init__.__kwdefaults__
    assert {"cache_folder", "token", "model_kwargs"} <= set(keywords._OWN) <= set(theirs)


def test_a_compiled_transformer(neural_cherche: Path, tmp_path: Path) -> None:
    encoder: Any = load(neural_cherche)
    expected = encoder.encode_documents(QUERIES).tokens
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    encoder.encoder[0].model = torch.compile(encoder.model, dynamic=True, backend=backend)
    close(encoder.encode_documents(QUERIES).tokens, expected)
    assert graphs
    encoder.save_pretrained(tmp_path)
    close(load(tmp_path).encode_documents(QUERIES).tokens, expected)
