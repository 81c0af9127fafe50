"""A text without any token scores below every other text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import METADATA

from colbert_fast.models import ColBERT


@pytest.mark.parametrize("bar", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_warning_names_the_line_of_the_user(
    make_neural_cherche: Callable[..., Path], training: bool, bar: bool
) -> None:
    nothing_added: dict[str, Any] = {"padding": True, "add_special_tokens": False, "document_prefix": ""}
    encoder = ColBERT(make_neural_cherche(metadata=METADATA | nothing_added), device="cpu").train(training)
    call = lambda: encoder.scores(["berlin"], ["", "paris"], tqdm_bar=bar)  # noqa: E731
    with pytest.warns(UserWarning, match="a document without a token") as warned:
        scores = call()
    assert scores[0] == -1e9 and scores[1] > -1e9
    assert [(w.filename, w.lineno) for w in warned] == [(__file__, call.__code__.co_firstlineno)]
