"""Explanation: what a rule finds in a model, counted and as text."""

import math
from collections import Counter
from typing import Any

from torch import nn

from workbench.sparsity.eligibility import Layer


def totals(model: nn.Module, layers: list[Layer]) -> dict[str, Any]:
    """Parameters, listed weights, eligible ones, those that kernels can run; layers by reason."""

    def count(chosen: list[Layer]) -> int:
        return sum(math.prod(layer.shape) for layer in chosen)

    eligible = [layer for layer in layers if layer.eligible]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights": count(layers),
        "eligible": count(eligible),
        "eligible_and_runnable": count([layer for layer in eligible if not layer.kernel]),
        "dense_because": dict(Counter(layer.reason for layer in layers if not layer.eligible)),
    }


def as_text(model: nn.Module, layers: list[Layer]) -> str:
    """One line per weight, then the totals."""
    width = max((len(layer.name) for layer in layers), default=0)
    sizes = {layer.name: "x".join(map(str, layer.shape)) for layer in layers}
    column = max(map(len, sizes.values()), default=0)
    lines = [
        f"{layer.name:<{width}}  {sizes[layer.name]:<{column}}  {_verdict(layer)}"
        for layer in layers
    ]
    counted = totals(model, layers)
    parameters = counted["parameters"]
    share = counted["eligible"] / parameters if parameters else 0.0
    lines.append(
        f"eligible: {counted['eligible']:,} of {counted['weights']:,} weights, {share:.2%} of "
        f"{parameters:,} parameters; sparse kernels can run {counted['eligible_and_runnable']:,}"
    )
    lines += [f"dense: {n} x {reason}" for reason, n in counted["dense_because"].items()]
    return "\n".join(lines)


def _verdict(layer: Layer) -> str:
    told = "eligible" if layer.eligible else f"dense: {layer.reason}"
    if layer.eligible and layer.kernel:
        told += f"; kernels cannot run it: {layer.kernel}"
    return f"{told} [{layer.remedy}]" if layer.remedy else told
