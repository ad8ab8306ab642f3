"""Conversion to INT8: weights per output channel, activations per tensor, zeros kept exactly."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from workbench.quant.layers import (
    LEVELS,
    layers,
    to_integers,
    weight_scale,
    weights_of,
)
from workbench.sparsity import is_nm
from workbench.sparsity.layouts import Layout, layout_of

FOLDED = "int8.folded"


@dataclass(frozen=True)
class Quantized:
    """An INT8 network: integers and scales, and the rest of the network as it was.

    `weights` (int8) and `scales` (fp32, [out]) go by parameter name, `layouts` say where the input
    channels of a weight lie; `input_scales` go by layer or site; `folded` are the norms that are
    part of a layer now, each with its layer.
    """

    weights: dict[str, Tensor]
    scales: dict[str, Tensor]
    layouts: dict[str, Layout]
    input_scales: dict[str, float]
    rest: dict[str, Tensor]
    folded: dict[str, str] = field(default_factory=dict)

    @property
    def layers(self) -> list[str]:
        """The layers in INT8."""
        return [site for site in self.input_scales if ":" not in site and site[-7:] != ".hidden"]

    def tensors(self) -> dict[str, Tensor]:
        """All as named tensors, `files.restored` reads them again.

        int8 weights and the rest by name, `<weight>.scale` [out] and `<site>.input_scale` in fp32,
        and `int8.folded`, the bytes of a JSON mapping of norms to the layers they are part of.
        """
        named = dict(self.weights) | {f"{n}.scale": value for n, value in self.scales.items()}
        named |= {f"{n}.input_scale": torch.tensor(v) for n, v in self.input_scales.items()}
        folded = torch.tensor(list(json.dumps(self.folded).encode()), dtype=torch.uint8)
        return named | {FOLDED: folded} | self.rest

    @property
    def attention(self) -> bool:
        """Whether products of activations are in INT8."""
        return any(":attention" in site or ":matmul" in site for site in self.input_scales)

    @property
    def adds(self) -> bool:
        """Whether adds have INT8 operands."""
        return any(":add" in site for site in self.input_scales)


def quantize(
    model: nn.Module,
    limits: Mapping[str, float],
    folded: Mapping[str, str] | None = None,
    scales: Mapping[str, Tensor] | None = None,
) -> Quantized:
    """The INT8 network of ranges by site; weight scales are largest / 127 unless given."""
    weights, used, layouts = {}, {}, {}
    for name, module in layers(model).items():
        if name in limits:
            for parameter, weight in weights_of(name, module).items():
                scale = scales[parameter] if scales else weight_scale(module, weight)
                weights[parameter] = to_integers(module, weight, scale)
                used[parameter], layouts[parameter] = scale, layout_of(module)
    rest, seen = {}, set()
    for name, value in model.state_dict(keep_vars=True).items():
        if name not in weights and id(value) not in seen:
            seen.add(id(value))
            rest[name] = value.detach()
    inputs = {site: limit / LEVELS for site, limit in limits.items()}
    return Quantized(weights, used, layouts, inputs, rest, dict(folded or {}))


def zeros(quantized: Quantized, masks: Mapping[str, Tensor]) -> dict[str, Any]:
    """Counts: pruned weights, those whose integer is not zero, zeros that rounding made, 2:4."""
    pruned = broken = rounded = 0
    valid = []
    for name, integers in quantized.weights.items():
        integers = integers.cpu()
        mask = masks.get(name)
        if mask is None:
            rounded += int((integers == 0).sum())
            continue
        pruned += int((~mask).sum())
        broken += int((integers[~mask] != 0).sum())
        rounded += int((integers[mask] == 0).sum())
        valid.append(is_nm(integers, 2, 4, quantized.layouts[name]))
    return {
        "pruned_weights": pruned,
        "pruned_not_zero": broken,
        "zeros_from_rounding": rounded,
        "layers_masked": len(valid),
        "layers_2to4": sum(valid),
    }
