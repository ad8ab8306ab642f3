"""SparseConvWeight: a convolution's 2:4 weight, packed as the matrix of conv_layout.py."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import conv_layout, layout
from .seam import DTYPES
from .weight import PackedWeight, SparseWeight, header_values, pack


class Form(NamedTuple):
    """What the ops must know of a convolution's packed weight."""

    features: int
    channels: int  # of a super-group
    groups: int  # super-groups
    element: int
    sparse: bool
    backend: str


class SparseConvWeight(PackedWeight):
    """A weight [out, in / groups, height, width], 2:4 along its channels; made by `pack_conv2d`."""

    def __init__(
        self,
        packed: Tensor,
        shape: tuple[int, int, int, int],
        groups: int,
        dtype: torch.dtype,
        sparse: bool = True,
    ) -> None:
        """Refuses bytes that cannot be this weight, with PackError."""
        columns = conv_layout.columns(shape, groups, dtype)
        # the same bytes as a product's weight, which a pointwise convolution is
        self.matrix = SparseWeight(packed, (shape[0], columns), dtype, sparse)
        super().__init__(packed, dtype, sparse, shape, groups, dtype, sparse)
        self.shape = torch.Size(shape)
        self.groups = groups
        self.out_channels, channels, *kernel = shape
        self.in_channels = channels * groups
        self.kernel = tuple(kernel)
        merge = conv_layout.merge(self.out_channels, channels, groups, dtype)
        self.super_groups = groups // merge  # the groups that the kernel sees
        numbers = self.super_groups, self.element, sparse, self.backend
        self.form = Form(self.out_channels, channels * merge, *numbers)

    def unpack(self) -> Tensor:
        """The dense weight that was packed, -0.0 read back as 0."""
        return conv_layout.weight(self.matrix.unpack(), tuple(self.shape), self.groups)

    def header(self) -> Tensor:
        """int64 [version, out, in / groups, height, width, groups, element, sparse]."""
        values = [layout.VERSION, *self.shape, self.groups, self.element, int(self.sparse)]
        return torch.tensor(values, dtype=torch.int64)

    @staticmethod
    def read_header(
        values: Tensor,
    ) -> tuple[tuple[int, int, int, int], int, torch.dtype, bool]:
        """Shape, groups, type and whether sparse."""
        *shape, groups, element, sparse = header_values(values, 8)
        return tuple(shape), groups, DTYPES[element], bool(sparse)


def pack_conv2d(weight: Tensor, groups: int = 1, sparse: bool = True) -> SparseConvWeight:
    """The packed copy of a dense weight [out, in / groups, height, width] on its device.

    2:4 along the channels of a group, whose number is a multiple of four; several groups: of a
    number that divides a block (64 channels of 16 bits, 128 of 8) or is a multiple of it. PackError
    says what is refused and why: depthwise, other groups, what is not 2:4, NaN or infinite.
    `sparse=False`: dense blocks, of any weight.
    """
    if not isinstance(weight, Tensor):
        raise layout.PackError(f"the weight is {type(weight).__name__}; give a torch.Tensor")
    conv_layout.refuse(weight, groups)
    conv_layout.refuse_values(weight, sparse)
    packed = pack(conv_layout.matrix(weight, groups), sparse).packed
    return SparseConvWeight(packed, tuple(weight.shape), groups, weight.dtype, sparse)
