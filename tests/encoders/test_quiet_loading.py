"""A load prints nothing, leaves global settings as they were, and works in threads and in forked children."""

from __future__ import annotations

import logging
import multiprocessing
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils.tqdm import are_progress_bars_disabled
from tiny import DOCUMENTS, QUERIES, close
from transformers import BertModel
from transformers.utils import logging as transformers_logging

from colbert_fast.models import ColBERT, load_report

KINDS = ["neural_cherche", "multi_vector", "pylate", "stanford", "plain", "dense", "bge_m3"]


def load(folder: Path, kind: str) -> ColBERT:
    options: dict[str, Any] = {"embedding_size": None, "max_length_document": 20} if kind in ("plain", "dense") else {}
    return ColBERT(folder, device="cpu", **options)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_said(
    kind: str,
    request: pytest.FixtureRequest,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder: Path = request.getfixturevalue(kind)
    capfd.readouterr()
    caplog.clear()
    load(folder, kind)
    assert capfd.readouterr() == ("", "")
    assert [record.getMessage() for record in caplog.records] == []


@pytest.mark.parametrize("verbosity", ["debug", "warning", "error"])
@pytest.mark.parametrize("bars", [True, False])
def test_what_is_global_stays(
    verbosity: str,
    bars: bool,
    stanford: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def state() -> tuple[object, ...]:
        names = ["transformers", "transformers.modeling_utils", "transformers.utils.loading_report"]
        loggers = [logging.getLogger(name) for name in names]
        return (
            [(logger.level, list(logger.filters), list(logger.handlers)) for logger in loggers],
            transformers_logging.get_verbosity(),
            transformers_logging.is_progress_bar_enabled(),
            getattr(transformers_logging, "_tqdm_hook", None),
            are_progress_bars_disabled(),
            torch.get_default_dtype(),
        )

    first = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    getattr(transformers_logging, f"set_verbosity_{verbosity}")()
    (transformers_logging.enable_progress_bar if bars else transformers_logging.disable_progress_bar)()
    try:
        before = state()
        ColBERT(stanford, device="cpu")
        assert state() == before
        with pytest.raises(TypeError):
            ColBERT(stanford, device="cpu", nonsense=3)
        (broken := stanford.parent / "broken").mkdir(exist_ok=True)
        with pytest.raises(FileNotFoundError):
            ColBERT(broken, device="cpu")
        assert state() == before
        capfd.readouterr()
        caplog.clear()
        BertModel.from_pretrained(stanford)
        assert ("LOAD REPORT" in caplog.text) == (verbosity != "error")
        assert ("Loading weights" in capfd.readouterr().err) == bars
    finally:
        transformers_logging.set_verbosity(first[0])
        (transformers_logging.enable_progress_bar if first[1] else transformers_logging.disable_progress_bar)()


def test_threads(request: pytest.FixtureRequest) -> None:
    """Several kinds of checkpoint, in several dtypes, are loaded at once. Each gives the same scores as alone."""
    folders = {kind: request.getfixturevalue(kind) for kind in KINDS}
    expected = {kind: load(folder, kind).scores(QUERIES, DOCUMENTS, tqdm_bar=False) for kind, folder in folders.items()}
    initialisers = (torch.nn.init.normal_, torch.nn.init.xavier_uniform_, torch.get_default_dtype())
    errors: list[BaseException] = []
    start = threading.Barrier(len(KINDS))

    def work(kind: str) -> None:
        try:
            start.wait()
            for _ in range(3):
                close(load(folders[kind], kind).scores(QUERIES, DOCUMENTS, tqdm_bar=False), expected[kind])
                dtype = {"model_kwargs": {"dtype": torch.bfloat16}}
                if kind not in ("plain", "dense"):
                    rows = ColBERT(folders[kind], device="cpu", **dtype).encode_queries(QUERIES)
                    assert rows.tokens.dtype == torch.bfloat16
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(kind,)) for kind in KINDS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert (torch.nn.init.normal_, torch.nn.init.xavier_uniform_, torch.get_default_dtype()) == initialisers


def _in_child(folder: Path, answers: Any) -> None:
    answers.put(load(folder, "pylate").scores(QUERIES, DOCUMENTS, tqdm_bar=False).tolist())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forked_while_another_thread_loads(pylate: Path) -> None:
    expected = load(pylate, "pylate").scores(QUERIES, DOCUMENTS, tqdm_bar=False)
    stop = threading.Event()

    def keep_loading() -> None:
        while not stop.is_set():
            load(pylate, "pylate")

    thread = threading.Thread(target=keep_loading)
    thread.start()
    try:
        context = multiprocessing.get_context("fork")
        for _ in range(3):
            answers = context.SimpleQueue()
            child = context.Process(target=_in_child, args=(pylate, answers))
            child.start()
            child.join(60)
            alive = child.is_alive()
            child.kill()
            assert not alive
            close(torch.tensor(answers.get()), expected)
    finally:
        stop.set()
        thread.join()


def test_a_filter_that_an_interrupt_left_hides_no_later_report(neural_cherche: Path) -> None:
    logger = logging.getLogger("transformers.modeling_utils")
    before = list(logger.filters)
    stale = load_report.Report(logging.WARNING)
    logger.addFilter(stale)
    record = logging.LogRecord(logger.name, logging.WARNING, "", 0, "LOAD REPORT", (), None)
    assert not stale.filter(record)
    with load_report.quiet_loading():
        pass
    assert logger.filters == before
    assert stale.filter(record)
