"""The commands about the kernels' speed: bench, on a GPU, and bench-table, from what it wrote."""

import argparse
from pathlib import Path

from workbench import dag
from workbench.cli import arguments as shared
from workbench.cli import networks

BENCHMARKS = ("gemm", "conv", "throughput", "network")


def register(commands: shared.Commands) -> None:
    """Add bench and bench-table."""
    added = shared.add(
        commands, "bench", _bench, "time the kernels on this GPU, beside the best libraries"
    )
    added.add_argument("what", choices=BENCHMARKS)
    added.add_argument("--only", action="append", default=[], help="a group of shapes; repeatable")
    added.add_argument(
        "--dtypes", default="", help="as float16,int8 (of network: fp16,int8); else all"
    )
    added.add_argument(
        "--batch", default="", help="of network, as 256,1, in this order; else all of the plan"
    )
    added.add_argument(
        "--candidates",
        default="",
        help="of network, as 'sparse24 fp16,compiled fp16', in this order; else all",
    )
    shared.add_scale(added, default="lite")

    added = shared.add(
        commands, "bench-table", _bench_table, "the table and the plot of a benchmark"
    )
    added.add_argument("what", choices=BENCHMARKS)
    shared.add_scale(added, default="lite")


def _bench(arguments: argparse.Namespace) -> None:
    from workbench import bench

    out = Path(dag.RESULTS, arguments.scale, "measurements", f"{arguments.what}.json")
    if arguments.what == "gemm":
        bench.gemm(out, arguments.only, arguments.dtypes)
    elif arguments.what == "conv":
        bench.conv(out, arguments.only, arguments.dtypes)
    elif arguments.what == "network":
        networks.bench_network(arguments, out)
    else:
        bench.throughput(out)


def _bench_table(arguments: argparse.Namespace) -> None:
    from workbench import report

    report.bench_table(arguments.what, arguments.scale)
