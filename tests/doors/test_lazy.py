"""What all adapters share: the encoder that is loaded at first use, and errors that say what is missing."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from counting import QUERY, TEXTS, Counting

import colbert_fast as cf
from colbert_fast.integrations._lazy import LazyEncoder


def test_a_checkpoint_is_loaded_once(checkpoint: str, loads: list[Any], loaded: Any) -> None:
    lazy = LazyEncoder(Path(checkpoint), device="cpu")
    assert not loads
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: lazy.get(), range(8))) == {loaded}
    assert loads == [(checkpoint, {"device": "cpu"})]
    assert repr(lazy) == f"LazyEncoder({checkpoint!r})"


def test_a_pickle_has_no_weights(checkpoint: str, loads: list[Any], encoder: Counting) -> None:
    lazy = LazyEncoder(checkpoint, device="cpu")
    lazy.get()
    pickled = pickle.dumps(lazy)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).get() is lazy.get()
    assert loads == [(checkpoint, {"device": "cpu"})] * 2
    with pytest.raises(TypeError, match="an encoder is not pickled"):
        pickle.dumps(LazyEncoder(encoder))
    assert copy.deepcopy(lazy).get() is copy.copy(lazy).get() is lazy.get()


def test_ranks_as_rerank_does(encoder: Counting) -> None:
    lazy = LazyEncoder.of(encoder)
    assert LazyEncoder.of(lazy) is lazy
    expected = cf.rerank(encoder.encoder, QUERY, TEXTS)
    assert lazy.rank(QUERY, TEXTS) == [(hit["id"], hit["score"]) for hit in expected]
    assert lazy.rank(QUERY, []) == []
    assert encoder.documents == [len(set(TEXTS))]  # once, and equal texts once


def test_options_as_most_libraries_name_them(checkpoint: str, loads: list[Any]) -> None:
    lazy = LazyEncoder.of(checkpoint, "cpu", {"max_length_query": 30})
    lazy.get()
    assert loads == [(checkpoint, {"max_length_query": 30, "device": "cpu"})]
    assert LazyEncoder.of(lazy, "cpu", {"max_length_query": 30}) is lazy
    for device, options in (("cpu", {}), (None, {"dtype": "bfloat16"})):
        with pytest.raises(TypeError, match="only a checkpoint that is loaded here takes"):
            LazyEncoder.of(Counting(None), device, options)
        with pytest.raises(TypeError, match="model must be an encoder"):
            LazyEncoder.of(lazy, device, options)
    with pytest.raises(TypeError, match=r"device is 'cpu', but model_kwargs\['device'\] is 'cuda'"):
        LazyEncoder.of(checkpoint, "cpu", {"device": "cuda"})


def test_errors() -> None:
    for wrong in (None, 3, [], object, Counting):
        with pytest.raises(TypeError, match="model must be an encoder, or the path or name of a checkpoint; got "):
            LazyEncoder(wrong)
    with pytest.raises(TypeError, match="only a checkpoint that is loaded here takes device"):
        LazyEncoder(Counting(None), device="cpu")
    for wrong in (None, ["two", "queries"], 3):
        with pytest.raises(TypeError, match="query must be one str; got "):
            LazyEncoder(Counting(None)).rank(wrong, TEXTS)
    with pytest.raises(
        TypeError, match=r"each document must have a text, a str; the text of documents\[1\] is NoneType"
    ):
        LazyEncoder(Counting(None)).rank(QUERY, ["paris", None])


def test_a_missing_library_is_named_with_the_extra() -> None:
    code = """
import importlib, sys
libraries = {"langchain": "langchain_core", "llama_index": "llama_index", "haystack": "haystack",
             "rerankers": "rerankers", "mteb": "mteb"}
import colbert_fast.integrations
assert not {*libraries.values()} & {*sys.modules}
for door, library in libraries.items():
    sys.modules[library] = None
    sys.modules.update(dict.fromkeys([name for name in sys.modules if name.startswith(library + ".")]))
    try:
        importlib.import_module("colbert_fast.integrations." + door)
    except ImportError as error:
        print(error)
    else:
        raise AssertionError(door)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    packages = ["langchain-core>=0.3", "llama-index-core>=0.14", "haystack-ai>=2.20", "rerankers>=0.10", "mteb>=2.18"]
    doors = ["langchain", "llama_index", "haystack", "rerankers", "mteb"]
    assert told == [
        f"colbert_fast.integrations.{door} needs {package} (not installed): pip install 'colbert-fast[integrations]'"
        for door, package in zip(doors, packages, strict=True)
    ]
