"""Times of calls on a CUDA device: on the device, of the host, on the wall, and replayed from a graph.

- *device*: between two events around the call, behind work that keeps the device busy while the host prepares the
  call, so that launches do not count. The cache holds other things before.
- *host*: until the call returns, with nothing awaited: what the caller's thread pays.
- *wall*: until the device is done, from an idle device: what a lone request waits for.
- *graph*: as *device*, of a replayed CUDA graph.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from benchmarks.contender import Prepared

ROUNDS = 50
# Of the host and wall times, which say more of the machine's threads than of a kernel.
HOST_ROUNDS = 30
MIN_ROUNDS = 5
# Seconds of one contender on one workload; a slower one gets fewer rounds, and the results say how many.
BUDGET = 1.0


class Device(Protocol):
    """What a timing needs of a device; the tests have one with a clock of their own."""

    def flush(self) -> None:
        """Enqueue reading so much else that nothing of a call stays in the cache."""

    def delay(self, seconds: float) -> None:
        """Enqueue doing nothing for so long."""

    def synchronize(self) -> None:
        """Wait until everything enqueued is done."""

    def clock(self) -> float:
        """Seconds of the host's clock."""

    def elapsed(self, call: Callable[[], object]) -> float:
        """Seconds from the begin to the end of what ``call`` enqueues, on the device's clock."""

    def healthy(self) -> bool:
        """Whether it still works, after a call that failed."""

    def poison(self, shape: Iterable[int]) -> None:
        """Leave NaN where the next scores of this shape may be, so that one left unwritten is seen."""

    def peak_memory(self, call: Prepared) -> int | None:
        """Bytes that one call holds at its worst, beyond what was held before."""

    def graph(self, call: Prepared) -> tuple[Callable[[], object], Tensor]:
        """Capture a call; return what replays it, and where the scores will be."""


class Cuda:
    """The current CUDA device."""

    def __init__(self) -> None:
        cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        # Read and not written: what it leaves in the cache need not be written back during the call that follows.
        self._other = torch.ones(4 * max(cache, 2**25) // 4, device="cuda")
        self._sum = torch.zeros((), device="cuda")

    def flush(self) -> None:
        """Read four times the cache."""
        torch.sum(self._other, dim=0, out=self._sum)

    def delay(self, seconds: float) -> None:
        """Spin, for a little longer on a device whose clock is slower than 2 GHz."""
        torch.cuda._sleep(int(seconds * 2e9))

    def synchronize(self) -> None:
        """Wait for all streams."""
        torch.cuda.synchronize()

    def clock(self) -> float:
        """The host's clock of the highest resolution."""
        return time.perf_counter()

    def elapsed(self, call: Callable[[], object]) -> float:
        """Between two events."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def healthy(self) -> bool:
        """Whether the device still works: after an illegal access nothing does in this process."""
        try:
            torch.cuda.synchronize()
            works = bool(torch.ones(2, device="cuda").sum() == 2)
        except RuntimeError:
            return False
        # What failed for want of memory leaves it in pieces.
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()
        return works

    def poison(self, shape: Iterable[int]) -> None:
        """Fill what the allocator is to hand out next with NaN."""
        size = tuple(shape)
        kept = [torch.full(size, float("nan"), device="cuda") for _ in range(4)]
        del kept

    def peak_memory(self, call: Prepared) -> int:
        """As the allocator counts."""
        clear(call)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call.score()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def graph(self, call: Prepared) -> tuple[Callable[[], object], Tensor]:
        """Capture a CUDA graph, after calls on another stream as torch asks for."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                clear(call)
                call.score()
        torch.cuda.current_stream().wait_stream(stream)
        clear(call)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            scores = call.score()
        return captured.replay, scores


class Times(NamedTuple):
    """Seconds of the rounds of one contender."""

    device: list[float]
    host: list[float]
    wall: list[float]


def interleaved(
    device: Device,
    calls: dict[str, Prepared],
    begin: Callable[[str], object],
    deadline: float = float("inf"),
    rounds: int = ROUNDS,
) -> dict[str, Times]:
    """Time calls turn by turn, so that a change of the device's clock falls on all of them.

    Parameters
    ----------
    calls
        By name; they have run before.
    begin
        Told whose turn it is, so that a call which never returns has a name.
    deadline
        On the device's ``clock``; no turn begins later.
    rounds
        On the device; host and wall are timed in three for every five of them.
    """
    times = {name: Times([], [], []) for name in calls}
    if not calls:
        return times
    for name, call in calls.items():  # A first estimate, and the device's clock up to speed.
        begin(name)
        _host(device, call, times[name])
    of_host = {name: max(1, _affordable(times[name].wall[0], rounds * HOST_ROUNDS // ROUNDS)) for name in calls}
    for name in _turns(of_host):
        if device.clock() >= deadline:
            break
        begin(name)
        _host(device, calls[name], times[name])
    lead = {name: min(0.02, 50e-6 + 1.5 * sorted(found.host)[len(found.host) // 2]) for name, found in times.items()}
    for name in _turns({name: _affordable(found.wall[0], rounds) for name, found in times.items()}):
        if device.clock() >= deadline and times[name].device:
            break
        begin(name)
        times[name].device.append(on_device(device, calls[name], lead[name]))
    for found in times.values():  # The estimate came before the others had warmed up.
        if len(found.host) > 1:
            del found.host[0], found.wall[0]
    return {name: found for name, found in times.items() if found.device}


def on_device(device: Device, call: Prepared, lead: float) -> float:
    """Time one call on the device, its documents not in the cache, its launches done ahead."""
    clear(call)
    device.flush()
    device.delay(lead)
    return device.elapsed(call.score)


def _host(device: Device, call: Prepared, times: Times) -> None:
    clear(call)
    device.flush()
    device.synchronize()
    start = device.clock()
    call.score()
    returned = device.clock()
    device.synchronize()
    times.host.append(returned - start)
    times.wall.append(device.clock() - start)


def _affordable(seconds: float, rounds: int) -> int:
    return max(min(MIN_ROUNDS, rounds), min(rounds, int(BUDGET / seconds))) if seconds > 0 else rounds


def _turns(rounds: dict[str, int]) -> Iterator[str]:
    """Everyone's rounds, spread evenly, each time beginning with another."""
    names, most = list(rounds), max(rounds.values())
    for turn in range(most):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            if (turn + 1) * rounds[name] // most > turn * rounds[name] // most:
                yield name


def clear(call: Prepared) -> None:
    """Let go of the gradients of the call before."""
    for leaf in call.leaves:
        leaf.grad = None
