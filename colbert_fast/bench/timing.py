"""The check against float64, and the rounds of all contenders of a workload beside the limits of the machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

import colbert_fast as cf
from colbert_fast.bench.machine import Limits, flush_caches
from colbert_fast.bench.workloads import Inputs

# Seconds between two rounds. The OpenMP threads of torch spin for some milliseconds after its last operation, on the
# cores that the next contender is to run on.
PAUSE = 0.005
# Seconds of rounds that are not timed, when a contender follows another.
WARM_UP = 0.05
# The rounds of a contender are cut into so many turns, between which the others have theirs.
TURNS = 4
# Scores of ours that are further than this from float64 are not timed: the contract's bound.
MAX_RELATIVE_ERROR = 1e-5


class Measurement(NamedTuple):
    """Seconds of the rounds of one contender, and how far its scores are from float64."""

    seconds: list[float]
    max_relative_error: float

    @property
    def quantiles(self) -> tuple[float, float, float]:
        """Seconds: the median between the edges of the middle 60 %."""
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0], self.seconds[0]
        fifths = statistics.quantiles(self.seconds, n=5, method="inclusive")
        return fifths[0], statistics.median(self.seconds), fifths[3]


def rest() -> None:
    """Let the threads of other contenders go to sleep, but not this one.

    Asleep it would lose its core: a virtual machine that packs threads onto few cores then woke our second thread on
    the core of the first, for more than a millisecond, and what was timed was the machine.
    """
    end = time.perf_counter() + PAUSE
    while time.perf_counter() < end:
        pass


def warm_up_rounds(seconds: float) -> int:
    """Return the rounds not to time, for a contender whose call takes so long.

    The contender before left the caches full of other things, and threads on cores from where it takes the scheduler
    some milliseconds to move them.
    """
    return max(1, min(10, int(WARM_UP / seconds)))


def relative_error(scores: Tensor, reference: Tensor) -> float:
    """Return the largest error of a score relative to its own size."""
    scores = scores.detach().cpu().double().reshape(reference.shape)
    return float(((scores - reference).abs() / reference.abs().clamp(min=1e-30)).max())


def failure(error: Exception) -> str:
    """Return in one line what is shown in place of a measurement."""
    return f"failed: {type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


class Comparison:
    """The contenders of one workload. What was measured can be asked for at any moment, also after an interrupt."""

    def __init__(self, inputs: Inputs, functions: dict[str, Callable[[], Tensor]], rounds: int, limits: Limits) -> None:
        self._inputs = inputs
        self._functions = functions
        self._rounds = rounds
        self._limits = limits
        self._measured: dict[str, Measurement] = {}
        self._reasons: dict[str, str] = {}

    @property
    def results(self) -> dict[str, Measurement | str]:
        """By contender a measurement, or the reason why there is none."""
        found: dict[str, Measurement | str] = {}
        for name in self._functions:
            measured = self._measured.get(name)
            timed = measured if measured and measured.seconds else "not timed: interrupted"
            found[name] = self._reasons.get(name, timed)
        return found

    def run(self, step: Callable[[str, float], Any]) -> None:
        """Check every contender, then time those that agree with float64, turn by turn.

        Parameters
        ----------
        step
            Called before each step with what comes next, and the share of all steps that are done.
        """
        turns = min(TURNS, self._rounds)
        total, done = len(self._functions) * (turns + 1) + 1, 0

        def next_step(what: str) -> None:
            nonlocal done
            step(what, done / total)
            done += 1

        next_step("float64")
        reference = self._inputs.reference()
        for name in self._functions:
            next_step(f"check of {name}")
            self._attempt(self._check, name, reference)
        for turn in range(turns):
            count = self._rounds * (turn + 1) // turns - self._rounds * turn // turns
            for name in self._functions:
                next_step(name)
                if name not in self._reasons:
                    self._attempt(self._time, name, count)
                    # Beside the rounds: the speed of a machine that others share changes by the second.
                    self._limits.measure(name)

    def _attempt(self, work: Callable[[str, Any], None], name: str, argument: Any) -> None:
        try:
            work(name, argument)
        except Exception as error:
            self._reasons[name] = failure(error)

    def _check(self, name: str, reference: Tensor) -> None:
        error = relative_error(self._functions[name](), reference)
        # torch's own half-precision products are further off, and known to be; so are documents rounded to 8 bits.
        exact = name in {b.name for b in cf.backends()} and not self._inputs.workload.quantized
        # NaN compares false with everything; written this way round it is refused.
        if not error <= (MAX_RELATIVE_ERROR if exact else 1e-2):
            self._reasons[name] = f"wrong: relative error {error:.1e}"
        self._measured[name] = Measurement([], error)

    def _time(self, name: str, count: int) -> None:
        function, seconds = self._functions[name], self._measured[name].seconds
        start = time.perf_counter()
        function()
        for _ in range(warm_up_rounds(time.perf_counter() - start)):
            function()
        for _ in range(count):
            if self._inputs.workload.flush:
                flush_caches()
            rest()
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
