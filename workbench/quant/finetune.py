"""Quantization-aware training: rounded values forwards, straight through backwards in range."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from workbench.quant.calibrate import ONE
from workbench.quant.convert import Quantized
from workbench.quant.intercept import Call, Interception, as_answered
from workbench.quant.layers import LEVELS, QuantError, layers, spread, weights_of
from workbench.quant.recurrent import unrolled
from workbench.quant.simulate import softmax

RATIO = "int8_ratio"  # learned ratios are parameters of the model of this name and a number
EDGE = LEVELS * (1 + 1e-6)  # the largest weight of a channel is at 127, give or take a rounding
FIXED = (".hidden", ".weights")  # sites whose range is known


class Finetuning(Interception):
    """The model with rounded weights and activations while the block trains it.

    Scales stay as calibration found them, those of weights too, or are learned: with the gradient
    of LSQ (Esser et al. 2020), and a step of the range, 127 scales, as in PACT (Choi et al. 2018).
    LSQ's own step, of the scale and divided by the root of the values it scales, is made for few
    bits: at 8 it moved a scale below zero within 44 steps. What is learned is the ratio to the
    calibrated range, with the gradient that gives SGD the same steps; Adam, whose steps know no
    size of gradient, then moves every range by the same share. The ratios are parameters of the
    model until `scales` takes them off.
    """

    def __init__(self, model: nn.Module, start: Quantized, learned: bool) -> None:
        """Scales are those of `start`."""
        super().__init__(model, start)
        device = next(model.parameters()).device
        given = {site: torch.tensor(scale) for site, scale in start.input_scales.items()}
        self._start = {name: value.to(device) for name, value in (given | start.scales).items()}
        self._ratios: dict[str, nn.Parameter] = {}
        for name, scale in self._start.items() if learned else ():
            if not name.endswith(FIXED):
                self._ratios[name] = nn.Parameter(torch.ones_like(scale))
                model.register_parameter(f"{RATIO}{len(self._ratios)}", self._ratios[name])

    def scales(self) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Ranges by site and scales by weight at the end of training; the model is plain again."""
        for number in range(len(self._ratios)):
            delattr(self.model, f"{RATIO}{number + 1}")
        ratios = {name: ratio.detach() for name, ratio in self._ratios.items()}
        if bad := [n for n, r in ratios.items() if not (r.isfinite() & (r > 0)).all()]:
            raise QuantError(
                f"the learned scales of {', '.join(bad)} are negative or not finite; lower "
                "quantize.finetune.lr_share, or use scales: frozen"
            )
        ends = {name: scale * ratios.get(name, 1.0) for name, scale in self._start.items()}
        weights = {
            parameter: ends.pop(parameter)
            for name, module in layers(self.model).items()
            for parameter in weights_of(name, module)
            if parameter in ends
        }
        ranges = {
            site: ONE if site.endswith(FIXED) else scale.item() * LEVELS
            for site, scale in ends.items()
        }
        return ranges, weights

    def activation(self, site: str, values: Tensor) -> Tensor:
        """The activation rounded, in its own type."""
        if site not in self._start:
            return values
        return rounded(values.float(), self._scale(site)).to(values.dtype)

    def layer(self, name: str, parameter: str, call: Call, *operands: Tensor | None) -> Tensor:
        """The layer with its input and its weight rounded."""
        values, weight, bias = operands
        if parameter not in self._start:
            return call(values, weight, bias)
        return call(self.activation(name, values), self._weight(name, parameter, weight), bias)

    def recurrent(self, name: str, kind: str, call: Callable[..., Any], arguments: tuple) -> Any:
        """The layer step by step, inputs, hidden states and weights rounded."""
        if name not in self._start:
            return call(*arguments)
        ready: dict[int, Tensor] = {}

        def matmul(own: bool, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            if id(weight) not in ready:  # rounded once for all steps
                ready[id(weight)] = self._weight(name, self._owners[id(weight)][1], weight)
            values = self.activation(name if own else f"{name}.hidden", values)
            return nn.functional.linear(values, ready[id(weight)], bias)

        return as_answered(unrolled(kind, arguments, matmul), arguments[0])

    def attention(self, site: str, call: Callable[..., Tensor], arguments: dict) -> Tensor:
        """Attention with rounded operands of its two products."""
        query, key, value = (
            self.activation(f"{site}.{name}", arguments[name]) for name in ("query", "key", "value")
        )
        weights = softmax(query @ key.transpose(-2, -1), query, arguments)
        return self.activation(f"{site}.weights", weights).to(value.dtype) @ value

    def _weight(self, name: str, parameter: str, weight: Tensor) -> Tensor:
        scale = spread(self.layers[name], self._scale(parameter), weight)
        return rounded(weight.float(), scale)

    def _scale(self, name: str) -> Tensor:
        start = self._start[name]
        if name not in self._ratios:
            return start
        ratio = self._ratios[name] * 1.0  # not the parameter itself, whose hook would stay
        if ratio.requires_grad:
            # ratio = range / first: a step of the ratio with this gradient is one of the range
            first = torch.where(start > 0, start * LEVELS, 1.0)
            ratio.register_hook(lambda gradient: gradient / first**2)
        return start * ratio


def rounded(values: Tensor, scale: Tensor) -> Tensor:
    """Values on the grid of the scale; the gradient passes inside of +-127 scale, and is 0 beyond.

    Where the scale wants a gradient it gets LSQ's: the rounding error inside, +-127 beyond.
    """
    inside = values / torch.where(scale > 0, scale, 1.0)
    inside = torch.where(inside.abs() <= EDGE, inside, LEVELS * inside.detach().sign())
    return (inside + (inside.round() - inside).detach()) * scale
