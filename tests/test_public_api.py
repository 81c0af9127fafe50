"""What users can rely on, and what importing costs them."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
from lacking import LACKING

import colbert_fast as cf


def test_names() -> None:
    assert cf.__all__ == [
        "PackedTokens",
        "__version__",
        "backends",
        "get_num_threads",
        "maxsim",
        "maxsim_pairs",
        "maxsim_pairwise",
        "set_num_threads",
        "topk",
    ]
    for name in cf.__all__:
        assert name == "__version__" or getattr(cf, name).__doc__, name


@pytest.mark.needs("models")
def test_signatures_extend_those_of_sentence_transformers() -> None:
    import sentence_transformers.util

    for ours, theirs in (
        (cf.maxsim, sentence_transformers.util.maxsim),
        (cf.maxsim_pairwise, sentence_transformers.util.maxsim_pairwise),
    ):
        expected = [(p.name, p.kind, p.default) for p in inspect.signature(theirs).parameters.values()]
        actual = [(p.name, p.kind, p.default) for p in inspect.signature(ours).parameters.values()]
        assert actual[:-1] == expected
        assert actual[-1] == ("backend", inspect.Parameter.KEYWORD_ONLY, None)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light() -> None:
    heavy = "{'triton', 'transformers', 'sentence_transformers', 'sklearn', 'scipy'}"
    assert run(f"import sys, colbert_fast; print(sorted({heavy} & set(sys.modules)))") == "[]"
    if "models" not in LACKING:
        assert run(f"import sys, colbert_fast.models; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_the_tiers_named_without_the_extension_are_those_with_it() -> None:
    assert tuple(name for name, _ in cf._backends.cpu._C.tiers()) == cf._backends.cpu._TIERS
