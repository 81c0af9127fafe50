"""Texts that are embedded in several processes, and texts that come more than once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import DOCUMENTS, close

from colbert_fast import PackedTokens
from colbert_fast.models import ColBERT

TEXTS = [*DOCUMENTS, *(f"{'the capital of ' * (n % 5)}france is paris {n}" for n in range(30)), DOCUMENTS[2], ""]


def assert_same(found: PackedTokens, expected: PackedTokens) -> None:
    assert found.lengths.tolist() == expected.lengths.tolist()
    for one, other in zip(found, expected, strict=True):
        close(one, other)


@pytest.mark.filterwarnings("default:.*were cut to.*:UserWarning")
def test_two_processes(neural_cherche: Path) -> None:
    encoder = ColBERT(neural_cherche, device="cpu").train()
    with pytest.warns(UserWarning, match=f"of {len(TEXTS)} documents were cut to 20 tokens") as told:
        found = encoder.encode_documents(TEXTS, devices=["cpu", torch.device("cpu")], batch_size=7)
    assert len([warning for warning in told if "were cut" in str(warning.message)]) == 1
    assert_same(found, encoder.encode_documents(TEXTS))
    assert encoder.training and encoder.encoder.training


def test_no_texts_and_wrong_devices(neural_cherche: Path) -> None:
    encoder = ColBERT(neural_cherche, device="cpu", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"devices must be a list of one device or more; got 'cpu'"):
        encoder.encode_documents(TEXTS, devices="cpu")
    with pytest.raises(ValueError, match=r"devices must be a list of one device or more; got \[\]"):
        encoder.encode_documents(TEXTS, devices=[])
    with pytest.raises(ValueError, match=r"give device or devices, not both; got 'cpu' and \['cpu'\]"):
        encoder.encode_documents(TEXTS, device="cpu", devices=["cpu"])
    with pytest.raises(RuntimeError, match="device must be one that torch can use here; got 'cpv'"):
        encoder.encode_documents(TEXTS, devices=["cpv"])
    none = encoder.encode_documents([], devices=["cpu"])
    assert len(none) == 0 and none.dtype == torch.bfloat16 and none.dim == encoder.embedding_size


def test_equal_texts_pass_once(neural_cherche: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = ColBERT(neural_cherche, device="cpu")
    expected = [encoder.encode_documents([text])[0] for text in TEXTS]
    passed = []
    forward = type(encoder.encoder).forward

    def counted(self: Any, features: dict[str, Any], **kwargs: Any) -> Any:
        passed.append(len(features["input_ids"]))
        return forward(self, features, **kwargs)

    monkeypatch.setattr(type(encoder.encoder), "forward", counted)
    found = encoder.encode_documents(TEXTS * 3)
    assert sum(passed) == len(set(TEXTS))
    assert len(found) == 3 * len(TEXTS)
    for one, other in zip(found, expected * 3, strict=True):
        close(one, other)
