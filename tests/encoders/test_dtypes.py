"""The dtype of an encoder is float32, whatever the files hold, unless the user asks for another dtype."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import DOCUMENTS, QUERIES, close, write_json

from colbert_fast.models import ColBERT

KINDS = ["neural_cherche", "multi_vector", "pylate", "stanford", "plain", "dense", "bge_m3"]
HALVES = [torch.float16, torch.bfloat16]


def load(folder: Path, kind: str, **kwargs: Any) -> ColBERT:
    options = {"embedding_size": None, "max_length_document": 20} if kind in ("plain", "dense") else {}
    return ColBERT(folder, device="cpu", **options, **kwargs)


def scores_of(encoder: ColBERT) -> torch.Tensor:
    return encoder.scores(QUERIES, DOCUMENTS, tqdm_bar=False)


@pytest.fixture
def rounded(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str, torch.dtype], tuple[Path, Path]]:
    """Make a checkpoint in half precision, and one that holds the same numbers in float32."""

    def make(kind: str, dtype: torch.dtype) -> tuple[Path, Path]:
        folders = (tmp_path / "half", tmp_path / "float32")
        for folder, last in zip(folders, (dtype, torch.float32), strict=True):
            shutil.copytree(request.getfixturevalue(kind), folder)
            for path in folder.rglob("*.safetensors"):
                weights = {name: value.to(dtype).to(last) for name, value in load_file(path).items()}
                save_file(weights, path, {"format": "pt"})
            for path in folder.rglob("*linear.pt"):
                linear = torch.load(path, weights_only=True)
                torch.save({name: value.to(dtype).to(last) for name, value in linear.items()}, path)
            for path in folder.rglob("config.json"):
                config = json.loads(path.read_text())
                if "model_type" in config:
                    write_json(path, {**config, "dtype": str(last).removeprefix("torch.")})
        return folders

    return make


def dtypes_of(encoder: ColBERT) -> set[torch.dtype]:
    return {parameter.dtype for parameter in encoder.parameters()}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_files_run_in_float32(kind: str, dtype: torch.dtype, rounded: Callable[..., Any]) -> None:
    half, whole = rounded(kind, dtype)
    encoder = load(half, kind)
    assert dtypes_of(encoder) == {torch.float32}
    assert encoder.encode(QUERIES)["embeddings"].dtype == torch.float32
    expected = load(whole, kind, model_kwargs={"dtype": torch.float32})
    close(scores_of(encoder), scores_of(expected))
    for mine, theirs in zip(encoder.encode_queries(DOCUMENTS), expected.encode_queries(DOCUMENTS), strict=True):
        close(mine, theirs)


@pytest.mark.parametrize(
    ("asked", "dtype"),
    [
        ({"dtype": torch.bfloat16}, torch.bfloat16),
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": "torch.float16"}, torch.float16),
        ({"torch_dtype": torch.float16}, torch.float16),
        ({"torch_dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": "auto"}, torch.float16),
        ({"torch_dtype": "auto"}, torch.float16),
        ({"dtype": None}, torch.float32),
        ({"dtype": torch.float64}, torch.float64),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_asked_for(kind: str, asked: dict[str, Any], dtype: torch.dtype, rounded: Callable[..., Any]) -> None:
    half, _ = rounded(kind, torch.float16)
    encoder = load(half, kind, model_kwargs=asked)
    assert dtypes_of(encoder) == {dtype}
    rows = encoder.encode(QUERIES)["embeddings"]
    assert rows.dtype == dtype
    tolerance = {torch.bfloat16: 0.2, torch.float16: 0.02}.get(dtype, 1e-5)
    expected = load(half, kind).encode(QUERIES)["embeddings"]
    torch.testing.assert_close(rows.float(), expected, rtol=0, atol=tolerance)
    assert scores_of(encoder).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.int16, "int32", "float33", "nonsense", 16, torch.complex64])
def test_no_dtype_of_an_encoder(dtype: object, neural_cherche: Path) -> None:
    with pytest.raises(ValueError, match="dtype must be a floating-point"):
        ColBERT(neural_cherche, device="cpu", model_kwargs={"dtype": dtype})


@pytest.mark.parametrize(
    ("dtype", "said"),
    [
        (torch.int8, 'dtype="int8" needs backend="onnx" or backend="openvino"'),
        ("int8", 'dtype="int8" needs backend="onnx" or backend="openvino"'),
        ("bf16", "dtype must be \"bfloat16\" in full; got 'bf16'"),
        ("fp16", "dtype must be \"float16\" in full; got 'fp16'"),
    ],
)
def test_a_dtype_that_is_nearly_right(dtype: object, said: str, neural_cherche: Path) -> None:
    with pytest.raises(ValueError, match=said):
        ColBERT(neural_cherche, device="cpu", dtype=dtype)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", ["neural_cherche", "pylate", "stanford", "bge_m3"])
def test_a_step_of_training(kind: str, dtype: torch.dtype, rounded: Callable[..., Any]) -> None:
    half, _ = rounded(kind, dtype)
    encoder = load(half, kind).train()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = -scores_of(encoder).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert torch.stack(losses).isfinite().all()
    assert all(parameter.isfinite().all() for parameter in encoder.parameters())


def test_what_a_file_of_sentence_transformers_asks_for(pylate: Path, tmp_path: Path) -> None:
    shutil.copytree(pylate, tmp_path, dirs_exist_ok=True)
    write_json(tmp_path / "sentence_bert_config.json", {"model_args": {"torch_dtype": "bfloat16"}})
    assert dtypes_of(ColBERT(tmp_path, device="cpu")) == {torch.float32}
    encoder = ColBERT(tmp_path, device="cpu", model_kwargs={"torch_dtype": torch.float16})
    assert dtypes_of(encoder) == {torch.float16}


def test_the_default_dtype_of_torch_stays(neural_cherche: Path) -> None:
    before = torch.get_default_dtype()
    ColBERT(neural_cherche, device="cpu", model_kwargs={"dtype": torch.bfloat16})
    assert torch.get_default_dtype() == before
