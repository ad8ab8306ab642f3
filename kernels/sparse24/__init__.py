"""2:4 sparse matrix products: packed weights, fused epilogues, honest dispatch."""

from .bench import BenchError
from .build import BuildError
from .dispatch import backend, tune, why
from .gradients import weight_gradient
from .layout import PackError
from .linear import LinearError, linear
from .nn import SparseLinear, swap
from .scales import Scales
from .weight import SparseWeight, pack

__all__ = [
    "BenchError",
    "BuildError",
    "LinearError",
    "PackError",
    "Scales",
    "SparseLinear",
    "SparseWeight",
    "backend",
    "linear",
    "pack",
    "swap",
    "tune",
    "weight_gradient",
    "why",
]
