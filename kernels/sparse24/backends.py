"""Which kernels a device has: those of csrc, compiled at first use, or the reference."""

import torch

from . import build

KERNELS = {9: "sm90", 8: "sm80"}  # by major compute capability


def of(device: torch.device) -> str:
    """sm90 or sm80, their library loaded; reference for the CPU and cards that csrc is not for."""
    if device.type != "cuda":
        return "reference"
    major, minor = torch.cuda.get_device_capability(device)
    if major not in KERNELS or (major == 9 and minor != 0):
        return "reference"
    build.load()
    return KERNELS[major]
