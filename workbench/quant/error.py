"""Error: what rounding does to the output of each layer, the others exact."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from workbench.quant.convert import Quantized
from workbench.quant.intercept import Call
from workbench.quant.simulate import Simulated


class Measuring(Simulated):
    """The exact model while the block runs it; beside it, each operation rounded and compared."""

    def __init__(self, model: nn.Module, quantized: Quantized) -> None:
        """Nothing is measured yet."""
        super().__init__(model, quantized)
        self._sums: dict[str, Tensor] = {}

    def errors(self) -> dict[str, float]:
        """Layer or site -> |rounded - exact| / |exact| of its outputs, both as 2-norms."""
        return {site: float((s[0] / s[1]).sqrt()) for site, s in self._sums.items() if s[1] > 0}

    def layer(self, name: str, parameter: str, call: Call, *operands: Tensor | None) -> Tensor:
        """The exact output."""
        if not self.is_quantized(name):
            return call(*operands)
        return self._compared(
            name, call(*operands), super().layer(name, parameter, call, *operands)
        )

    def recurrent(self, name: str, kind: str, call: Callable[..., Any], arguments: tuple) -> Any:
        """The exact outputs."""
        exact = call(*arguments)
        if self.is_quantized(name):
            rounded = super().recurrent(name, kind, call, arguments)
            pair = [a if isinstance(a, Tensor) else a[0] for a in (exact, rounded)]
            self._compared(name, *pair)
        return exact

    def product(self, site: str, left: Tensor, right: Tensor) -> Tensor:
        """The exact product."""
        return self._compared(site, left @ right, super().product(site, left, right))

    def attention(self, site: str, call: Callable[..., Tensor], arguments: dict) -> Tensor:
        """The exact attention."""
        rounded = super().attention(site, call, arguments)
        return self._compared(site, call(**arguments), rounded)

    def add(self, site: str, left: Tensor, right: Tensor) -> Tensor:
        """The exact sum."""
        return self._compared(site, left + right, super().add(site, left, right))

    def _compared(self, site: str, exact: Tensor, rounded: Tensor) -> Tensor:
        wanted = exact.double()
        sums = torch.stack([(rounded.double() - wanted).square().sum(), wanted.square().sum()])
        self._sums[site] = self._sums.get(site, 0) + sums
        return exact
