"""What SECURITY.md promises of the whole package; the tests of each part have what it does with hostile files."""

from __future__ import annotations

import ast

from processes import assert_clean, python
from source import SOURCE, package

# Python tells of each of these before it is done.
WATCHED = r"""
def refuse(event, arguments):
    if event.startswith(refused):
        print(event, arguments, file=sys.stderr, flush=True)
        os._exit(3)
"""
IMPORTS = """
refused = ("socket.connect", "socket.getaddrinfo", "socket.gethostby", "socket.sendto", "urllib.Request")
sys.addaudithook(refuse)
import importlib
for name in ("collection", "cli", "losses", "models", "rank", "retrieve", "train", "utils", "bench", "reference"):
    try:
        importlib.import_module(f"colbert_fast.{name}")
    except ImportError as error:
        assert "pip install" in str(error), error
"""
FILES = """
import tempfile
assert score().shape == (16, 40)
packed = cf.PackedTokens.from_padded(documents)
with tempfile.TemporaryDirectory() as folder:
    packed.save(f"{folder}/packed.safetensors")
    with cf.Collection(f"{folder}/collection") as collection:
        collection.add([f"{i}" for i in range(40)], documents, [{"year": i} for i in range(40)])
    refused = ("socket.", "urllib.", "pickle.", "subprocess.", "os.system", "os.exec", "ctypes.dlopen")
    sys.addaudithook(refuse)
    assert len(cf.PackedTokens.load(f"{folder}/packed.safetensors")) == 40
    with cf.Collection(f"{folder}/collection") as collection:
        found = collection.topk(queries, 3, where="year < 20")
        assert found.scores.shape == (16, 3)
        collection.verify()
        collection.delete(["3"])
        collection.compact()
    assert score().shape == (16, 40)
"""


def test_an_import_asks_nothing_of_the_network() -> None:
    assert_clean(python("import os, sys\n" + WATCHED + IMPORTS, "cpu"))


def test_scoring_and_files_need_no_network_no_pickle_and_no_other_program() -> None:
    assert_clean(python(WATCHED + FILES, "torch"))


def test_nothing_reads_a_pickle_but_what_this_process_has_started() -> None:
    """Two calls, each for a reason of its own: a file of tensors alone, and a worker's file in a folder of the user."""
    found = []
    for path in sorted(package()):
        if path.endswith(".py"):
            for node in ast.walk(ast.parse((SOURCE / path).read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                    *("pickle.load", "pickle.loads", "torch.load", "np.load", "marshal.loads", "eval", "exec"),
                    *("shelve.open", "os.system", "subprocess.run", "subprocess.Popen", "shutil.unpack_archive"),
                ):
                    found.append((path, ast.unparse(node)))
    calls = [
        (
            "colbert_fast/models/file_checks.py",
            "torch.load(path, **{'map_location': 'cpu', 'weights_only': True, **options})",
        ),
        ("colbert_fast/models/workers.py", "pickle.load(file)"),
    ]
    assert found == calls
