"""Speed of the kernels: shapes from experiments/bench, measured on a GPU, written as one file."""

from pathlib import Path

from workbench import provenance
from workbench.resolve import EXPERIMENTS


def gemm(out: Path, only: list[str], dtypes: str) -> None:
    """Measure the shapes of experiments/bench/gemm.csv; BenchError without a GPU."""
    from sparse24 import bench, gemms

    bench.require_gpu()
    shapes = gemms.shapes_of(EXPERIMENTS / "bench" / "gemm.csv", only)
    told = gemms.sweep(shapes, tuple(dtypes.split(",")), out, provenance.git())
    print(f"{out}: {len(told['rows'])} rows")
