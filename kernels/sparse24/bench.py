"""Timing on the GPU: CUDA graphs, operands rotated past the L2, median and spread."""

import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch

ROTATE_BYTES = 160 * 2**20  # three times the 50 MB of an H100's L2
MOST_SETS = 256
REPEATS = 7
LEAST_GRAPH = 1e-3  # seconds of one replay
LEAST_SECONDS = 4e-3  # of one repeat, so that the events' resolution (0.5 us) does not show

Call = Callable[[], Any]


class BenchError(RuntimeError):
    """A measurement that cannot be made here."""


class Timing(NamedTuple):
    """Microseconds of one call: the median of the repeats, the least and the most."""

    median_us: float
    low_us: float
    high_us: float


Timer = Callable[[Sequence[Call]], Timing]


def sets_to_rotate(bytes_of_one: int) -> int:
    """How many sets of operands it takes so that none of one is left in the L2 for its turn."""
    return min(MOST_SETS, max(2, -(-ROTATE_BYTES // max(1, bytes_of_one)) + 1))


def graph_time(
    calls: Sequence[Call], repeats: int = REPEATS, least_seconds: float = LEAST_SECONDS
) -> Timing:
    """The time of one of the calls, each of them with other operands, replayed as a CUDA graph."""
    return graph_times([calls], repeats, least_seconds)[0]


def graph_times(
    candidates: Sequence[Sequence[Call]],
    repeats: int = REPEATS,
    least_seconds: float = LEAST_SECONDS,
) -> list[Timing]:
    """The times of several candidates, whose repeats are taken in turn.

    So all of them meet the same clock: under load the card lowers it, by a quarter within seconds,
    and who is measured first would win.
    """
    require_gpu()
    replays = [_replay(calls, repeats, least_seconds) for calls in candidates]
    times = [[replay() * 1e6 for replay in replays] for _ in range(repeats)]
    return [Timing(median(each), min(each), max(each)) for each in zip(*times, strict=True)]


def glance(timer: Timer) -> Timer:
    """A quick form of `graph_time`, to see which candidates deserve it; others as they are."""
    return partial(graph_time, repeats=1, least_seconds=5e-4) if timer is graph_time else timer


def in_turn(timer: Timer) -> Callable[[Sequence[Sequence[Call]]], list[Timing]]:
    """The form of `graph_time` for several candidates; of others, one candidate after the other."""
    return graph_times if timer is graph_time else lambda many: [timer(calls) for calls in many]


def _replay(calls: Sequence[Call], repeats: int, least_seconds: float) -> Callable[[], float]:
    """What replays the calls for the least time and returns the seconds of one."""
    graph = captured(calls)
    graph.replay()
    seconds = _elapsed(graph, 1)
    if seconds < LEAST_GRAPH and repeats > 1:  # else the gap between two replays would show
        calls = list(calls) * int(LEAST_GRAPH / seconds + 1)
        graph = captured(calls)
        graph.replay()
        seconds = _elapsed(graph, 1)
    rounds = max(1, int(least_seconds / max(seconds, 1e-7)) + 1)
    return lambda: _elapsed(graph, rounds) / rounds / len(calls)


def captured(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    """The calls as one graph, their results all alive in it, so that these rotate too."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        calls[0]()
        calls[-1]()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [call() for call in calls]
    del results
    return graph


def host_us(call: Call, count: int = 2000) -> float:
    """Microseconds that the CPU spends in one call, the least of five rounds; the GPU keeps up."""
    require_gpu()
    call()
    best = float("inf")
    for _ in range(5):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(count // 5):
            call()
        best = min(best, (time.perf_counter() - started) / (count // 5) * 1e6)
        torch.cuda.synchronize()
    return best


def facts() -> dict[str, str | int]:
    """Device and libraries that a time depends on."""
    require_gpu()
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    cusparselt = torch.backends.cusparselt.version() if has_cusparselt() else "none"
    return {
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "driver": read("driver_version"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cusparselt": str(cusparselt),
        "clock_max_mhz": read("clocks.max.sm"),
        "power_limit_w": read("power.limit"),
    }


def read(field: str) -> str:
    """A field of nvidia-smi about the current GPU, as in `clocks.sm`."""
    line = [
        "nvidia-smi",
        f"--query-gpu={field}",
        "--format=csv,noheader,nounits",
        f"--id={torch.cuda.current_device()}",
    ]
    try:
        done = subprocess.run(line, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchError(f"nvidia-smi does not tell {field} ({error}); install it") from error
    return done.stdout.strip()


def under_load(calls: Sequence[Call], seconds: float = 0.4) -> dict[str, str]:
    """Clock (MHz) and power (W) of the GPU while it replays the calls."""
    graph = captured(calls)
    graph.replay()
    for _ in range(int(seconds / max(_elapsed(graph, 1), 1e-6)) + 1):
        graph.replay()
    told = {"clock_mhz": read("clocks.sm"), "power_w": read("power.draw")}
    torch.cuda.synchronize()
    return told


def has_cusparselt() -> bool:
    """Whether this torch has cuSPARSELt."""
    return torch.backends.cusparselt.is_available()


def require_gpu() -> None:
    """Raise BenchError where there is no GPU to time."""
    if not torch.cuda.is_available():
        raise BenchError("timing kernels needs a CUDA GPU, and torch sees none: run this on one")


def _elapsed(graph: torch.cuda.CUDAGraph, rounds: int) -> float:
    """Seconds of so many replays."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(rounds):
        graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3
