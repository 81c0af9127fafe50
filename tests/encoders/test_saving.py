"""What save_pretrained writes, what it replaces, and what happens when a save does not finish."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kills
import pytest
import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense
from tiny import DOCUMENTS, HIDDEN, METADATA, QUERIES, SIZE, close, write_json

from colbert_fast.models import ColBERT, folder_contents, staging


def scores_of(encoder: ColBERT) -> torch.Tensor:
    return encoder.scores(QUERIES, DOCUMENTS, tqdm_bar=False)


def replaced_projection(encoder: ColBERT, dense: Dense) -> ColBERT:
    name = next(name for name, module in encoder.encoder.named_children() if isinstance(module, Dense))
    encoder.encoder._modules[name] = dense
    return encoder


class TestSaving:
    def test_round_trip(self, neural_cherche: Path, tmp_path: Path) -> None:
        encoder = ColBERT(neural_cherche, device="cpu")
        assert encoder.save_pretrained(tmp_path / "new" / "folder") is encoder
        again = ColBERT(tmp_path / "new" / "folder", device="cpu")
        assert torch.equal(scores_of(again), scores_of(encoder))
        assert again.state_dict().keys() == encoder.state_dict().keys()

    def test_unknown_metadata_survive_and_settings_are_the_current_ones(
        self, make_neural_cherche: Callable[..., Path], tmp_path: Path
    ) -> None:
        folder = make_neural_cherche(metadata={**METADATA, "trained_on": ["msmarco"]})
        encoder = ColBERT(folder, device="cpu")
        encoder.max_length_query = 10
        encoder.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "metadata.json").read_text())
        assert saved == {**METADATA, "trained_on": ["msmarco"], "max_length_query": 10}
        assert torch.load(tmp_path / "linear.pt", weights_only=True).keys() == {"weight"}

    def test_without_projection(self, plain: Path, tmp_path: Path) -> None:
        encoder = ColBERT(plain, embedding_size=None, device="cpu", max_length_document=20)
        encoder.save_pretrained(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = ColBERT(tmp_path, device="cpu")
        assert again.linear is None
        assert torch.equal(scores_of(again), scores_of(encoder))

    @pytest.mark.parametrize("size", [SIZE, None])
    def test_for_sentence_transformers(
        self, size: int | None, neural_cherche: Path, plain: Path, tmp_path: Path
    ) -> None:
        lengths = {"max_length_query": 12, "max_length_document": 20}
        folder = neural_cherche if size else plain
        encoder = ColBERT(folder, embedding_size=size, device="cpu", **lengths)
        encoder.document_prefix = "doc "
        encoder.save_pretrained(tmp_path, format="sentence-transformers")
        theirs = MultiVectorEncoder(str(tmp_path), device="cpu")
        assert theirs.prompts == {"query": "[Q] ", "document": "doc "}
        encoded = (theirs.encode_query(QUERIES), theirs.encode_document(DOCUMENTS))
        for rows, texts, mode in zip(encoded, (QUERIES, DOCUMENTS), (True, False), strict=True):
            padded = encoder.encode(texts, query_mode=mode)["embeddings"]
            for mine, expected in zip(padded, rows, strict=True):
                assert mine.any(1).sum() == len(expected)
                close(mine[: len(expected)], expected)

    def test_the_loaded_format_of_sentence_transformers(self, neural_cherche: Path, tmp_path: Path) -> None:
        encoder = ColBERT(neural_cherche, device="cpu")
        encoder.save_pretrained(tmp_path, format="sentence-transformers")
        again = ColBERT(tmp_path, device="cpu")
        assert (again.max_length_query, again.max_length_document) == (12, 20)
        close(again.encode(DOCUMENTS)["embeddings"], encoder.encode(DOCUMENTS)["embeddings"])

    def test_unknown_format(self, neural_cherche: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"format must be one of \['neural-cherche', 'sentence-transformers'\]"):
            ColBERT(neural_cherche, device="cpu").save_pretrained(tmp_path, format="pylate")

    def test_targets_that_would_be_misread(self, neural_cherche: Path, tmp_path: Path) -> None:
        encoder = ColBERT(neural_cherche, device="cpu")
        (tmp_path / "file").touch()
        with pytest.raises(FileExistsError, match="path must be a folder"):
            encoder.save_pretrained(tmp_path / "file")
        encoder.save_pretrained(tmp_path)
        with pytest.raises(FileExistsError, match=r"linear\.pt"):
            encoder.save_pretrained(tmp_path, format="sentence-transformers")

    def test_nothing_is_written_to_the_working_directory(
        self, neural_cherche: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        encoder = ColBERT(neural_cherche, device="cpu")
        scores_of(encoder)
        encoder.save_pretrained(tmp_path / "there")
        assert not list((tmp_path / "here").iterdir())

    def test_what_can_be_read_by_others(self, neural_cherche: Path, tmp_path: Path) -> None:
        ColBERT(neural_cherche, device="cpu").save_pretrained(tmp_path / "new")
        (tmp_path / "file").touch()
        expected = stat.S_IMODE((tmp_path / "file").stat().st_mode)
        for path in (tmp_path / "new").iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == expected, path

    @pytest.mark.parametrize("format", ["neural-cherche", "sentence-transformers"])
    def test_the_encoder_stays_as_it_is(self, format: str, neural_cherche: Path, tmp_path: Path) -> None:
        encoder = ColBERT(neural_cherche, device="cpu")
        encoder.document_prefix, encoder.max_length_query = "doc ", 9
        encoder.scores(QUERIES, DOCUMENTS, tqdm_bar=False)
        transformer: Any = encoder.encoder[0]
        transformer.model.config.architectures = ["Mine"]

        def state() -> list[Any]:
            backend = encoder.tokenizer.backend_tokenizer
            lengths = transformer.query_length, transformer.document_length
            return copy.deepcopy(
                [
                    transformer.model.config.to_dict(),
                    lengths,
                    encoder.encoder.prompts,
                    backend.truncation,
                    backend.padding,
                ]
            )

        before = state()
        modules = [id(module) for module in encoder.modules()]
        encoder.save_pretrained(tmp_path, format=format)
        assert state() == before
        assert [id(module) for module in encoder.modules()] == modules

    def test_what_was_encoded_last_does_not_matter(self, neural_cherche: Path, tmp_path: Path) -> None:
        encoder = ColBERT(neural_cherche, device="cpu")
        encoder.save_pretrained(tmp_path / "before")
        encoder.encode(QUERIES, max_length=5)
        encoder.save_pretrained(tmp_path / "after")
        assert kills.contents(tmp_path / "before") == kills.contents(tmp_path / "after")

    def test_what_rust_says_of_a_disk(
        self, neural_cherche: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encoder = ColBERT(neural_cherche, device="cpu")

        def full(*args: object, **kwargs: object) -> None:
            msg = "Error while serializing: I/O error: No space left on device (os error 28)"
            raise RuntimeError(msg)

        monkeypatch.setattr(type(encoder.model), "save_pretrained", full)
        with pytest.raises(OSError, match="No space left on device") as caught:
            encoder.save_pretrained(tmp_path / "new")
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "new"))

    def test_a_bias(self, neural_cherche: Path, tmp_path: Path) -> None:
        dense = Dense(HIDDEN, SIZE, bias=True, activation_function=None, module_input_name="token_embeddings")
        encoder = replaced_projection(ColBERT(neural_cherche, device="cpu"), dense)
        encoder.save_pretrained(tmp_path)
        saved = torch.load(tmp_path / "linear.pt", weights_only=True)
        assert saved.keys() == {"weight", "bias"}
        assert torch.equal(saved["bias"], dense.linear.bias)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
    def test_weights_of_every_dtype(self, dtype: torch.dtype, neural_cherche: Path, tmp_path: Path) -> None:
        encoder = ColBERT(neural_cherche, device="cpu").to(dtype)
        # The weight is a part of a larger tensor, which must not be saved with it.
        assert encoder.linear is not None
        encoder.linear.weight = torch.nn.Parameter(torch.cat([encoder.linear.weight.data] * 99)[:SIZE])
        encoder.save_pretrained(tmp_path)
        weight = torch.load(tmp_path / "linear.pt", weights_only=True)["weight"]
        assert weight.dtype == dtype
        assert torch.equal(weight, encoder.linear.weight)
        assert (tmp_path / "linear.pt").stat().st_size < 3 * weight.nbytes + 2000

    @pytest.mark.parametrize(
        ("name", "value", "error"),
        [
            ("max_length_query", 0, ValueError),
            ("max_length_document", 2.5, TypeError),
            ("query_prefix", None, TypeError),
            ("padding", "left", ValueError),
        ],
    )
    @pytest.mark.parametrize("format", ["neural-cherche", "sentence-transformers"])
    def test_settings_that_no_load_accepts(
        self, name: str, value: Any, error: type[Exception], format: str, neural_cherche: Path, tmp_path: Path
    ) -> None:
        encoder = ColBERT(neural_cherche, device="cpu")
        setattr(encoder, name, value)
        with pytest.raises(error, match=f"{name} must be"):
            encoder.save_pretrained(tmp_path / "new", format=format)
        assert list(tmp_path.iterdir()) == []

    def test_a_projection_that_does_not_fit(self, neural_cherche: Path, tmp_path: Path) -> None:
        dense = Dense(HIDDEN + 1, SIZE, bias=False, module_input_name="token_embeddings")
        encoder = replaced_projection(ColBERT(neural_cherche, device="cpu"), dense)
        expected = r"linear must fit the transformer, with weight \[\*, 32\]; got weight \[16, 33\]"
        with pytest.raises(ValueError, match=expected):
            encoder.save_pretrained(tmp_path / "new")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("name", ["truncation", "add_special_tokens"])
    def test_what_sentence_transformers_cannot_express(self, name: str, neural_cherche: Path, tmp_path: Path) -> None:
        encoder = ColBERT(neural_cherche, device="cpu")
        setattr(encoder, name, False)
        with pytest.raises(ValueError, match=f'cannot express {name}=False; pass format="neural-cherche"'):
            encoder.save_pretrained(tmp_path / "new", format="sentence-transformers")
        assert list(tmp_path.iterdir()) == []

    def test_beside_encoding(self, neural_cherche: Path, tmp_path: Path) -> None:
        encoder = ColBERT(neural_cherche, device="cpu")
        expected = scores_of(encoder)
        encoder.save_pretrained(tmp_path / "alone")
        done = threading.Event()
        found = []

        def encode() -> None:
            while not done.is_set():
                found.append(scores_of(encoder))

        thread = threading.Thread(target=encode)
        thread.start()
        try:
            for n in range(6):
                encoder.save_pretrained(tmp_path / "beside", format="sentence-transformers")
                encoder.save_pretrained(tmp_path / str(n % 2))
        finally:
            done.set()
            thread.join()
        assert len(found) > 1
        for scores in found:
            close(scores, expected)
        assert kills.contents(tmp_path / "alone") == kills.contents(tmp_path / "1")


# Files that belong to a checkpoint of some kind. A save over such a checkpoint removes them.
STALE = (
    *("model.safetensors.index.json", "model-00001-of-00002.safetensors", "model.fp16.safetensors"),
    *("pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "tf_model.h5"),
    *("flax_model.msgpack", "onnx/model.onnx", "onnx/model_qint8.onnx", "openvino/openvino_model.xml"),
    *("openvino/openvino_model.bin", "adapter_config.json", "adapter_model.safetensors"),
    *("colbert_linear.pt", "artifact.metadata", "modules.json", "config_sentence_transformers.json"),
    *("sentence_bert_config.json", "sentence_roberta_config.json", "router_config.json", "vocab.txt", "vocab.json"),
    *("merges.txt", "added_tokens.json", "special_tokens_map.json", "sentencepiece.bpe.model", "spiece.model"),
    *("preprocessor_config.json", "chat_template.jinja", "additional_chat_templates/tool.jinja"),
    *("0_Transformer/pytorch_model.bin", "0_Transformer/config.json", "1_Dense/model.safetensors"),
)
MINE = (
    *("README.md", "notes.txt", "train.py", "optimizer.pt", "scheduler.pt", "trainer_state.json", "training_args.bin"),
    *("checkpoint-500/config.json", "checkpoint-500/model.safetensors", "checkpoint-500/modules.json", ".git/config"),
    *("0_Transformer/notes.txt", "eval/results.csv", "onnx/notes.txt", "best.safetensors", "my_config.json"),
)


class TestOverOthers:
    def test_stale_files_go_and_the_users_stay(self, neural_cherche: Path, tmp_path: Path) -> None:
        folder = tmp_path / "folder"
        for name in (*STALE, *MINE):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
        write_json(folder / "modules.json", [{"path": "0_Transformer"}, {"path": "1_Dense"}])
        (folder / "2_Normalize").mkdir()
        encoder = ColBERT(neural_cherche, device="cpu")
        encoder.save_pretrained(folder)
        found = kills.contents(folder)
        encoder.save_pretrained(tmp_path / "alone")
        assert found == {**kills.contents(tmp_path / "alone"), **{name: name.encode() for name in MINE}}
        assert not (folder / "1_Dense").exists()
        assert torch.equal(scores_of(ColBERT(folder, device="cpu")), scores_of(encoder))

    @pytest.mark.parametrize("format", ["neural-cherche", "sentence-transformers"])
    @pytest.mark.parametrize("kind", ["plain", "neural_cherche", "pylate", "stanford", "layout_of_2019"])
    def test_what_was_written_is_what_loads(
        self,
        format: str,
        kind: str,
        make_neural_cherche: Callable[..., Path],
        request: pytest.FixtureRequest,
        tmp_path: Path,
    ) -> None:
        folder = tmp_path / "folder"
        if kind == "layout_of_2019":
            shutil.copytree(request.getfixturevalue("plain"), folder / "0_Transformer")
            path = {"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}
            write_json(folder / "modules.json", [path])
        else:
            shutil.copytree(request.getfixturevalue(kind), folder)
        encoder = ColBERT(make_neural_cherche(size=SIZE + 1), device="cpu")
        if kind == "neural_cherche" and format == "sentence-transformers":
            with pytest.raises(FileExistsError, match=r"linear\.pt would win"):
                encoder.save_pretrained(folder, format=format)
            return
        encoder.save_pretrained(folder, format=format)
        encoder.save_pretrained(tmp_path / "alone", format=format)
        assert kills.contents(folder) == kills.contents(tmp_path / "alone")
        again = ColBERT(folder, device="cpu")
        close(again.encode(DOCUMENTS)["embeddings"], encoder.encode(DOCUMENTS)["embeddings"])

    def test_a_load_puts_back_what_a_killed_save_has_set_aside(self, neural_cherche: Path, tmp_path: Path) -> None:
        folder = tmp_path / "folder"
        shutil.copytree(neural_cherche, folder)
        expected = ColBERT(folder, device="cpu").encode(DOCUMENTS)["embeddings"]
        folder.rename(staging.hidden_name(str(tmp_path), str(folder), "replaced"))
        assert torch.equal(ColBERT(folder, device="cpu").encode(DOCUMENTS)["embeddings"], expected)

    def test_metadata_of_somebody_else(self, neural_cherche: Path, tmp_path: Path) -> None:
        encoder = ColBERT(neural_cherche, device="cpu")
        for mine in ({"author": "me"}, METADATA):
            write_json(tmp_path / "metadata.json", mine)
            encoder.save_pretrained(tmp_path, format="sentence-transformers")
            assert (tmp_path / "metadata.json").exists() == (mine != METADATA)

    @pytest.mark.parametrize("path", ["../outside", "{}/outside", "link", "0_Transformer/../../outside", 3, None])
    def test_modules_outside_the_folder_are_left_alone(self, path: Any, neural_cherche: Path, tmp_path: Path) -> None:
        folder, outside = tmp_path / "folder", tmp_path / "outside"
        folder.mkdir()
        outside.mkdir()
        (outside / "model.safetensors").write_text("somebody's")
        (folder / "link").symlink_to(outside)
        path = path.format(tmp_path) if isinstance(path, str) else path
        write_json(folder / "modules.json", [{"path": path}, "nonsense", ["nonsense"]])
        ColBERT(neural_cherche, device="cpu").save_pretrained(folder)
        assert (outside / "model.safetensors").read_text() == "somebody's"
        assert (folder / "linear.pt").exists()

    @pytest.mark.parametrize("content", ["{", "{}", "3", "null", "[" * 100000, "\udcff"])
    def test_hostile_modules(self, content: str, neural_cherche: Path, tmp_path: Path) -> None:
        (tmp_path / "modules.json").write_bytes(content.encode(errors="surrogateescape"))
        ColBERT(neural_cherche, device="cpu").save_pretrained(tmp_path)
        assert not (tmp_path / "modules.json").exists()
        ColBERT(tmp_path, device="cpu")

    def test_the_files_behind_links_are_not_written(self, neural_cherche: Path, tmp_path: Path) -> None:
        """A snapshot in the hub's cache consists of such links."""
        (tmp_path / "snapshot").mkdir()
        for path in neural_cherche.iterdir():
            (tmp_path / "snapshot" / path.name).symlink_to(path)
        before = kills.contents(neural_cherche)
        encoder = ColBERT(tmp_path / "snapshot", device="cpu")
        assert encoder.linear is not None
        encoder.linear.weight.data.zero_()
        encoder.save_pretrained(tmp_path / "snapshot")
        assert kills.contents(neural_cherche) == before
        assert not torch.load(tmp_path / "snapshot" / "linear.pt", weights_only=True)["weight"].any()


def test_a_load_meets_one_checkpoint_while_saves_replace_it(
    make_neural_cherche: Callable[..., Path], tmp_path: Path
) -> None:
    encoders = [ColBERT(make_neural_cherche(size), device="cpu") for size in (SIZE, SIZE + 8)]
    expected = [encoder.encode(DOCUMENTS)["embeddings"] for encoder in encoders]
    encoders[0].save_pretrained(tmp_path / "folder")
    done = threading.Event()

    def save() -> None:
        while not done.is_set():
            for encoder in encoders:
                encoder.save_pretrained(tmp_path / "folder")

    thread = threading.Thread(target=save)
    thread.start()
    found = []
    try:
        for _ in range(15):
            loaded = ColBERT(tmp_path / "folder", device="cpu").encode(DOCUMENTS)["embeddings"]
            found.append([loaded.shape == one.shape and torch.equal(loaded, one) for one in expected])
    finally:
        done.set()
        thread.join()
    assert all(sum(matches) == 1 for matches in found)


def test_an_interrupt_while_the_old_folder_goes_locks_nobody_out(
    neural_cherche: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = ColBERT(neural_cherche, device="cpu")
    encoder.save_pretrained(tmp_path / "folder")

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(folder_contents, "_in_writable_folder", interrupted)
        with pytest.raises(KeyboardInterrupt):
            encoder.save_pretrained(tmp_path / "folder")
    # In a daemon thread: if it waits for ever, it still ends with the process.
    done = threading.Event()

    def save_and_load() -> None:
        encoder.save_pretrained(tmp_path / "folder")
        ColBERT(tmp_path / "folder", device="cpu")
        done.set()

    threading.Thread(target=save_and_load, daemon=True).start()
    assert done.wait(60)


def test_saves_that_do_not_finish(make_neural_cherche: Callable[..., Path], tmp_path: Path) -> None:
    """The process is killed at random moments, or the disk is full."""
    checkpoints = [str(make_neural_cherche(size)) for size in (SIZE, SIZE + 8)]
    modes = ["full", "12", "8-without-exchange"]
    done = subprocess.run(
        [sys.executable, kills.__file__, *checkpoints, str(tmp_path), *modes],
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(modes), done.stdout
