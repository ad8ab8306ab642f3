"""Speed on a GPU: of the kernels and of whole networks, each benchmark one file of JSON."""

from workbench.bench.kernels import conv, gemm, throughput

__all__ = ["conv", "gemm", "throughput"]
