"""PackedLayer: what layers with a packed weight share, INT8 ones too."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from .layout import PackError
from .reference import activated
from .rounding import from_int8, to_int8, to_integers
from .scales import Scales
from .seam import ACTIVATIONS, OUTPUTS
from .weight import PackedWeight


class PackedLayer(nn.Module, ABC):
    """What layers with a packed weight share: in a state dict `packed`, `header` and `bias`.

    With `scales` it is an INT8 layer: it rounds its input unless that is int8 already; its result
    is of `dtype`, or int8 after `emit`, and so its residual. In a state dict it has `steps` too.
    """

    def __init__(
        self,
        weight: PackedWeight,
        bias: Tensor | None = None,
        activation: str | None = None,
        scales: Scales | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Takes the weight as it is; `activation` is computed in the same kernel."""
        super().__init__()
        self.activation = activation
        self.scales, self.dtype = scales, dtype or OUTPUTS[weight.dtype][0]
        self.call_scales: Scales | None = None  # of a call, which has no step of a float residual
        self.register_buffer("packed", weight.packed)
        self.register_buffer("header", weight.header())
        self.bias = None if bias is None else nn.Parameter(bias.detach(), bias.requires_grad)
        self._weight = weight
        if scales is not None:
            bits = scales.bits(self.dtype).to(weight.device)
            self.register_buffer("steps", bits)
            self._prepare()

    @property
    def weight(self) -> PackedWeight:
        """The packed weight."""
        return self._weight

    def emit(self, step: float | None) -> None:
        """Of an INT8 layer: give int8 results of this step from now on, or with None float ones."""
        self.scales = replace(self.scales, out=step)
        self.steps = self.scales.bits(self.dtype).to(self._weight.device)
        self._prepare()

    def extra_repr(self) -> str:
        """The weight's text."""
        after = f", activation={self.activation!r}" if self.activation else ""
        if self.scales is not None:
            after += f", result={'float' if self.scales.out is None else 'int8'}"
        return f"{self._weight!r}, bias={self.bias is not None}{after}"

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """activation(product + bias + residual), [..., out] or [batch, out, height, width].

        A residual that is broadcast or of another type is added by torch.
        """
        x, other, result, scales = self._operands(x, residual)
        shape = self._shape(x)
        if other is not None and scales is not None:
            other = other.to(result).expand(shape)
        if other is None or (other.shape == shape and other.dtype == (result or x.dtype)):
            return self._product(x, self.activation, other, result, scales)
        return activated(self._product(x) + residual, ACTIVATIONS[self.activation])

    @abstractmethod
    def _shape(self, x: Tensor) -> tuple[int, ...]:
        """Of the result."""

    @abstractmethod
    def _product(
        self,
        x: Tensor,
        activation: str | None = None,
        residual: Tensor | None = None,
        out_dtype: torch.dtype | None = None,
        scales: Scales | None = None,
    ) -> Tensor:
        """The product and what the kernel computes behind it."""

    def _operands(
        self, x: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor | None, torch.dtype | None, Scales | None]:
        """Input and residual as the product takes them, the result's type and the scales."""
        if self.scales is None:
            return x, residual, None, None
        if x.dtype is not torch.int8:
            x = to_int8(x, self.reciprocal)
        if residual is not None and (residual.dtype is torch.int8) != (self.result is torch.int8):
            if self.result is torch.int8:
                residual = to_int8(residual, self.residual_reciprocal)
            else:
                residual = from_int8(residual, self.residual_step, self.result)
        return x, residual, self.result, self.call_scales

    def _prepare(self) -> None:
        """What each call of an INT8 layer takes, on the weight's device."""
        scales, device = self.scales, self._weight.device
        self.result = self.dtype if scales.out is None else torch.int8
        self.call_scales = scales if scales.out is not None else replace(scales, residual=None)
        step = scales.residual or 1.0
        self.residual_step = torch.tensor(step, device=device)
        self.residual_reciprocal = torch.tensor(1 / step, device=device)
        self.reciprocal = torch.tensor(1 / scales.x, device=device)
        self.call_scales.of_sums(
            self._weight.shape[0], device
        )  # made here, as in a graph it cannot be

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
        if self.scales is not None and prefix + "steps" in state_dict:
            self.scales, self.dtype = Scales.read(self.steps)
            self._prepare()

    def _follow(self) -> None:
        """Buffers may have been moved or replaced: the weight is what they hold now."""
        if self._weight.packed is not self.packed:
            moves = self._weight.device != self.packed.device
            self._weight = self._weight.of(self.packed)
            if moves and self.scales is not None:
                self._prepare()


def converted(
    layer: nn.Linear | nn.Conv2d, dtype: torch.dtype | None, scales: Scales | None
) -> tuple[Tensor, Tensor | None, Scales | None, torch.dtype | None]:
    """Weight and bias in the types asked for, and the scales and the type of a float result."""
    weight, bias = layer.weight.detach(), layer.bias
    if scales is not None:  # the bias is added in float32, and int8 has no gradients
        bias = None if bias is None else bias.detach().float().requires_grad_(False)
        return to_integers(weight, scales.weight), bias, scales, dtype
    if dtype is not None:
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    return weight, bias, None, dtype
