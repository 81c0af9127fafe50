"""What users can rely on, and what importing costs them."""

from __future__ import annotations

import inspect
import subprocess
import sys

import sentence_transformers.util

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


def test_signatures_extend_those_of_sentence_transformers() -> None:
    for ours, theirs in (
        (cf.maxsim, sentence_transformers.util.maxsim),
        (cf.maxsim_pairwise, sentence_transformers.util.maxsim_pairwise),
    ):
        expected = [(p.name, p.kind, p.default) for p in inspect.signature(theirs).parameters.values()]
        actual = [(p.name, p.kind, p.default) for p in inspect.signature(ours).parameters.values()]
        assert actual[:-1] == expected
        assert actual[-1] == ("backend", inspect.Parameter.KEYWORD_ONLY, None)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light() -> None:
    heavy = "{'triton', 'transformers', 'sentence_transformers', 'sklearn', 'scipy'}"
    assert run(f"import sys, colbert_fast; print(sorted({heavy} & set(sys.modules)))") == "[]"
    assert run(f"import sys, colbert_fast.models; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_import_without_triton_and_extension() -> None:
    code = """
import sys
sys.modules["triton"] = None
sys.modules["colbert_fast._C"] = None
import torch, colbert_fast as cf
print([b.name for b in cf.backends() if b.unsupported is None])
reasons = [b.unsupported for b in cf.backends() if b.name.startswith("cpu:")]
assert len(reasons) > 1 and all("extension is not there" in r for r in reasons), reasons
assert cf.maxsim(torch.ones(1, 2, 3), torch.ones(1, 2, 3)).item() == 6
try:
    cf.maxsim(torch.ones(1, 2, 3), torch.ones(1, 2, 3), backend="cpu")
except NotImplementedError as error:
    assert "extension is not there" in str(error)
else:
    raise AssertionError
"""
    assert run(code) == "['torch']"


def test_the_tiers_named_without_the_extension_are_those_with_it() -> None:
    assert tuple(name for name, _ in cf._backends.cpu._C.tiers()) == cf._backends.cpu._TIERS
