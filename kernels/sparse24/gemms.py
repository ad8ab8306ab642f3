"""The GEMM benchmark: `python -m sparse24.gemms SHAPES.csv OUT.json`, with torch alone.

For each shape (m out, n tokens, k in) and type: the dense library, cuSPARSELt by its best
algorithm, and ours by its best plan, by the cost model's and in dense mode, each with the same
result: row-major, with bias in 16 bits, dequantized per channel to float16 from int8.
"""

from typing import NamedTuple

import torch

from . import sweeps
from .seam import DTYPES, TYPES
from .trials import Asked, Problem, Trial


class Shape(NamedTuple):
    """Features out, tokens, features in."""

    m: int
    n: int
    k: int


def problems(shape: Shape, dtype: str) -> dict[str, Asked]:
    """What is measured of a shape, by name."""
    m, n, k = shape
    kind = getattr(torch, dtype)
    element, half = TYPES[kind], TYPES[torch.float16]
    full = Problem(n, m, k, element, half)
    full = full._replace(scale=True) if dtype == "int8" else full
    full = full._replace(bias=True) if kind.itemsize == 2 else full
    asked = {
        "same result": Asked(full, ("sparse24", "cusparselt", "dense")),
        "dense mode": Asked(full._replace(sparse=False), ("sparse24",)),
        "untuned": Asked(full, ("sparse24",), plans=False),
    }
    if dtype == "int8":  # the library's own result, int32 and nothing behind it
        asked["bare sums"] = Asked(Problem(n, m, k, element, TYPES[torch.int32]), ("dense",))
    return asked


LIBRARY = {
    "float16": "F.linear (cuBLAS)",
    "bfloat16": "F.linear (cuBLAS)",
    "int8": "torch._int_mm, dequantized by torch",
    "float8_e4m3fn": "torch._scaled_mm",
}


def _label(name: str, problem: Problem, trial: Trial) -> str:
    backend = trial.choice.backend
    if backend == "dense":
        dtype = str(DTYPES[problem.element]).removeprefix("torch.")
        return "torch._int_mm, int32 sums" if name == "bare sums" else LIBRARY[dtype]
    if backend == "cusparselt":
        return "cusparselt"
    return sweeps.OURS[name]


BENCHMARK = sweeps.Benchmark(
    what="GEMMs, 2:4 and dense, microseconds",
    shape=Shape,
    dtypes=("float16", "int8", "float8_e4m3fn"),
    problems=problems,
    label=_label,
)

if __name__ == "__main__":
    BENCHMARK.main(__doc__)
