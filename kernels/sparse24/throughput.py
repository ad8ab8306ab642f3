"""The talk's table of tensor-core throughput, measured: one large product for each type."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from . import bench, candidates, draw
from .candidates import Choice
from .seam import TYPES
from .trials import Problem, trials

SIDE = 8192  # of the square product


@contextmanager
def _matmul(**flags: bool) -> Iterator[None]:
    """Flags of torch.backends.cuda.matmul for as long as the context lasts."""
    before = {name: getattr(torch.backends.cuda.matmul, name) for name in flags}
    for name, value in flags.items():
        setattr(torch.backends.cuda.matmul, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(torch.backends.cuda.matmul, name, value)


def rows(device: torch.device, timer: bench.Timer = bench.graph_time) -> list[dict[str, Any]]:
    """TFLOP/s (TOP/s) of each pair of operand and accumulator, dense and 2:4, as in the talk.

    Dense by the library, as FFMA for float32 without TF32; 2:4 by our best plan, of the
    dense-equivalent work. None where torch or these kernels have no such product.
    """
    found = []
    for name, accumulator, dtype, flags in (
        ("FP32", "FP32", torch.float32, {"allow_tf32": False}),
        ("TF32", "FP32", torch.float32, {"allow_tf32": True}),
        ("FP16", "FP32", torch.float16, {}),
        ("BF16", "FP32", torch.bfloat16, {}),
        ("FP16", "FP16", torch.float16, {"allow_fp16_accumulation": True}),
        ("INT8", "INT32", torch.int8, {}),
        ("E4M3", "FP32", torch.float8_e4m3fn, {}),
    ):
        sparse = dtype in TYPES and accumulator != "FP16" and dtype != torch.float32
        with _matmul(**flags):
            dense = _rate(timer([_dense(dtype, device, seed) for seed in range(2)]).median_us)
        found.append(
            {
                "input_operands": name,
                "accumulator": accumulator,
                "dense_tops": dense,
                "sparse_tops": _sparse(dtype, device, timer) if sparse else None,
            }
        )
    return found


def _dense(dtype: torch.dtype, device: torch.device, seed: int) -> Callable[[], Tensor]:
    x = draw.operand(SIDE, SIDE, dtype, seed, device)
    weight = draw.operand(SIDE, SIDE, dtype, seed + 2, device)
    if dtype == torch.float32:
        return lambda: torch.mm(x, weight.T)
    out = TYPES[torch.int32] if dtype == torch.int8 else TYPES[_half(dtype)]
    return lambda: candidates.run(
        Choice("dense"), x, None, weight, (None, None, None, out, 0, 1.0, 1.0)
    )


def _sparse(dtype: torch.dtype, device: torch.device, timer: bench.Timer) -> float | None:
    out = torch.int32 if dtype == torch.int8 else _half(dtype)
    problem = Problem(SIDE, SIDE, SIDE, TYPES[dtype], TYPES[out])
    (trial,) = trials(problem, device, timer, ("sparse24",))
    return _rate(trial.timing.median_us) if trial.timing else None


def _half(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype.itemsize == 2 else torch.float16


def _rate(microseconds: float) -> float:
    return 2 * SIDE**3 / microseconds / 1e6
