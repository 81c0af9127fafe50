"""Damaged and hostile checkpoints raise an error that names the file and says what is wrong with it."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import DOCUMENTS, HIDDEN, METADATA, QUERIES, SIZE, close, tokenizer, write_json
from transformers import AutoModel, AutoTokenizer

from colbert_fast.models import ColBERT

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
WEIGHTS = torch.randn(SIZE, HIDDEN)


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("hostile",)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def copy(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Path]:
    def make(kind: str) -> Path:
        folder = tmp_path / "copy"
        shutil.copytree(request.getfixturevalue(kind), folder)
        return folder

    return make


def refused(folder: Path, name: str, *, kind: type[Exception] = ValueError, match: str = "") -> None:
    """Check that the folder is refused with an error that names the file, and that no code of the file has run."""
    with pytest.raises(kind) as caught:
        ColBERT(folder, device="cpu")
    message = str(caught.value)
    assert str(folder) in message
    assert name in message
    assert match in message
    assert "weights_only=False" not in message
    assert not list(Path().iterdir())


def replace(path: Path, how: str) -> None:
    path.unlink(missing_ok=True)
    if how == "dangling":
        path.symlink_to("nowhere")
    elif how == "loop":
        path.symlink_to(path.name)
    elif how == "folder":
        path.mkdir()
    elif how == "fifo":
        if not hasattr(os, "mkfifo"):
            pytest.skip("this system has no named pipes")
        os.mkfifo(path)
    elif how == "empty":
        path.touch()
    else:
        path.write_text(POINTER)


SAID = {
    "dangling": "which is not there",
    "loop": "leads back to itself",
    "folder": "it is a folder",
    "fifo": "it is a pipe",
    "empty": "is empty",
    "pointer": "git lfs pull",
}
READ = {
    "neural_cherche": [
        *("linear.pt", "metadata.json", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("modules.json", "special_tokens_map.json", "vocab.txt"),
    ],
    "pylate": ["config_sentence_transformers.json", "1_Dense/config.json", "1_Dense/model.safetensors", "modules.json"],
    "stanford": ["artifact.metadata", "model.safetensors"],
    "bge_m3": ["colbert_linear.pt"],
}


@pytest.mark.parametrize("how", SAID)
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in READ.items() for name in names])
def test_what_is_no_file(kind: str, name: str, how: str, copy: Callable[[str], Path]) -> None:
    folder = copy(kind)
    replace(folder / name, how)
    refused(folder, name, match=SAID[how])


@pytest.mark.parametrize("how", ["dangling", "fifo", "pointer"])
def test_what_is_not_read_does_no_harm(how: str, copy: Callable[[str], Path]) -> None:
    folder = copy("neural_cherche")
    for name in ("README.md", "pytorch_model.bin", "notes.json", "sparse_linear.pt"):
        replace(folder / name, how)
    ColBERT(folder, device="cpu")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("bytes", b"\xff\xfe{}", "is not JSON"),
        ("bom", b"\xef\xbb\xbf{}", "is not JSON"),
        ("cut", b'{"max_length_query": 1', "is not JSON"),
        ("deep", b"[" * 100_000, "is not JSON"),
        ("null", b"null", "must hold a JSON object; got NoneType"),
        ("number", b"3", "must hold a JSON object; got int"),
        ("text", b'"text"', "must hold a JSON object; got str"),
        ("digits", b'{"max_length_query": ' + b"9" * 5000 + b"}", ""),
    ],
)
@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("neural_cherche", "metadata.json"),
        ("neural_cherche", "config.json"),
        ("neural_cherche", "tokenizer_config.json"),
        ("pylate", "config_sentence_transformers.json"),
        ("pylate", "sentence_bert_config.json"),
        ("pylate", "1_Dense/config.json"),
        ("stanford", "artifact.metadata"),
    ],
)
def test_json(kind: str, file: str, name: str, content: bytes, match: str, copy: Callable[[str], Path]) -> None:
    if name == "digits" and file != "metadata.json":
        return
    folder = copy(kind)
    (folder / file).write_bytes(content)
    refused(folder, file, match=match)


def test_a_setting_named_twice(copy: Callable[[str], Path]) -> None:
    folder = copy("neural_cherche")
    (folder / "metadata.json").write_text('{"max_length_query": 3, "max_length_document": 5, "max_length_query": 4}')
    refused(folder, "metadata.json", match="['max_length_query'] more than once")


def test_a_huge_json(copy: Callable[[str], Path]) -> None:
    folder = copy("neural_cherche")
    with open(folder / "metadata.json", "ab") as file:
        file.truncate(2**33)
    refused(folder, "metadata.json", match="must have at most")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_length_query", value) for value in (10**30, 1.5, True, "32", None, 0, -1, [32], float("nan"))),
        *(("max_length_document", value) for value in (2**40, "350", None)),
        *(("truncation", value) for value in ("no", "longest_first", None, 1, 0)),
        *(("add_special_tokens", value) for value in ("yes", None, 1)),
        *(("padding", value) for value in (False, "left", None, 1, ["max_length"])),
        *(("query_prefix", value) for value in (None, 3, ["[Q] "])),
        ("document_prefix", None),
    ],
)
def test_settings(name: str, value: object, copy: Callable[[str], Path]) -> None:
    folder = copy("neural_cherche")
    write_json(folder / "metadata.json", {**METADATA, name: value})
    refused(folder, "metadata.json", match=name)


@pytest.mark.parametrize(
    ("kind", "file", "name", "value"),
    [
        ("pylate", "config_sentence_transformers.json", "query_length", "14"),
        ("pylate", "config_sentence_transformers.json", "document_length", "18"),
        ("pylate", "config_sentence_transformers.json", "document_length", 1.5),
        ("pylate", "config_sentence_transformers.json", "query_prefix", 3),
        ("stanford", "artifact.metadata", "query_maxlen", "10"),
        ("stanford", "artifact.metadata", "doc_maxlen", -3),
        ("pylate", "sentence_bert_config.json", "max_seq_length", "63"),
        ("plain", "config.json", "architectures", 5),
        ("plain", "config.json", "architectures", [1]),
        ("neural_cherche", "config.json", "model_type", "nonsense"),
        ("neural_cherche", "config.json", "hidden_size", "32"),
        ("neural_cherche", "config.json", "hidden_size", 48),
        ("neural_cherche", "config.json", "vocab_size", 10),
    ],
)
def test_settings_of_other_packages(
    kind: str, file: str, name: str, value: object, copy: Callable[[str], Path]
) -> None:
    folder = copy(kind)
    content = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    write_json(folder / file, {**content, name: value})
    refused(folder, "")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "is not JSON"),
        ("{}", "must hold a JSON array; got dict"),
        ("null", "must hold a JSON array; got NoneType"),
        ("[]", "got an empty list"),
        ("[3]", "must list objects"),
        ('[{"path": ""}]', "must list objects"),
        ('[{"type": "sentence_transformers.models.Transformer"}]', "must list objects"),
        ('[{"path": null, "type": "sentence_transformers.models.Transformer"}]', "must list objects"),
        *(
            (json.dumps([{"path": path, "type": "sentence_transformers.models.Transformer"}]), "inside the checkpoint")
            for path in ("/etc", "..", "../plain", "a/../../b", "..\\plain", "C:\\", "\\\\host", "a\0b")
        ),
        ('[{"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]', "which is not there"),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "pylate", "neural_cherche"])
def test_modules(kind: str, content: str, match: str, copy: Callable[[str], Path]) -> None:
    folder = copy(kind)
    (folder / "modules.json").write_text(content)
    wrong = FileNotFoundError if match == "which is not there" else ValueError
    refused(folder, "modules.json", kind=wrong, match=match)


def test_a_module_in_the_place_of_a_folder(copy: Callable[[str], Path]) -> None:
    folder = copy("pylate")
    shutil.rmtree(folder / "1_Dense")
    refused(folder, "1_Dense", kind=FileNotFoundError)
    (folder / "1_Dense").touch()
    refused(folder, "1_Dense", match="must be a folder")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["neural_cherche", "plain", "pylate", "dense", "bge_m3"])
def test_a_missing_file(kind: str, name: str, copy: Callable[[str], Path]) -> None:
    folder = copy(kind)
    place = folder / "0_Transformer" if kind == "dense" else folder
    (place / name).unlink()
    refused(folder, "", kind=FileNotFoundError, match="must hold")


@pytest.mark.parametrize("kind", ["neural_cherche", "plain", "pylate", "stanford", "dense", "bge_m3", "multi_vector"])
def test_no_vocabulary(kind: str, copy: Callable[[str], Path]) -> None:
    folder = copy(kind)
    place = folder / "0_Transformer" if kind == "dense" else folder
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"):
        (place / name).unlink(missing_ok=True)
    refused(folder, "tokenizer.json", kind=FileNotFoundError, match="vocabulary")


@pytest.mark.parametrize("kind", ["neural_cherche", "stanford"])
def test_settings_of_a_tokenizer_without_vocabulary(kind: str, copy: Callable[[str], Path]) -> None:
    folder = copy(kind)
    (folder / "tokenizer.json").unlink()
    assert (folder / "tokenizer_config.json").exists()
    refused(folder, "tokenizer.json", kind=FileNotFoundError, match="vocabulary")


@pytest.mark.parametrize("kind", ["neural_cherche", "pylate", "stanford"])
def test_layers_that_are_not_read(kind: str, copy: Callable[[str], Path]) -> None:
    folder = copy(kind)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "num_hidden_layers": 1})
    with pytest.warns(UserWarning, match=r"holds layers .*layer\.1\..*num_hidden_layers") as caught:
        ColBERT(folder, device="cpu")
    assert len(caught) == 1


@pytest.mark.parametrize("layers", [0, -1, 10_001, 10**6, 10**30])
@pytest.mark.parametrize("kind", ["neural_cherche", "pylate", "stanford", "dense", "bge_m3"])
def test_numbers_of_layers_that_no_model_has(kind: str, layers: int, copy: Callable[[str], Path]) -> None:
    folder = copy(kind)
    path = (
        next(folder.glob("**/model.safetensors")).parent / "config.json" if kind == "dense" else folder / "config.json"
    )
    write_json(path, {**json.loads(path.read_text()), "num_hidden_layers": layers})
    refused(folder, str(path), match=f'"num_hidden_layers"; got {layers}')


@pytest.mark.parametrize("part", ["text_config", "decoder"])
def test_numbers_of_layers_of_a_part(part: str, copy: Callable[[str], Path]) -> None:
    folder = copy("plain")
    content = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**content, part: {"num_layers": 10**6}})
    refused(folder, "config.json", match='"num_layers"; got 1000000')
    write_json(folder / "config.json", {**content, part: {"num_layers": 0}})
    ColBERT(folder, None, device="cpu")


def test_a_transformer_that_was_made_without_layers(neural_cherche: Path) -> None:
    with pytest.warns(UserWarning, match=r"holds layers .*encoder\.layer\.\{0, 1\}\..*num_hidden_layers") as caught:
        ColBERT(neural_cherche, device="cpu", config_kwargs={"num_hidden_layers": 0})
    assert len(caught) == 1
    assert "predictions" not in str(caught[0].message)


@pytest.mark.parametrize("model_type", ["CrossEncoder", "SparseEncoder", "", ["x"], None, 3])
@pytest.mark.parametrize("kind", ["multi_vector", "pylate"])
def test_modules_of_another_class(kind: str, model_type: object, copy: Callable[[str], Path]) -> None:
    """MultiVectorEncoder itself would make a random projection and drop the prompts."""
    folder = copy(kind)
    path = folder / "config_sentence_transformers.json"
    write_json(path, {**json.loads(path.read_text()), "model_type": model_type})
    refused(
        folder, path.name, match=f'"model_type" beside the modules of a late-interaction encoder; got {model_type!r}'
    )


@pytest.mark.parametrize("kind", ["multi_vector", "pylate"])
def test_modules_that_a_sentence_transformer_saved(
    kind: str, request: pytest.FixtureRequest, copy: Callable[[str], Path]
) -> None:
    folder = copy(kind)
    path = folder / "config_sentence_transformers.json"
    write_json(path, {**json.loads(path.read_text()), "model_type": "SentenceTransformer"})
    expected = ColBERT(request.getfixturevalue(kind), device="cpu").encode_documents(DOCUMENTS)
    actual = ColBERT(folder, device="cpu").encode_documents(DOCUMENTS)
    assert actual.lengths.tolist() == expected.lengths.tolist()
    close(actual.tokens, expected.tokens)


@pytest.mark.parametrize("how", ["no modules", "no Dense"])
@pytest.mark.parametrize("kind", ["multi_vector", "pylate"])
def test_a_projection_that_no_file_holds(kind: str, how: str, copy: Callable[[str], Path]) -> None:
    folder = copy(kind)
    if how == "no modules":
        (folder / "modules.json").unlink()
    else:
        modules = json.loads((folder / "modules.json").read_text())
        write_json(folder / "modules.json", [entry for entry in modules if not entry["type"].endswith(".Dense")])
        path = folder / "config_sentence_transformers.json"
        write_json(path, {**json.loads(path.read_text()), "model_type": "SentenceTransformer"})
    refused(folder, "modules.json", match="must hold a projection")


@pytest.mark.parametrize("kind", ["multi_vector", "pylate", "stanford"])
def test_a_projection_of_zeros(kind: str, copy: Callable[[str], Path]) -> None:
    folder = copy(kind)
    path = folder / ("" if kind == "stanford" else "1_Dense") / "model.safetensors"
    weights = load_file(path)
    save_file({**weights, "linear.weight": weights["linear.weight"] * 0}, path, {"format": "pt"})
    refused(folder, "", match="a projection that is not all zeros")


@pytest.mark.parametrize("activation", ["transformers.activations.ClippedGELUActivation", "", 3, None])
@pytest.mark.parametrize("kind", ["multi_vector", "pylate"])
def test_an_activation_that_is_not_read(kind: str, activation: object, copy: Callable[[str], Path]) -> None:
    """sentence-transformers itself would use Tanh instead."""
    folder = copy(kind)
    path = folder / "1_Dense" / "config.json"
    write_json(path, {**json.loads(path.read_text()), "activation_function": activation})
    refused(folder, str(path), match=f'"activation_function", unless trust_remote_code=True; got {activation!r}')


def test_an_activation_of_torch(copy: Callable[[str], Path]) -> None:
    folder = copy("pylate")
    path = folder / "1_Dense" / "config.json"
    write_json(path, {**json.loads(path.read_text()), "activation_function": "torch.nn.ReLU"})
    assert float(ColBERT(folder, device="cpu").encode_documents(["paris"]).tokens.min()) == 0


@pytest.mark.parametrize("how", ["empty", "foreign", "nested"])
@pytest.mark.parametrize("kind", ["neural_cherche", "plain", "pylate", "dense", "bge_m3", "stanford"])
def test_weights_of_which_none_is_there(kind: str, how: str, copy: Callable[[str], Path]) -> None:
    folder = copy(kind)
    (path,) = (path for path in folder.glob("**/model.safetensors") if path.parent.name != "1_Dense")
    weights = load_file(path)
    if how == "nested":
        path.unlink()
        torch.save({"state_dict": weights, "epoch": 3}, path.parent / "pytorch_model.bin")
    else:
        held = {"linear.weight": weights["linear.weight"]} if kind == "stanford" else {}
        foreign = {f"net.{name}": value.clone() for name, value in weights.items()} if how == "foreign" else {}
        save_file(held | foreign, path, {"format": "pt"})
    if (kind, how) == ("stanford", "nested"):
        refused(folder, "linear.weight")
    else:
        refused(folder, "embeddings", match="net." if how == "foreign" else "it holds none of them")


@pytest.mark.parametrize("kind", ["neural_cherche", "pylate"])
def test_a_vocabulary_without_words(kind: str, copy: Callable[[str], Path]) -> None:
    folder = copy(kind)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"] = {name: i for i, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}
    write_json(folder / "tokenizer.json", content)
    refused(folder, "", match="tokenizer with words")


@pytest.mark.parametrize("kind", ["neural_cherche", "pylate", "stanford", "multi_vector", "dense", "bge_m3"])
def test_a_tokenizer_with_more_ids_than_embeddings(kind: str, copy: Callable[[str], Path]) -> None:
    folder = copy(kind)
    place = folder / "0_Transformer" if kind == "dense" else folder
    words = AutoTokenizer.from_pretrained(place)
    rows = len(words)
    words.add_tokens(["zebra"])
    words.save_pretrained(place)
    expected = f"ids are below {rows}, the number of rows of the transformer's embeddings; 'zebra' has"
    refused(folder, str(place), match=expected)


def test_a_tokenizer_with_fewer_ids_than_embeddings(copy: Callable[[str], Path]) -> None:
    folder = copy("plain")
    rows = len(tokenizer()) + 50
    model = AutoModel.from_pretrained(folder)
    model.resize_token_embeddings(rows)
    model.save_pretrained(folder)
    encoder = ColBERT(folder, None, device="cpu", max_length_document=20)
    assert len(encoder.model.get_input_embeddings().weight) == rows


@pytest.mark.parametrize("model_type", ["nonsense", "bert"])
def test_code_of_a_checkpoint_is_not_run(
    model_type: str, copy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy("plain")
    (folder / "hostile.py").write_text('import os\nos.mkdir("hostile")\n')
    content = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "hostile.Config", "AutoModel": "hostile.Model"}
    write_json(folder / "config.json", {**content, "model_type": model_type, "auto_map": code})

    def asked(*args: object) -> str:
        pytest.fail("the user was asked on the terminal")

    monkeypatch.setattr("builtins.input", asked)
    if model_type == "nonsense":
        refused(folder, "", match="trust_remote_code")
    else:
        ColBERT(folder, None, device="cpu")
    assert not list(Path().iterdir())


@pytest.mark.parametrize("kind", ["multi_vector", "pylate"])
@pytest.mark.parametrize("module", ["hostile.Module", "os.system", "sentence_transformers_of_somebody.Module"])
def test_a_module_of_somebody_else_is_not_imported(kind: str, module: str, copy: Callable[[str], Path]) -> None:
    folder = copy(kind)
    (folder / "hostile.py").write_text('import os\nos.mkdir("hostile")\nclass Module: ...\n')
    modules = json.loads((folder / "modules.json").read_text())
    write_json(folder / "modules.json", [*modules, {**modules[-1], "idx": len(modules), "name": "9", "type": module}])
    refused(folder, "", match="trust_remote_code")


def test_a_tokenizer_that_ends_early(copy: Callable[[str], Path]) -> None:
    folder = copy("neural_cherche")
    content = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(content[: len(content) // 2])
    refused(folder, "tokenizer.json", match="is not JSON")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"weight": WEIGHTS[:0]}, "the shape [0, 32]"),
        ({"weight": WEIGHTS.to(torch.complex64)}, "torch.complex64"),
        ({"weight": WEIGHTS.int()}, "torch.int32"),
        ({"weight": WEIGHTS > 0}, "torch.bool"),
        ({"weight": WEIGHTS.to_sparse()}, "sparse"),
        ({"weight": WEIGHTS.to("meta")}, "meta"),
        ({"weight": WEIGHTS / 0}, "NaN or infinite"),
        ({"weight": WEIGHTS * 0}, "a projection that is not all zeros"),
        ({"weight": WEIGHTS * 0, "bias": WEIGHTS[:, 0]}, "a projection that is not all zeros"),
        ({"weight": WEIGHTS.clone().index_fill_(0, torch.tensor(3), float("nan")).half()}, "NaN or infinite"),
        ({"weight": torch.randn(1, HIDDEN).expand(10**9, HIDDEN)}, "fewer numbers"),
        ({"weight": WEIGHTS, "bias": torch.zeros(SIZE + 1)}, "one number for each row"),
        ({"weight": WEIGHTS, "bias": 3}, "one number for each row"),
        ({"weight": WEIGHTS, "bias": torch.full((SIZE,), float("nan"))}, "NaN or infinite"),
        ({"weight": WEIGHTS, "scale": torch.ones(1), "bias_2": 3}, "['bias_2', 'scale']"),
        ({"linear.weight": WEIGHTS}, "got ['linear.weight']"),
        ({"weight": WEIGHTS.tolist()}, "must hold"),
        (WEIGHTS, "got Tensor"),
    ],
)
@pytest.mark.parametrize(("kind", "name"), [("neural_cherche", "linear.pt"), ("bge_m3", "colbert_linear.pt")])
@pytest.mark.filterwarnings("ignore:.*sparse:UserWarning")
def test_projections(kind: str, name: str, content: object, match: str, copy: Callable[[str], Path]) -> None:
    folder = copy(kind)
    torch.save(content, folder / name)
    refused(folder, name, match=match)


@pytest.mark.parametrize("how", ["cut", "few", "text", "pickle", "hostile", "hostile zip", "tar", "flipped"])
@pytest.mark.parametrize(("kind", "name"), [("neural_cherche", "linear.pt"), ("bge_m3", "colbert_linear.pt")])
def test_projection_files(kind: str, name: str, how: str, copy: Callable[[str], Path]) -> None:
    folder = copy(kind)
    content = (folder / name).read_bytes()
    if how == "cut":
        content = content[: len(content) // 2]
    elif how == "few":
        content = content[:10]
    elif how == "text":
        content = b"<html>404</html>"
    elif how == "pickle":
        content = pickle.dumps({"weight": [1.0]})
    elif how == "hostile":
        content = pickle.dumps({"weight": Hostile()})
    elif how == "flipped":
        content = bytes(byte ^ 255 for byte in content)
    (folder / name).write_bytes(content)
    if how == "hostile zip":
        torch.save({"weight": Hostile()}, folder / name)
    elif how == "tar":
        with tarfile.open(folder / name, "w") as archive:
            archive.add(folder / "config.json", "pickle")
    refused(folder, name, match="a tar archive" if how == "tar" else "")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("how", ["cut", "text", "hostile"])
@pytest.mark.parametrize("kind", ["neural_cherche", "pylate"])
def test_weight_files(kind: str, how: str, name: str, copy: Callable[[str], Path]) -> None:
    folder = copy(kind)
    if name == "pytorch_model.bin":
        torch.save(load_file(folder / "model.safetensors"), folder / name)
        (folder / "model.safetensors").unlink()
    content = (folder / name).read_bytes()
    content = {"cut": content[:-100], "text": b"<html>404</html>", "hostile": pickle.dumps(Hostile())}[how]
    (folder / name).write_bytes(content)
    refused(folder, name)


@pytest.mark.parametrize("kind", ["neural_cherche", "pylate", "stanford"])
def test_weights_that_are_nan(kind: str, copy: Callable[[str], Path]) -> None:
    folder = copy(kind)
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "layer.1" in name and name.endswith("output.dense.weight"))
    weights[name][3, 4] = float("nan")
    save_file(weights, path, {"format": "pt"})
    refused(folder, "encoder.layer.1", match="finite")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
@pytest.mark.parametrize("place", ["", "1_Dense"])
def test_weights_that_are_no_numbers(place: str, dtype: torch.dtype, name: str, copy: Callable[[str], Path]) -> None:
    folder = copy("pylate")
    path = folder / place / "model.safetensors"
    weights = load_file(path)
    changed = next(key for key in weights if key.endswith("weight"))
    weights[changed] = weights[changed].to(dtype)
    path.unlink()
    (save_file if name == path.name else torch.save)(weights, folder / place / name)
    refused(folder, name, match=changed)


@pytest.mark.parametrize("verbosity", ["warning", "error"])
@pytest.mark.parametrize("kind", ["neural_cherche", "plain", "pylate", "stanford"])
def test_weights_that_are_missing(kind: str, verbosity: str, copy: Callable[[str], Path]) -> None:
    from transformers.utils import logging

    folder = copy(kind)
    path = folder / "model.safetensors"
    weights = load_file(path)
    left = {name: value for name, value in weights.items() if "layer.1.attention.output" not in name}
    assert len(left) < len(weights)
    save_file(left, path, {"format": "pt"})
    before = logging.get_verbosity()
    getattr(logging, f"set_verbosity_{verbosity}")()
    try:
        with pytest.warns(UserWarning) as caught:
            ColBERT(folder, device="cpu")
        assert logging.get_verbosity() == getattr(logging, verbosity.upper())
    finally:
        logging.set_verbosity(before)
    (said,) = (str(warning.message) for warning in caught if "lacks weights" in str(warning.message))
    assert "encoder.layer.1.attention.output" in said
    assert str(folder) in said
    assert all(warning.filename == __file__ for warning in caught)


def shard(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for part, held in parts.items():
        save_file({name: weights[name] for name in held}, folder / part, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: part for part, held in parts.items() for name in held}}
    write_json(folder / "model.safetensors.index.json", index)
    path.unlink()


def test_weights_in_several_files(neural_cherche: Path, copy: Callable[[str], Path]) -> None:
    folder = copy("neural_cherche")
    shard(folder)
    expected = ColBERT(neural_cherche, device="cpu").scores(QUERIES, DOCUMENTS, tqdm_bar=False)
    assert torch.equal(ColBERT(folder, device="cpu").scores(QUERIES, DOCUMENTS, tqdm_bar=False), expected)
    part = folder / "model-00002-of-00002.safetensors"
    part.write_bytes(part.read_bytes()[:-5])
    refused(folder, part.name)
    part.unlink()
    refused(folder, part.name, kind=FileNotFoundError, match="index.json")
    write_json(folder / "model.safetensors.index.json", {"weight_map": {"a": "../model.safetensors"}})
    refused(folder, "model.safetensors.index.json", match="inside the checkpoint")
    write_json(folder / "model.safetensors.index.json", {"weight_map": ["a"]})
    refused(folder, "model.safetensors.index.json", match="weight_map")


def test_stanford_weights_in_several_files(copy: Callable[[str], Path]) -> None:
    folder = copy("stanford")
    shard(folder)
    refused(folder, "model.safetensors.index.json", match="one file")
    # The projection must not be taken from a file of older weights.
    torch.save({"linear.weight": torch.zeros(SIZE, HIDDEN)}, folder / "pytorch_model.bin")
    refused(folder, "model.safetensors.index.json", match="one file")


def test_a_stanford_checkpoint_without_projection(copy: Callable[[str], Path]) -> None:
    folder = copy("stanford")
    weights = load_file(folder / "model.safetensors")
    del weights["linear.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    refused(folder, "linear.weight")


def test_a_projection_that_nothing_reads_is_told(copy: Callable[[str], Path]) -> None:
    folder = copy("plain")
    weights = load_file(folder / "model.safetensors")
    weights = {f"bert.{name}": value for name, value in weights.items()}
    save_file({**weights, "compressor.weight": WEIGHTS}, folder / "model.safetensors", {"format": "pt"})
    with pytest.warns(UserWarning, match=r"has no ColBERT projection.*compressor\.weight"):
        ColBERT(folder, device="cpu")


def test_a_tokenizer_without_files_of_its_own(copy: Callable[[str], Path]) -> None:
    """ByT5 makes a token of each byte and CANINE of each character, so they need no vocabulary."""
    folder = copy("plain")
    (folder / "tokenizer.json").unlink()
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "CanineTokenizer"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder = ColBERT(folder, None, device="cpu", max_length_document=20)
    assert type(encoder.tokenizer).__name__ == "CanineTokenizer"


def test_the_tokenizer_of_the_tests_is_whole() -> None:
    assert len(tokenizer()) > 50
