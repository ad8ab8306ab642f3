"""Layers with packed weights: SparseLinear and SparseConv2d."""

from collections.abc import Callable, Mapping
from typing import Any, Self

from torch import Tensor, nn

from .conv_weight import SparseConvWeight, pack_conv2d
from .convolution import conv2d
from .geometry import Geometry
from .layout import PackError
from .linear import linear
from .reference import activated
from .seam import ACTIVATIONS
from .weight import PackedWeight, pack


class PackedLayer(nn.Module):
    """What layers with a packed weight share: in a state dict `packed`, `header` and `bias`."""

    def __init__(
        self, weight: PackedWeight, bias: Tensor | None = None, activation: str | None = None
    ) -> None:
        """Takes the weight as it is; `activation` is computed in the same kernel."""
        super().__init__()
        self.activation = activation
        self.register_buffer("packed", weight.packed)
        self.register_buffer("header", weight.header())
        self.bias = None if bias is None else nn.Parameter(bias.detach(), bias.requires_grad)
        self._weight = weight

    @property
    def weight(self) -> PackedWeight:
        """The packed weight."""
        return self._weight

    def extra_repr(self) -> str:
        """The weight's text."""
        after = f", activation={self.activation!r}" if self.activation else ""
        return f"{self._weight!r}, bias={self.bias is not None}{after}"

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Self:
        super()._apply(fn, *args, **kwargs)
        self._follow()
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any
    ) -> None:
        given = state_dict.get(prefix + "header")
        if given is not None:
            told, own = map(self._weight.read_header, (given, self._weight.header()))
            if told != own:
                raise PackError(f"{prefix}header says {told}; this layer's weight is {own}")
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._follow()

    def _follow(self) -> None:
        """Buffers may have been moved or replaced: the weight is what they hold now."""
        if self._weight.packed is not self.packed:
            self._weight = self._weight.of(self.packed)


class SparseLinear(PackedLayer):
    """A Linear whose weight is packed."""

    @classmethod
    def of(cls, layer: nn.Linear) -> Self:
        """The packed form of a 2:4 Linear; PackError if it is not 2:4."""
        return cls(pack(layer.weight), layer.bias).train(layer.training)

    @property
    def in_features(self) -> int:
        """Size of the input's last dimension."""
        return self._weight.in_features

    @property
    def out_features(self) -> int:
        """Size of the result's last dimension."""
        return self._weight.out_features

    def forward(self, x: Tensor) -> Tensor:
        """activation(x @ weight^T + bias), [..., out]."""
        return linear(x, self._weight, self.bias, self.activation)

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
    ) -> None:
        """Takes the weight as it is, groups and kernel with it; GeometryError for the rest."""
        super().__init__(weight, bias, activation)
        self.geometry = Geometry.of(weight.kernel, stride, padding, dilation)

    @classmethod
    def of(cls, layer: nn.Conv2d, activation: str | None = None) -> Self:
        """The packed form of a Conv2d; PackError or GeometryError says why there is none."""
        if layer.padding_mode != "zeros":
            raise PackError(f"its padding is {layer.padding_mode}, ours of zeros: keep it dense")
        walk = layer.stride, layer.padding, layer.dilation
        Geometry.of(layer.kernel_size, *walk)  # before the weight, which takes longer
        weight = pack_conv2d(layer.weight, layer.groups)
        return cls(weight, layer.bias, *walk, activation).train(layer.training)

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self._weight.in_channels

    @property
    def out_channels(self) -> int:
        """Channels of the result."""
        return self._weight.out_channels

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """activation(convolution + bias + residual), [batch, out, height, width].

        A residual that is broadcast or of another type is added by torch.
        """
        _, *walk = self.geometry
        w, activation = self._weight, self.activation
        shape = x.shape[0], w.out_channels, *self.geometry.out(*x.shape[2:])
        if residual is None or (residual.shape == shape and residual.dtype == x.dtype):
            return conv2d(x, w, self.bias, *walk, activation=activation, residual=residual)
        total = conv2d(x, w, self.bias, *walk) + residual
        return activated(total, ACTIVATIONS[activation])

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
