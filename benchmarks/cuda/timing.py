"""Times of calls on a CUDA device: on the device, of the host, on the wall, and replayed from a graph.

- *device*: between two events around the call. Other work keeps the device busy while the host prepares the call, so
  that launches do not count. The cache holds other things before.
- *host*: until the call returns, without waiting for the device: what the caller's thread pays.
- *wall*: until the device is done, from an idle device: what a lone request waits for.
- *graph*: as *device*, of a replayed CUDA graph.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.contender import Prepared, turn_by_turn

ROUNDS = 50
# Rounds of the host and wall times, which say more of the machine's threads than of a kernel.
HOST_ROUNDS = 30
MIN_ROUNDS = 5
# Seconds of one contender on one workload. A slower one gets fewer rounds, and the results say how many.
BUDGET = 1.0


class Cuda:
    """The current CUDA device. The tests have another one, with a clock of its own."""

    @functools.cached_property
    def _buffers(self) -> tuple[Tensor, Tensor]:
        cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        return torch.ones(4 * max(cache, 2**25) // 4, device="cuda"), torch.zeros((), device="cuda")

    def flush(self) -> None:
        """Read four times the cache. A read leaves nothing that is written back during the call that follows."""
        other, total = self._buffers
        torch.sum(other, dim=0, out=total)

    def delay(self, seconds: float) -> None:
        """Let the device spin, for a little longer where its clock is slower than 2 GHz."""
        torch.cuda._sleep(int(seconds * 2e9))

    def synchronize(self) -> None:
        """Wait for all streams."""
        torch.cuda.synchronize()

    def clock(self) -> float:
        """Seconds of the host's clock of the highest resolution."""
        return time.perf_counter()

    def elapsed(self, call: Callable[[], object]) -> float:
        """Seconds of the device from the begin to the end of what ``call`` enqueues."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def healthy(self) -> bool:
        """Whether the device still works after a call failed. After an illegal access it is lost to this process."""
        try:
            torch.cuda.synchronize()
            works = bool(torch.ones(2, device="cuda").sum() == 2)
        except RuntimeError:
            return False
        # A call that failed for want of memory leaves the memory in pieces.
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()
        return works

    def poison(self, shape: Iterable[int]) -> None:
        """Leave NaN where the next scores of this shape may be, so that a score left unwritten is seen."""
        size = tuple(shape)
        kept = [torch.full(size, float("nan"), device="cuda") for _ in range(4)]
        del kept

    def peak_memory(self, call: Prepared) -> int:
        """Bytes that the allocator hands out at the worst moment of a call, beyond what was held before."""
        call.clear()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call.score()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def graph(self, call: Prepared) -> tuple[Callable[[], object], Tensor]:
        """Capture a call, after calls on another stream as torch asks for; return its replay, and its scores."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                call.clear()
                call.score()
        torch.cuda.current_stream().wait_stream(stream)
        call.clear()
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
    device: Cuda, calls: dict[str, Prepared], begin: Callable[[str], object], deadline: float = float("inf")
) -> dict[str, Times]:
    """Time calls, which have run before, turn by turn: a change of the device's clock falls on all of them.

    ``begin`` is told whose turn it is, so that a call that never returns has a name. After the ``deadline``, on the
    device's ``clock``, every call that has no time on the device yet gets one round.
    """
    times = {name: Times([], [], []) for name in calls}
    # The first round is an estimate, and brings the device's clock up to speed.
    for name, call in calls.items():
        begin(name)
        _host(device, call, times[name])
    estimates = {name: found.wall[0] for name, found in times.items()}
    for name in _turns(estimates, HOST_ROUNDS):
        if device.clock() < deadline:
            begin(name)
            _host(device, calls[name], times[name])
    lead = {name: min(0.02, 50e-6 + 1.5 * sorted(found.host)[len(found.host) // 2]) for name, found in times.items()}
    for name in _turns(estimates, ROUNDS):
        if device.clock() < deadline or not times[name].device:
            begin(name)
            times[name].device.append(on_device(device, calls[name], lead[name]))
    for found in times.values():  # The estimate came before the others had warmed up.
        if len(found.host) > 1:
            del found.host[0], found.wall[0]
    return times


def on_device(device: Cuda, call: Prepared, lead: float) -> float:
    """Time one call on the device. Its documents are not in the cache, and its launches are done ahead."""
    call.clear()
    device.flush()
    device.delay(lead)
    return device.elapsed(call.score)


def _host(device: Cuda, call: Prepared, times: Times) -> None:
    call.clear()
    device.flush()
    device.synchronize()
    start = device.clock()
    call.score()
    returned = device.clock()
    device.synchronize()
    times.host.append(returned - start)
    times.wall.append(device.clock() - start)


def _turns(estimates: dict[str, float], most: int) -> Iterator[str]:
    """Give every name as often as the budget of its call allows, spread evenly."""
    rounds = {name: max(MIN_ROUNDS, min(most, int(BUDGET / max(took, 1e-9)))) for name, took in estimates.items()}
    for turn, name in turn_by_turn(list(estimates), most if estimates else 0):
        if (turn + 1) * rounds[name] // most > turn * rounds[name] // most:
            yield name
