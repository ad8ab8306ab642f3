"""2:4 sparse matrix products: packed weights, fused epilogues, honest dispatch."""

from .gradients import weight_gradient
from .layout import PackError
from .linear import LinearError, linear
from .scales import Scales
from .weight import SparseWeight, pack

__all__ = [
    "LinearError",
    "PackError",
    "Scales",
    "SparseWeight",
    "linear",
    "pack",
    "weight_gradient",
]
