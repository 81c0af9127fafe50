"""Load models one thread at a time, without what transformers prints, and keep its report on the weights."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars
from transformers.utils import logging as transformers_logging

# While transformers loads a model, it replaces torch's initialisers and torch's default dtype for all threads. Two
# threads that load at the same time would disturb each other, so a thread holds this lock while it loads.
_loading = threading.RLock()


def _renew() -> None:
    global _loading
    _loading = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)

_REPORTING = (
    *("transformers.modeling_utils", "transformers.utils.loading_report"),
    *("transformers.distributed.tensor_parallel", "transformers.integrations.tensor_parallel"),
)
# transformers writes these lines about every model that could run on several devices and runs on one.
_NOISE = ("The following layers were not sharded", "The following TP rules were not applied")
_ROW = re.compile(r"^(\S.*?)\s*\| (UNEXPECTED|MISSING|MISMATCH|CONVERSION)\b", re.MULTILINE)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Report(logging.Filter):
    """What transformers reported while this thread loaded a model: a status, and the names of the weights that have it.

    transformers writes names that differ only in a number as one name: "encoder.layer.{0, 1}.output.dense.weight".
    """

    def __init__(self, quietest: int) -> None:
        super().__init__()
        self._thread = threading.get_ident()
        self._quietest = quietest
        # True after the load. An interrupt may prevent the removal of this filter; it then lets every record pass.
        self.ended = False
        self.weights: dict[str, list[str]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Take the load report of this thread out of the log. Let every record pass that the user would have seen."""
        if self.ended:
            return True
        message = record.getMessage()
        if record.thread == self._thread and message.startswith(_NOISE):
            return False
        if record.thread == self._thread and "LOAD REPORT" in message:
            for name, status in _ROW.findall(_COLOUR.sub("", message)):
                self.weights.setdefault(status, []).append(name)
            # Some of these names come out of a set, so their order differs from process to process.
            for names in self.weights.values():
                names.sort()
            return False
        return record.levelno >= self._quietest


@contextmanager
def quiet_loading() -> Iterator[Report]:
    """Load models in this context: one thread at a time, with the load report caught and the progress bar hidden.

    Yields the report. Progress bars of downloads, and other warnings, stay as the user has set them.
    """
    # ExitStack undoes every change that was made, even if an interrupt comes between two changes.
    with _loading, ExitStack() as stack:
        loggers = [logging.getLogger(name) for name in _REPORTING]
        report = Report(logging.getLogger(_REPORTING[0]).getEffectiveLevel())
        _hide_bars(stack, report)
        for logger in loggers:
            for stale in [old for old in logger.filters if isinstance(old, Report)]:
                stale.ended = True
                logger.removeFilter(stale)
            stack.callback(logger.removeFilter, report)
            stack.callback(logger.setLevel, logger.level)
            logger.addFilter(report)
            # The report on missing weights is needed even if the user has turned the warnings of transformers off.
            logger.setLevel(min(logging.WARNING, logger.getEffectiveLevel()))
        stack.callback(setattr, report, "ended", True)
        yield report


def _hide_bars(stack: ExitStack, report: Report) -> None:
    """Hide the progress bar over the weights until the stack ends."""
    set_hook = getattr(transformers_logging, "set_tqdm_hook", None)
    if set_hook is None:  # transformers before 5.4 can only hide bars for all threads, and of downloads too
        if not transformers_logging.is_progress_bar_enabled():
            return
        if are_progress_bars_disabled():
            stack.callback(disable_progress_bars)
        stack.callback(transformers_logging.enable_progress_bar)
        transformers_logging.disable_progress_bar()
        return
    thread = threading.get_ident()

    def hook(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if threading.get_ident() == thread and not report.ended:
            kwargs = {**kwargs, "disable": True}
        return factory(*args, **kwargs) if before is None else before(factory, args, kwargs)

    before = set_hook(None)
    stack.callback(set_hook, before)
    set_hook(hook)
