"""Fixtures of the tests of commands that load an encoder."""

from __future__ import annotations

from pathlib import Path

import pytest
from encoders.tiny import save_model
from small_collection import Command, save_collection

from colbert_fast.models import ColBERT


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def encoder(model: Path) -> ColBERT:
    return ColBERT(model, embedding_size=None, device="cpu")


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_collection(tmp_path_factory.mktemp("collection"))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)
