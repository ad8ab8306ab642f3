"""Layers with packed weights: SparseLinear and SparseConv2d."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from .conv_weight import SparseConvWeight, pack_conv2d
from .convolution import conv2d
from .geometry import Geometry
from .layout import PackError
from .linear import linear
from .packed_layer import PackedLayer, converted
from .scales import Scales
from .weight import pack


class SparseLinear(PackedLayer):
    """A Linear whose weight is packed."""

    @classmethod
    def of(
        cls,
        layer: nn.Linear,
        activation: str | None = None,
        dtype: torch.dtype | None = None,
        scales: Scales | None = None,
    ) -> Self:
        """The packed form of a 2:4 Linear; PackError if it is not 2:4.

        In another type if one is given; with scales in INT8, whose float results are of `dtype`.
        """
        weight, *rest = converted(layer, dtype, scales)
        return cls(pack(weight), rest[0], activation, *rest[1:]).train(layer.training)

    @property
    def in_features(self) -> int:
        """Size of the input's last dimension."""
        return self._weight.in_features

    @property
    def out_features(self) -> int:
        """Size of the result's last dimension."""
        return self._weight.out_features

    def _shape(self, x: Tensor) -> tuple[int, ...]:
        return *x.shape[:-1], self.out_features

    def _product(self, x: Tensor, *after: Any) -> Tensor:
        return linear(x, self._weight, self.bias, *after)

    def dense(self) -> nn.Linear:
        """The Linear that was packed."""
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None, "meta")
        layer.weight = nn.Parameter(self._weight.unpack(), requires_grad=False)
        layer.bias = self.bias
        return layer.train(self.training)


class SparseConv2d(PackedLayer):
    """A Conv2d whose weight is packed, with what follows it in the same kernel."""

    def __init__(
        self,
        weight: SparseConvWeight,
        bias: Tensor | None = None,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        activation: str | None = None,
        scales: Scales | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Takes the weight as it is, groups and kernel with it; GeometryError for the rest."""
        super().__init__(weight, bias, activation, scales, dtype)
        self.geometry = Geometry.of(weight.kernel, stride, padding, dilation)

    @classmethod
    def of(
        cls,
        layer: nn.Conv2d,
        activation: str | None = None,
        dtype: torch.dtype | None = None,
        scales: Scales | None = None,
    ) -> Self:
        """The packed form of a Conv2d; PackError or GeometryError says why there is none.

        Type and scales as of a SparseLinear.
        """
        if layer.padding_mode != "zeros":
            raise PackError(f"its padding is {layer.padding_mode}, ours of zeros: keep it dense")
        walk = layer.stride, layer.padding, layer.dilation
        Geometry.of(layer.kernel_size, *walk)  # before the weight, which takes longer
        weight, *rest = converted(layer, dtype, scales)
        packed = pack_conv2d(weight, layer.groups)
        return cls(packed, rest[0], *walk, activation, *rest[1:]).train(layer.training)

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self._weight.in_channels

    @property
    def out_channels(self) -> int:
        """Channels of the result."""
        return self._weight.out_channels

    def _shape(self, x: Tensor) -> tuple[int, ...]:
        return x.shape[0], self.out_channels, *self.geometry.out(*x.shape[2:])

    def _product(self, x: Tensor, *after: Any) -> Tensor:
        _, *walk = self.geometry
        return conv2d(x, self._weight, self.bias, *walk, None, *after)

    def dense(self) -> nn.Conv2d:
        """The Conv2d that was packed, without the activation."""
        w = self._weight
        layer = nn.Conv2d(
            w.in_channels,
            w.out_channels,
            *self.geometry,
            groups=w.groups,
            bias=self.bias is not None,
            device="meta",
        )
        layer.weight = nn.Parameter(w.unpack(), requires_grad=False)
        layer.bias = self.bias
        return layer.train(self.training)

    def extra_repr(self) -> str:
        """The weight's text and the geometry."""
        return f"{super().extra_repr()}, {self.geometry}, groups={self._weight.groups}"
