"""2:4 sparse matrix products: packed weights, fused epilogues, honest dispatch."""

from .bench import BenchError
from .build import BuildError
from .conv_weight import SparseConvWeight, pack_conv2d
from .convolution import ConvError, conv2d
from .dispatch import tune, tune_conv2d
from .explain import backend, why
from .geometry import GeometryError
from .gradients import weight_gradient
from .graphs import GraphError, Graphs
from .int8 import calibrate
from .layout import PackError
from .linear import LinearError, linear
from .nn import SparseConv2d, SparseLinear
from .scales import Scales
from .swap import swap
from .table import Table
from .weight import SparseWeight, pack

__all__ = [
    "BenchError",
    "BuildError",
    "ConvError",
    "GeometryError",
    "GraphError",
    "Graphs",
    "LinearError",
    "PackError",
    "Scales",
    "SparseConv2d",
    "SparseConvWeight",
    "SparseLinear",
    "SparseWeight",
    "Table",
    "backend",
    "calibrate",
    "conv2d",
    "linear",
    "pack",
    "pack_conv2d",
    "swap",
    "tune",
    "tune_conv2d",
    "weight_gradient",
    "why",
]
