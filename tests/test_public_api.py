"""What users can rely on, and what an import costs."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from lacking import LACKING

import colbert_fast as cf


def test_names() -> None:
    assert cf.__all__ == [
        "Collection",
        "Explanation",
        "PackedTokens",
        "__version__",
        "backends",
        "explain",
        "get_num_threads",
        "maxsim",
        "maxsim_pairs",
        "maxsim_pairwise",
        "maxsim_with_argmax",
        "rerank",
        "set_num_threads",
        "topk",
    ]
    for name in cf.__all__:
        assert name == "__version__" or getattr(cf, name).__doc__, name


ONLY_OURS = {"pad": "skip", "backend": None}


@pytest.mark.needs("models")
def test_signatures_extend_those_of_sentence_transformers() -> None:
    import sentence_transformers.util

    for ours, theirs in (
        (cf.maxsim, sentence_transformers.util.maxsim),
        (cf.maxsim_pairwise, sentence_transformers.util.maxsim_pairwise),
    ):
        expected = [(p.name, p.kind, p.default) for p in inspect.signature(theirs).parameters.values()]
        actual = [(p.name, p.kind, p.default) for p in inspect.signature(ours).parameters.values()]
        only_ours = [(name, inspect.Parameter.KEYWORD_ONLY, default) for name, default in ONLY_OURS.items()]
        assert actual == expected + only_ours


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light() -> None:
    heavy = "{'triton', 'transformers', 'sentence_transformers', 'sklearn', 'scipy', 'ir_measures'}"
    light = ", ".join(f"colbert_fast.{name}" for name in ("losses", "rank", "retrieve", "utils"))
    assert run(f"import sys, {light}; print(sorted({heavy} & set(sys.modules)))") == "[]"
    if "models" not in LACKING:
        assert (
            run(f"import sys, colbert_fast.models, colbert_fast.train; print(sorted({heavy} & set(sys.modules)))")
            == "[]"
        )


def test_a_listing_has_what_is_imported_at_first_use() -> None:
    assert run("import colbert_fast as cf; print(sorted(set(cf.__all__) - set(dir(cf))))") == "[]"


def test_no_module_hides_behind_a_name_of_the_package() -> None:
    """What is imported as a module is one: ``import colbert_fast.x as m`` takes the attribute x of the package."""
    package = Path(cf.__file__).parent
    modules = {path.name.partition(".")[0] for path in package.iterdir() if not path.name.startswith("__")}
    assert not modules & set(cf.__all__)


def test_importing_it_anew() -> None:
    """Notebooks and reloaders do this. What was imported before goes on working."""
    code = """
import sys, torch, colbert_fast as before
def forget():
    for name in [name for name in sys.modules if name.partition(".")[0] == "colbert_fast"]:
        del sys.modules[name]
a, b = torch.randn(2, 3, 4), torch.randn(5, 6, 4)
expected = before.maxsim(a, b)
for _ in range(2):
    forget()
    import colbert_fast as after
    assert after is not before
    for cf in (before, after):
        assert torch.equal(cf.maxsim(a, b), expected)
        q = a.clone().requires_grad_()
        cf.maxsim(q, b).sum().backward()
        assert q.grad.any()
# Once: torch 2.4 refuses to compile in one place with what is imported twice.
packed = after.PackedTokens.from_padded(b)
compiled = torch.compile(lambda q: after.maxsim(q, packed), fullgraph=True, backend="aot_eager")
torch.testing.assert_close(compiled(a), expected)
forget()
import colbert_fast._ops, importlib
importlib.reload(colbert_fast._ops)
assert torch.equal(colbert_fast.maxsim(a, b), expected)
# As if another version had been imported before, with other arguments of the ops.
vars(torch.ops.colbert_fast)["_registered"].schemas["score"] = "another"
forget()
try:
    import colbert_fast
except ImportError as error:
    print(error)
"""
    assert run(code).startswith("another version of colbert_fast was imported in this process: start Python anew")
