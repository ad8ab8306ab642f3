"""Convolutions to time: what the time of one depends on, and its random operands."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import conv_candidates, draw
from .aligned import aligned
from .candidates import Choice
from .conv_weight import SparseConvWeight, pack_conv2d
from .geometry import Geometry
from .seam import DTYPES
from .trials import kind


class ConvProblem(NamedTuple):
    """What the time of a convolution depends on."""

    batch: int
    height: int
    width: int
    channels: int
    features: int
    groups: int
    geometry: Geometry
    element: int
    out_type: int
    activation: int = 0
    bias: bool = False
    residual: bool = False
    scale: bool = False
    sparse: bool = True

    def key(self) -> str:
        """The problem as one word, for a file."""
        image = f"{self.batch}x{self.channels}x{self.height}x{self.width}"
        return f"{self.features}x{image} groups {self.groups}, {self.geometry} {kind(self)}"

    @property
    def result(self) -> tuple[int, int]:
        """Pixels and features of the result."""
        height, width = self.geometry.out(self.height, self.width)
        return self.batch * height * width, self.features

    @property
    def backends(self) -> tuple[str, ...]:
        """Who can compute it."""
        return "sparse24", "dense"

    def drawn(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """A random weight [out, in / groups, height, width] and x [batch, height, width, in]."""
        dtype = DTYPES[self.element]
        shape = (self.features, self.channels // self.groups, *self.geometry.kernel)
        weight = draw.kernel_2to4(shape, dtype, 0, device, dense=not self.sparse)
        pixels = self.batch * self.height * self.width
        x = aligned(draw.operand(pixels, self.channels, dtype, 2, device), self.channels)
        return weight, x.view(self.batch, self.height, self.width, self.channels)

    def packed(self, weight: Tensor) -> SparseConvWeight:
        """The weight for our kernels."""
        return pack_conv2d(weight, self.groups, self.sparse)

    def run(self, choice: Choice, *operands: Any) -> Tensor:
        """The result by one candidate."""
        return conv_candidates.run(choice, *operands, self.geometry)
