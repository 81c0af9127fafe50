"""What users can rely on, and what an import costs."""

from __future__ import annotations

import inspect
import subprocess
import sys
import zipfile
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
    # The warnings that pass are those of pyproject.toml.
    passing = (
        "Guards may run slower on Python 3.13.0",
        "The global interpreter lock (GIL) has been enabled to load mo",
    )
    options = [option for text in passing for option in ("-W", f"ignore:{text}")]
    command = [sys.executable, "-W", "error", *options, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True)
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


PACKAGES = ("collection", "losses", "models", "rank", "retrieve", "train", "utils")


def test_a_listing_shows_the_public_names_alone() -> None:
    """An editor shows it after ``cf.``; what is imported at first use is among them, and is not imported for it."""
    names = [name for name in PACKAGES if name not in ("models", "train") or "models" not in LACKING]
    code = f"""
import importlib, sys
import colbert_fast as cf
assert set(dir(cf)) == set(cf.__all__), dir(cf)
for name in {names}:
    package = importlib.import_module("colbert_fast." + name)
    assert set(dir(package)) == set(package.__all__), dir(package)
    assert name in dir(cf)
print(sorted({{"transformers", "sentence_transformers", "sklearn", "scipy"}} & set(sys.modules)))
"""
    assert run(code) == "[]"


def test_a_package_that_nobody_imported_says_how() -> None:
    # Asked for as Python asks for what a module lacks: another test may have imported it.
    with pytest.raises(AttributeError, match=r"no attribute 'train'.*: import it by `from colbert_fast import train`"):
        cf.__getattr__("train")
    with pytest.raises(AttributeError, match=r"no attribute 'trains'$"):
        cf.__getattr__("trains")


def test_a_package_without_its_metadata() -> None:
    """Programs that pack a Python program often leave it out."""
    code = """
import importlib.metadata as metadata
known = metadata.version
def version(name):
    if name == "colbert-fast":
        raise metadata.PackageNotFoundError(name)
    return known(name)
metadata.version = version
import torch, colbert_fast as cf
assert cf.maxsim(torch.ones(1, 2, 3), torch.ones(1, 2, 3)).item() == 6
print(cf.__version__)
"""
    assert run(code) == "unknown"


def test_an_archive_is_refused(tmp_path: Path) -> None:
    package = Path(cf.__file__).parent
    archive = tmp_path / "program.pyz"
    with zipfile.ZipFile(archive, "w") as to:
        for path in package.rglob("*.py"):
            to.write(path, path.relative_to(package.parent))
        to.writestr("__main__.py", "import colbert_fast")
    done = subprocess.run([sys.executable, archive], capture_output=True, text=True)
    assert done.returncode == 1
    expected = f"ImportError: colbert_fast cannot be imported from the archive {archive}: Python loads no C++ extension"
    assert done.stderr.splitlines()[-1].startswith(expected)


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
