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

SCALES = "int8_scales"  # the parameters that learned scales are, while they are trained
FIXED = (".hidden", ".weights")  # sites whose range is known


class Finetuning(Interception):
    """The model with rounded weights and activations while the block trains it.

    Scales stay as calibration found them, or, learned, are parameters of the model until `scales`
    takes them off (LSQ, Esser et al. 2020: the gradient of a scale is divided by the root of 127
    times the number of values it scales). Weights keep their scale too, so a weight cannot leave
    its range; its gradient is cut off beyond.
    """

    def __init__(self, model: nn.Module, start: Quantized, learned: bool) -> None:
        """Scales are those of `start`."""
        super().__init__(model, start)
        device = next(model.parameters()).device
        given = {site: torch.tensor(scale) for site, scale in start.input_scales.items()}
        given = {name: value.to(device) for name, value in (given | start.scales).items()}
        self.learned = learned
        self.free = [name for name in given if not name.endswith(FIXED)] if learned else []
        self._scales: dict[str, Tensor] = given
        if learned:
            parameters = nn.ParameterList(given[name].clone() for name in self.free)
            model.register_module(SCALES, parameters)
            self._scales |= dict(zip(self.free, parameters, strict=True))

    def scales(self) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Ranges by site and scales by weight at the end of training; the model is plain again."""
        if self.learned:
            delattr(self.model, SCALES)
        bad = [n for n, s in self._scales.items() if not (s.isfinite() & (s >= 0)).all()]
        if bad:
            raise QuantError(
                f"the learned scales of {', '.join(bad)} are negative or not finite; lower "
                "quantize.finetune.lr_share, or use scales: frozen"
            )
        weights = {
            parameter: self._scales[parameter].detach()
            for name, module in layers(self.model).items()
            for parameter in weights_of(name, module)
            if parameter in self._scales
        }
        sites = self._scales.keys() - weights.keys()
        return {
            s: ONE if s.endswith(FIXED) else float(self._scales[s]) * LEVELS for s in sites
        }, weights

    def activation(self, site: str, values: Tensor) -> Tensor:
        """The activation rounded, in its own type."""
        if site not in self._scales:
            return values
        features = values.numel() / max(1, len(values))
        scale = self._scale(site, features)
        return rounded(values.float(), scale).to(values.dtype)

    def layer(self, name: str, parameter: str, call: Call, *operands: Tensor | None) -> Tensor:
        """The layer with its input and its weight rounded."""
        values, weight, bias = operands
        if parameter not in self._scales:
            return call(values, weight, bias)
        return call(self.activation(name, values), self._weight(name, parameter, weight), bias)

    def recurrent(self, name: str, kind: str, call: Callable[..., Any], arguments: tuple) -> Any:
        """The layer step by step, inputs, hidden states and weights rounded."""
        if name not in self._scales:
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
        scale = self._scale(parameter, weight.numel() / len(self._scales[parameter]))
        return rounded(weight.float(), spread(self.layers[name], scale, weight))

    def _scale(self, name: str, values: float) -> Tensor:
        scale = self._scales[name]
        if name not in self.free:
            return scale
        share = (values * LEVELS) ** -0.5
        return (scale - scale * share).detach() + scale * share


def rounded(values: Tensor, scale: Tensor) -> Tensor:
    """Values on the grid of the scale; the gradient passes inside of +-127 scale, and is 0 beyond.

    Where the scale wants a gradient it gets LSQ's: the rounding error inside, +-127 beyond.
    """
    inside = (values / torch.where(scale > 0, scale, 1.0)).clamp(-LEVELS, LEVELS)
    return (inside + (inside.round() - inside).detach()) * scale
