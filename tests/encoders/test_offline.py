"""Load repositories from the cache of the Hugging Face hub when the hub cannot be asked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from tiny import DOCUMENTS, QUERIES, close

from colbert_fast.models import ColBERT, checkpoint, files

COMMIT = "0123456789abcdef0123456789abcdef01234567"
KINDS = ["neural_cherche", "multi_vector", "pylate", "stanford", "plain", "dense", "bge_m3"]

# This program loads the checkpoints that its argument names, without the network, and prints scores and folders.
PROGRAM = """
import json, socket, sys
def refuse(*args):
    raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse
import torch
from colbert_fast.models import ColBERT
told = json.loads(sys.argv[1])
torch.manual_seed(0)
answers = {}
for kind, options in told["kinds"].items():
    encoder = ColBERT(f"someone/{kind}", device="cpu", **options)
    scores = encoder.scores(told["queries"], told["documents"], tqdm_bar=False)
    answers[kind] = {"scores": scores.tolist(), "folder": encoder.model_folder}
print(json.dumps(answers))
"""


def cached(folder: Path, cache: Path, repository: str = "someone/colbert", revision: str = "main") -> Path:
    """Make a cache as snapshot_download does: with links to blobs, and no marks for files the repository lacks."""
    place = cache / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / revision).write_text(COMMIT)
    (place / "blobs").mkdir()
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        blob = place / "blobs" / str(number)
        shutil.copy(path, blob)
        link = place / "snapshots" / COMMIT / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return place


def options_of(kind: str) -> dict[str, object]:
    return {"embedding_size": None, "max_length_document": 20} if kind in ("plain", "dense") else {}


def scores_of(source: str | Path, **options: object) -> torch.Tensor:
    return ColBERT(source, device="cpu", **options).scores(QUERIES, DOCUMENTS, tqdm_bar=False)


def test_snapshots_load_as_their_folders(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    # The queries are short: for longer ones sentence-transformers warns that query expansion cuts them.
    queries, documents = ["berlin", "paris"], DOCUMENTS[:2]
    expected = {}
    for kind in KINDS:
        folder: Path = request.getfixturevalue(kind)
        cached(folder, tmp_path / "hub", f"someone/{kind}")
        expected[kind] = ColBERT(folder, device="cpu", **options_of(kind)).scores(queries, documents, tqdm_bar=False)
    told = {"kinds": {kind: options_of(kind) for kind in KINDS}, "queries": queries, "documents": documents}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    environment.pop("HF_HUB_CACHE", None)
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, json.dumps(told)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    answers = json.loads(result.stdout)
    assert list(answers) == KINDS
    for kind, answer in answers.items():
        close(torch.tensor(answer["scores"]), expected[kind])
        assert Path(answer["folder"]).parts[-3:] == (f"models--someone--{kind}", "snapshots", COMMIT)
    assert result.stderr == ""


@pytest.mark.parametrize("kind", ["neural_cherche", "multi_vector", "plain", "dense", "bge_m3"])
def test_the_cache_of_sentence_transformers(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder: Path = request.getfixturevalue(kind)
    cached(folder, tmp_path / "theirs")
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path / "theirs"))
    expected = scores_of(folder, **options_of(kind))
    close(scores_of("someone/colbert", **options_of(kind), local_files_only=True), expected)
    # An argument wins over the environment variable.
    with pytest.raises(FileNotFoundError, match="hub could not be asked"):
        ColBERT("someone/colbert", device="cpu", local_files_only=True, cache_folder=str(tmp_path / "ours"))


@pytest.mark.parametrize("kind", ["neural_cherche", "dense"])
def test_files_come_into_the_cache_of_sentence_transformers(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the hub answers, the files that decide the kind and the files of the transformer use the same cache folder."""
    folder: Path = request.getfixturevalue(kind)
    asked: list[object] = []

    def answer(repository: str, name: str, **kwargs: object) -> str:
        asked.append(kwargs["cache_dir"])
        if not (folder / name).exists():
            raise EntryNotFoundError(name)
        return str(folder / name)

    def transformer(*args: object, **kwargs: dict[str, object]) -> None:
        asked.extend(kwargs[name]["cache_dir"] for name in ("model_kwargs", "processor_kwargs", "config_kwargs"))
        raise InterruptedError

    monkeypatch.setattr(files, "hf_hub_download", answer)
    monkeypatch.setattr(checkpoint, "_has_optional_pooler", lambda *args: True)
    monkeypatch.setattr(checkpoint, "Transformer", transformer)
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="InterruptedError"):
        ColBERT("someone/colbert", device="cpu", **options_of(kind))
    assert set(asked) == {str(tmp_path)}


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
@pytest.mark.parametrize("kind", ["neural_cherche", "pylate", "plain"])
def test_only_local_files(kind: str, revision: str | None, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder: Path = request.getfixturevalue(kind)
    cached(folder, tmp_path)
    access = {"local_files_only": True, "revision": revision, "cache_folder": str(tmp_path)}
    expected = scores_of(folder, **options_of(kind))
    close(scores_of("someone/colbert", **options_of(kind), **access), expected)


def test_another_branch(neural_cherche: Path, pylate: Path, tmp_path: Path) -> None:
    cached(neural_cherche, tmp_path, revision="dev")
    access = {"local_files_only": True, "cache_folder": str(tmp_path)}
    close(scores_of("someone/colbert", revision="dev", **access), scores_of(neural_cherche))
    with pytest.raises(FileNotFoundError, match="hub could not be asked"):
        ColBERT("someone/colbert", device="cpu", **access)


@pytest.mark.parametrize("kind", ["neural_cherche", "stanford"])
def test_a_hub_that_cannot_be_reached(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder: Path = request.getfixturevalue(kind)
    cached(folder, tmp_path)

    def unreachable(*args: object, **kwargs: object) -> str:
        msg = "no connection"
        raise LocalEntryNotFoundError(msg)

    monkeypatch.setattr(files, "hf_hub_download", unreachable)
    close(scores_of("someone/colbert", cache_folder=str(tmp_path)), scores_of(folder))


@pytest.mark.parametrize("kind", ["neural_cherche", "pylate", "dense"])
def test_layers_of_a_repository(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(request.getfixturevalue(kind), folder)
    path = (folder / "0_Transformer" if kind == "dense" else folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 10**6}))

    def answer(repository: str, name: str, **kwargs: object) -> str:
        if not (folder / name).exists():
            raise EntryNotFoundError(name)
        return str(folder / name)

    monkeypatch.setattr(files, "hf_hub_download", answer)
    with pytest.raises(ValueError, match=r"config\.json of 'someone/colbert' must have from 1 to 10000 layers"):
        ColBERT("someone/colbert", device="cpu")


def test_nothing_in_the_cache(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"hub could not be asked for its linear\.pt"):
        ColBERT("someone/colbert", device="cpu", local_files_only=True, cache_folder=str(tmp_path))


def test_an_empty_snapshot(neural_cherche: Path, tmp_path: Path) -> None:
    place = cached(neural_cherche, tmp_path)
    shutil.rmtree(place / "snapshots" / COMMIT)
    (place / "snapshots" / COMMIT).mkdir()
    with pytest.raises(FileNotFoundError, match=r"weights of a model"):
        ColBERT("someone/colbert", device="cpu", local_files_only=True, cache_folder=str(tmp_path))


def test_a_snapshot_that_links_to_blobs_that_are_gone(neural_cherche: Path, tmp_path: Path) -> None:
    place = cached(neural_cherche, tmp_path)
    linear = place / "snapshots" / COMMIT / "linear.pt"
    linear.unlink()
    linear.symlink_to("../../blobs/abc")
    with pytest.raises(ValueError, match=r"linear\.pt must be a file; it is a link to"):
        ColBERT("someone/colbert", device="cpu", local_files_only=True, cache_folder=str(tmp_path))


def test_a_folder_wins_over_a_repository_of_its_name(
    neural_cherche: Path, pylate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(pylate, tmp_path / "cache")
    shutil.copytree(neural_cherche, tmp_path / "someone" / "colbert")
    monkeypatch.chdir(tmp_path)
    close(scores_of("someone/colbert", cache_folder=str(tmp_path / "cache")), scores_of(neural_cherche))


@pytest.mark.parametrize("spell", [Path, str, lambda path: f"{path}/", lambda path: f"~/{path.name}"])
def test_ways_to_name_a_folder(spell: object, neural_cherche: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(neural_cherche.parent))
    assert callable(spell)
    encoder = ColBERT(spell(neural_cherche), device="cpu")
    assert Path(encoder.model_folder) == neural_cherche


@pytest.mark.parametrize("source", [None, 3, b"folder", ["folder"]])
def test_what_names_no_folder(source: object) -> None:
    with pytest.raises(TypeError, match="model_name_or_path must be a str or a path"):
        ColBERT(source, device="cpu")
