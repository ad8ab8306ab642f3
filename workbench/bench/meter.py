"""What is measured of a pass on a GPU: time, memory, energy, and the share of each kernel."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from workbench.bench import kinds

Call = Callable[[], Any]
REPEATS = 7
LEAST_SECONDS = 0.05  # of a repeat
ENERGY_SECONDS = 2.0  # the driver's counter moves on about every 0.1 s


def measured(call: Call) -> dict[str, Any]:
    """Microseconds of a call, memory in MB, millijoules, shares of kernels.

    Microseconds are the median of the repeats with the least and the most, of back-to-back calls
    between two CUDA events; memory is all that the process holds on the device: weights, input,
    the graph's own. Null where something is not told here, with the reason beside it.
    """
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    memory = torch.cuda.memory_reserved()
    times = sorted(_repeated(call))
    joules, reason = energy(call, times[0] / 1e6)
    told = {
        "median_us": round(median(times), 2),
        "low_us": round(times[0], 2),
        "high_us": round(times[-1], 2),
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
        count = max(1, int(ENERGY_SECONDS / seconds))
        for _ in range(count):
            call()
        torch.cuda.synchronize()
        after = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        return None, f"the driver does not count energy here: {error}"
    return round((after - before) / count, 3), ""


def _repeated(call: Call) -> list[float]:
    rounds = max(1, int(LEAST_SECONDS / max(_elapsed(call, 1) / 1e6, 1e-6)))
    time.sleep(0.2)  # the next candidate finds the card as the first did
    return [_elapsed(call, rounds) for _ in range(REPEATS)]


def _elapsed(call: Call, rounds: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(rounds):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3 / rounds
