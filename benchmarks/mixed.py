"""What a program does right before a scoring call, or beside it, and the workloads that are timed there.

Other benchmarks let the threads of a call before go to sleep first. Here nothing settles: that is how people score.
"""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from colbert_fast import bench


def _nothing() -> None:
    pass


@functools.cache
def _matrix() -> torch.Tensor:
    return torch.ones(512, 512)


def _product() -> None:
    for _ in range(3):
        _matrix() @ _matrix()


@functools.cache
def _encoder() -> tuple[torch.nn.Module, torch.Tensor]:
    """An encoder of the size of all-MiniLM-L6-v2, and a text of 32 tokens."""
    layer = torch.nn.TransformerEncoderLayer(384, nhead=12, dim_feedforward=1536, batch_first=True)
    return torch.nn.TransformerEncoder(layer, num_layers=6).eval(), torch.ones(1, 32, 384)


def _forward() -> None:
    encoder, tokens = _encoder()
    with torch.inference_mode():
        encoder(tokens)


def _sleep() -> None:
    time.sleep(0.02)


@dataclass(frozen=True)
class Moment:
    """When a call is timed."""

    name: str
    words: str
    before: Callable[[], object] = _nothing
    """Is called right before each timed call, on the same thread."""
    callers: int = 1
    """So many threads score at once, all the time; the calls of one of them are timed."""
    busy: bool = False
    """Another process keeps one core busy."""

    @contextlib.contextmanager
    def surroundings(self, score: Callable[[], object]) -> Iterator[None]:
        """Let the other callers and the other process work."""
        ended = threading.Event()

        def call() -> None:
            while not ended.is_set():
                score()

        others = [threading.Thread(target=call) for _ in range(self.callers - 1)]
        process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if self.busy else None
        try:
            for other in others:
                other.start()
            yield
        finally:
            ended.set()
            if process is not None:
                process.kill()
                process.wait()
            for other in others:
                other.join()


MOMENTS = (
    Moment("back-to-back", "back to back"),
    Moment("product", "right after a product of torch", _product),
    Moment("encoder", "right after an encoder's forward", _forward),
    Moment("sleep", "after 20 ms of sleep", _sleep),
    Moment("busy", "beside a busy process", busy=True),
    Moment("encoder-busy", "right after an encoder's forward, beside a busy process", _forward, busy=True),
    Moment("2-callers", "with 2 callers at once", callers=2),
    Moment("8-callers", "with 8 callers at once", callers=8),
)


def workload(moment: Moment, nd: int) -> bench.Workload:
    """One query of 32 tokens with so many documents of 180 tokens, which the caller holds packed."""
    small = next(found for found in bench.WORKLOADS if found.name == "latency-float32")
    return replace(small, name=f"mixed-{moment.name}-{nd}", source=moment.words, nd=nd, layout="packed")
