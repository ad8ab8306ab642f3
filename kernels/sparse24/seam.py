"""The numbers that torch and CUDA agree on: those of csrc/gemm.h."""

from typing import NamedTuple

import torch

TYPES: dict[torch.dtype, int] = {
    torch.float16: 0,
    torch.bfloat16: 1,
    torch.int8: 2,
    torch.float8_e4m3fn: 3,
    torch.float32: 4,
    torch.int32: 5,
}
DTYPES: dict[int, torch.dtype] = {number: dtype for dtype, number in TYPES.items()}
ELEMENTS = (torch.float16, torch.bfloat16, torch.int8, torch.float8_e4m3fn)  # of x and the weight

ACTIVATIONS: dict[str | None, int] = {None: 0, "relu": 1, "gelu_tanh": 2, "gelu": 3}

# What a product of each element type may come out as. int32: the bare sums, no epilogue.
OUTPUTS: dict[torch.dtype, tuple[torch.dtype, ...]] = {
    torch.float16: (torch.float16, torch.bfloat16, torch.float32),
    torch.bfloat16: (torch.bfloat16, torch.float16, torch.float32),
    torch.int8: (torch.float16, torch.bfloat16, torch.float32, torch.int8, torch.int32),
    torch.float8_e4m3fn: (torch.bfloat16, torch.float16, torch.float32),
}


class Plan(NamedTuple):
    """A tile of csrc/config.h and how it is laid over the problem."""

    tile: int
    cluster_m: int = 1
    cluster_n: int = 1
    raster: int = 1

    def number(self) -> int:
        """The plan as the op takes it."""
        return self.tile | self.cluster_m << 8 | self.cluster_n << 16 | self.raster << 24

    @classmethod
    def of(cls, number: int) -> "Plan":
        """The inverse of `number`."""
        return cls(number & 255, number >> 8 & 255, number >> 16 & 255, number >> 24)


# in place of a plan's number
COST_MODEL = -1  # csrc/config.h chooses
SM80 = -2  # the Ampere kernel, which also runs on later cards


def pitch(columns: int, dtype: torch.dtype) -> int:
    """Elements from one row to the next of what the kernels read and write: 16 bytes' multiple."""
    step = 16 // dtype.itemsize
    return -(-columns // step) * step
