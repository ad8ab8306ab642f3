"""Conversion to INT8: weights per output channel, activations per tensor, zeros kept exactly."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workbench.quant.calibrate import layers
from workbench.sparsity import is_nm

LEVELS = 127  # symmetric and narrow: -127..127


@dataclass(frozen=True)
class Quantized:
    """Integers and scales of every converted layer, and the rest of the network as it was."""

    weights: dict[str, Tensor]
    scales: dict[str, Tensor]
    input_scales: dict[str, float]
    rest: dict[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """All as named tensors: `<layer>.weight` int8, `.weight_scale`, `.input_scale`."""
        named = {f"{name}.weight": value for name, value in self.weights.items()}
        named |= {f"{name}.weight_scale": value for name, value in self.scales.items()}
        named |= {f"{n}.input_scale": torch.tensor(v) for n, v in self.input_scales.items()}
        return named | self.rest


def quantize(model: nn.Module, limits: Mapping[str, float]) -> Quantized:
    """INT8 weights of the layers in `limits`: round half to even, scale = largest / 127."""
    found = layers(model)
    weights, scales = {}, {}
    for name in limits:
        weight = found[name].weight.detach().float()
        scale = weight.abs().amax(dim=tuple(range(1, weight.ndim))) / LEVELS
        divisor = torch.where(scale > 0, scale, 1.0).view(-1, *[1] * (weight.ndim - 1))
        weights[name] = (weight / divisor).round().clamp(-LEVELS, LEVELS).to(torch.int8)
        scales[name] = scale
    converted = {id(found[name].weight) for name in limits}
    rest, seen = {}, set()
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in converted | seen:
            seen.add(id(value))
            rest[name] = value.detach()
    inputs = {name: limit / LEVELS for name, limit in limits.items()}
    return Quantized(weights, scales, inputs, rest)


@contextlib.contextmanager
def simulated(model: nn.Module, quantized: Quantized) -> Iterator[nn.Module]:
    """The model computing with the integers' values and rounded inputs while the block runs."""
    found = layers(model)
    originals, handles = {}, []
    for name, integers in quantized.weights.items():
        module = found[name]
        originals[name] = module.weight.data
        scale = quantized.scales[name].view(-1, *[1] * (integers.ndim - 1))
        module.weight.data = (integers * scale).to(module.weight.dtype)
        handles.append(module.register_forward_pre_hook(_rounding(quantized.input_scales[name])))
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()
        for name, original in originals.items():
            found[name].weight.data = original


def zeros(quantized: Quantized, masks: Mapping[str, Tensor]) -> dict[str, Any]:
    """Counts: pruned weights, those whose integer is not zero, zeros that rounding made, 2:4."""
    pruned = broken = rounded = 0
    valid = []
    for name, integers in quantized.weights.items():
        integers = integers.cpu()
        mask = masks.get(f"{name}.weight")
        if mask is None:
            rounded += int((integers == 0).sum())
            continue
        pruned += int((~mask).sum())
        broken += int((integers[~mask] != 0).sum())
        rounded += int((integers[mask] == 0).sum())
        valid.append(is_nm(integers, 2, 4))
    return {
        "pruned_weights": pruned,
        "pruned_not_zero": broken,
        "zeros_from_rounding": rounded,
        "layers_masked": len(valid),
        "layers_2to4": sum(valid),
    }


def _rounding(scale: float):  # noqa: ANN202 - a hook
    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        values = inputs[0]
        rounded = (values.float() / scale).round().clamp(-LEVELS, LEVELS) * scale
        return (rounded.to(values.dtype), *inputs[1:])

    return hook
