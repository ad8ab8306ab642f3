"""Speed of the kernels: measured on a GPU, each benchmark written as one file of JSON."""

import json
from pathlib import Path

from workbench import provenance
from workbench.files import write_text
from workbench.resolve import EXPERIMENTS


def gemm(out: Path, only: list[str], dtypes: str) -> None:
    """Measure the shapes of experiments/bench/gemm.csv; BenchError without a GPU."""
    from sparse24 import gemms

    _sweep(gemms.BENCHMARK, "gemm.csv", out, only, dtypes)


def conv(out: Path, only: list[str], dtypes: str) -> None:
    """Measure the shapes of experiments/bench/conv.csv; BenchError without a GPU."""
    from sparse24 import convs

    _sweep(convs.BENCHMARK, "conv.csv", out, only, dtypes)


def throughput(out: Path) -> None:
    """Measure the talk's table of tensor-core throughput; BenchError without a GPU."""
    import torch

    from sparse24 import bench, throughput

    bench.require_gpu()
    device = torch.device("cuda", torch.cuda.current_device())
    told = {
        "what": f"products of {throughput.SIDE}^3 by type, TFLOP/s of the dense-equivalent work",
        "facts": bench.facts(),
        "about": provenance.git(),
        "rows": throughput.rows(device),
    }
    write_text(out, json.dumps(told, indent=1) + "\n")


def _sweep(benchmark, shapes: str, out: Path, only: list[str], dtypes: str) -> None:  # noqa: ANN001
    from sparse24 import bench

    bench.require_gpu()
    chosen = benchmark.shapes_of(EXPERIMENTS / "bench" / shapes, only)
    kinds = dtypes.split(",") if dtypes else benchmark.dtypes
    told = benchmark.sweep(chosen, kinds, out, provenance.git())
    print(f"{out}: {len(told['rows'])} rows")
