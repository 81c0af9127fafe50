"""The check against float64, and the rounds of all contenders of a workload."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

import colbert_fast as cf
from colbert_fast.bench.workloads import Inputs, flush_caches

# Seconds between two rounds. The OpenMP threads of torch spin for some milliseconds after its last operation, on the
# cores that the next contender is to run on.
PAUSE = 0.005
# Seconds of rounds that are not timed, when a contender follows another.
WARM_UP = 0.05
# The rounds of a contender are cut into this number of turns, so that a slow moment falls on several contenders.
TURNS = 4
# Our scores that are further than this from float64 are not timed: it is the bound that every backend promises.
MAX_RELATIVE_ERROR = 1e-5


def quantiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """Return the median between the two edges of the middle 60 %."""
    if len(seconds) == 1:
        return seconds[0], seconds[0], seconds[0]
    fifths = statistics.quantiles(seconds, n=5, method="inclusive")
    return fifths[0], statistics.median(seconds), fifths[3]


def rest() -> None:
    """Let the threads of other contenders go to sleep, but keep this thread awake.

    A thread that sleeps loses its core. A virtual machine that packs threads onto few cores then woke our second
    thread on the core of the first for more than a millisecond, and what was timed was the machine.
    """
    end = time.perf_counter() + PAUSE
    while time.perf_counter() < end:
        pass


def warm_up_rounds(seconds: float) -> int:
    """Return how many rounds not to time, for a contender whose call takes ``seconds``.

    The contender before it left other things in the caches, and threads on other cores, from where the scheduler
    takes some milliseconds to move them.
    """
    return max(1, min(10, int(WARM_UP / seconds)))


def relative_error(scores: Tensor, reference: Tensor) -> float:
    """Return the largest error of a score relative to its own size."""
    scores = scores.detach().cpu().double().reshape(reference.shape)
    return float(((scores - reference).abs() / reference.abs().clamp(min=1e-30)).max())


def failure(error: Exception) -> str:
    """Return in one line what is shown in place of a measurement."""
    return f"failed: {type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


@dataclass
class Contender:
    """A call, and what was measured of it so far."""

    name: str
    score: Callable[[], Tensor]
    seconds: list[float] = field(default_factory=list)
    max_relative_error: float = float("nan")
    reason: str | None = None
    """Why it is not timed, or None."""

    def check(self, inputs: Inputs, reference: Tensor) -> None:
        """Compare its scores with float64."""
        self.max_relative_error = error = relative_error(self.score(), reference)
        # torch's own products in half precision have larger errors, and documents rounded to 8 bits have too.
        exact = self.name in {b.name for b in cf.backends()} and not inputs.workload.quantized
        # NaN compares false with everything: written this way round, NaN is refused.
        if not error <= (MAX_RELATIVE_ERROR if exact else 1e-2):
            self.reason = f"wrong: relative error {error:.1e}"

    def time(self, inputs: Inputs, rounds: int) -> None:
        """Add rounds."""
        start = time.perf_counter()
        self.score()
        for _ in range(warm_up_rounds(time.perf_counter() - start)):
            self.score()
        for _ in range(rounds):
            if inputs.workload.flush:
                flush_caches()
            rest()
            start = time.perf_counter()
            self.score()
            self.seconds.append(time.perf_counter() - start)


def compare(inputs: Inputs, contenders: Iterable[Contender], rounds: int) -> None:
    """Check every contender, then time those that agree with float64, turn by turn."""
    reference = inputs.reference()
    turns = min(TURNS, rounds)
    for turn in range(-1, turns):
        for contender in contenders:
            try:
                if turn < 0:
                    contender.check(inputs, reference)
                elif contender.reason is None:
                    contender.time(inputs, rounds * (turn + 1) // turns - rounds * turn // turns)
            except Exception as error:
                contender.reason = failure(error)
