"""What is measured of a pass on a GPU: time, memory, energy, and the share of each kernel."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import torch

from sparse24.bench import read
from workbench.bench import kinds

Call = Callable[[], Any]
REPEATS = 7
LEAST_SECONDS = 0.05  # of a repeat
# an H100 falls from 1980 MHz to what its power limit allows within a second or two of load, and
# candidates are made for different times before: all are timed at the clock that they cause
WARM_SECONDS = 2.0
ENERGY_SECONDS = 2.0  # the driver's counter moves on about every 0.1 s


def measured(call: Call) -> dict[str, Any]:
    """Microseconds of a call, memory in MB, millijoules, shares of kernels.

    Microseconds are the median of the repeats with the least and the most, of back-to-back calls
    between two CUDA events, after WARM_SECONDS of the same calls; clock and power are read under
    that load. Memory is all that the process holds on the device: weights, input, the graph's own.
    Null where something is not told here, with the reason beside it.
    """
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    memory = torch.cuda.memory_reserved()
    seconds = _elapsed(call, 1) / 1e6
    _elapsed(call, _rounds(seconds, WARM_SECONDS))
    times = sorted(_elapsed(call, _rounds(seconds, LEAST_SECONDS)) for _ in range(REPEATS))
    load = under_load(call)
    joules, reason = energy(call, times[0] / 1e6)
    told = {
        "median_us": round(median(times), 2),
        "low_us": round(times[0], 2),
        "high_us": round(times[-1], 2),
        **load,
        "memory_mb": round(memory / 2**20, 1),
        "energy_mj": joules,
        "shares": kinds.shares(kinds.profiled(call)),
    }
    return told | ({"energy_reason": reason} if reason else {})


def energy(call: Call, seconds: float) -> tuple[float | None, str]:
    """Millijoules of a call by the driver's counter, or None and why."""
    try:
        import pynvml
    except ImportError:
        return None, "nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
        card = torch.cuda.get_device_properties(torch.cuda.current_device())
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{card.uuid}")
        before = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        count = _rounds(seconds, ENERGY_SECONDS)
        for _ in range(count):
            call()
        torch.cuda.synchronize()
        after = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        return None, f"the driver does not count energy here: {error}"
    return round((after - before) / count, 3), ""


def under_load(
    call: Call, ask: Callable[[str], str] = read, wait: Call = torch.cuda.synchronize
) -> dict[str, str]:
    """Clock (MHz) and power (W), of which the driver is asked while the calls go on."""
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, "clocks.sm,power.draw")
        while not asked.done():
            call()
            wait()  # or seconds of work would lie in the queue
    clock, power = asked.result().split(", ")
    return {"clock_mhz": clock, "power_w": power}


def _rounds(seconds: float, least: float) -> int:
    return max(1, int(least / max(seconds, 1e-6)))


def _elapsed(call: Call, rounds: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(rounds):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3 / rounds
