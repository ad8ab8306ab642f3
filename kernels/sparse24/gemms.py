"""The GEMM benchmark: `python -m sparse24.gemms SHAPES.csv OUT.json`, with torch alone.

For each shape (m out, n tokens, k in) and type: the dense library, cuSPARSELt by its best
algorithm, and ours by its best plan, by the cost model's and in dense mode, each with the same
result: row-major, with bias in 16 bits, dequantized per channel to float16 from int8. What is
measured is written after each shape, so a run that was cut off goes on where it stopped.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from . import bench, sweeps
from .seam import DTYPES as DTYPES_OF
from .seam import TYPES
from .trials import Problem, Trial

DTYPES = ("float16", "int8", "float8_e4m3fn")


def problems(m: int, n: int, k: int, dtype: str) -> dict[str, tuple[Problem, tuple[str, ...]]]:
    """What is measured of a shape, by name: a problem and the backends that are asked."""
    kind = getattr(torch, dtype)
    element, half = TYPES[kind], TYPES[torch.float16]
    full = Problem(n, m, k, element, half)
    full = full._replace(scale=True) if dtype == "int8" else full
    full = full._replace(bias=True) if kind.itemsize == 2 else full
    asked = {
        "same result": (full, ("sparse24", "cusparselt", "dense")),
        "dense mode": (full._replace(sparse=False), ("sparse24",)),
        "untuned": (full, ("sparse24",)),
    }
    if dtype == "int8":  # the library's own result, int32 and nothing behind it
        asked["bare sums"] = (Problem(n, m, k, element, TYPES[torch.int32]), ("dense",))
    return asked


LIBRARY = {
    "float16": "F.linear (cuBLAS)",
    "bfloat16": "F.linear (cuBLAS)",
    "int8": "torch._int_mm, dequantized by torch",
    "float8_e4m3fn": "torch._scaled_mm",
}


def row(m: int, n: int, k: int, dtype: str, device: torch.device) -> dict[str, Any]:
    """The times of one shape and type, in microseconds with their spread, and the clock."""
    asked = problems(m, n, k, dtype)
    return {"m": m, "n": n, "k": k, "dtype": dtype} | sweeps.measured(asked, device, _label)


def sweep(
    shapes: list[tuple[int, int, int]], dtypes: tuple[str, ...], out: Path, about: dict[str, Any]
) -> dict[str, Any]:
    """Measure what the file does not hold yet, of the same device and kernels, and return it."""
    keys = [(*shape, dtype) for shape in shapes for dtype in dtypes]
    named = ("m", "n", "k", "dtype")
    return sweeps.sweep("GEMMs, 2:4 and dense, microseconds", keys, named, row, out, about)


def shapes_of(path: Path, only: list[str]) -> list[tuple[int, int, int]]:
    """The shapes of a csv file with the columns group, m, n, k; of some groups only, if named."""
    rows = sweeps.rows_of(path, only)
    return list(dict.fromkeys((int(r["m"]), int(r["n"]), int(r["k"])) for r in rows))


def _label(name: str, problem: Problem, trial: Trial) -> str:
    backend = trial.choice.backend
    if backend == "dense":
        dtype = str(DTYPES_OF[problem.element]).removeprefix("torch.")
        return "torch._int_mm, int32 sums" if name == "bare sums" else LIBRARY[dtype]
    if backend == "cusparselt":
        return "cusparselt"
    return sweeps.OURS[name]


def main() -> None:
    """Measure the shapes of a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", action="append", default=[], help="a group; repeatable")
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    given = parser.parse_args()
    bench.require_gpu()
    sweep(shapes_of(given.shapes, given.only), tuple(given.dtypes.split(",")), given.out, {})


if __name__ == "__main__":
    main()
