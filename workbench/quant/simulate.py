"""Simulation: the model computing in integers, written as whole numbers in floating point.

A layer rounds its input to xq = clamp(round(x / s_x), -127, 127) and answers
    y = (sum of xq wq) * (s_x s_w) + b
in this order: the sum is exact, then one fp32 product s_x s_w per channel, one with the sum, and
the bias. workbench/quant/integer.py does the same in int32 and agrees to the last bit.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from workbench.quant.convert import Quantized
from workbench.quant.intercept import Call, Interception, as_answered, output_dtype
from workbench.quant.layers import LEVELS, QuantError
from workbench.quant.recurrent import unrolled

EXACT = 2**24  # whole numbers up to here are exact in fp32, in any order of summation


class Simulated(Interception):
    """The model with the quantized weights and rounded activations while the block runs it."""

    def __init__(
        self, model: nn.Module, quantized: Quantized, only: Collection[str] | None = None
    ) -> None:
        """`only` are the layers and sites that are rounded; all that have a range if None."""
        super().__init__(model, quantized)
        device = next(model.parameters()).device
        self.only = only
        self.input_scales = {
            site: torch.tensor(scale, device=device)
            for site, scale in quantized.input_scales.items()
        }
        self.scales = {name: scale.to(device) for name, scale in quantized.scales.items()}
        self.integers = {
            name: integers.to(device, _sum_dtype(quantized.layouts[name].oriented(integers)))
            for name, integers in quantized.weights.items()
        }

    def is_quantized(self, site: str) -> bool:
        """Whether a layer or another site computes in INT8; one without a range is refused."""
        if self.only is not None and site not in self.only:
            return False
        if site in self.input_scales:
            return True
        if ":" in site:
            raise QuantError(
                f"{site} was never run during calibration; calibrate on batches that run it"
            )
        return False

    def rounded(self, site: str, values: Tensor) -> Tensor:
        """The activation's integers, as fp32."""
        return (values.float() / self.input_scales[site]).round().clamp(-LEVELS, LEVELS)

    def activation(self, site: str, values: Tensor) -> Tensor:
        """The activation with as many values as an int8 has."""
        if not self.is_quantized(site):
            return values
        return (self.rounded(site, values) * self.input_scales[site]).to(values.dtype)

    def layer(self, name: str, parameter: str, call: Call, *operands: Tensor | None) -> Tensor:
        """The layer in integers."""
        values, weight, bias = operands
        if not self.is_quantized(name):
            return call(values, weight, bias)
        return self.matmul(name, parameter, call, values, bias).to(output_dtype(values))

    def matmul(
        self, site: str, parameter: str, call: Call, values: Tensor, bias: Tensor | None
    ) -> Tensor:
        """One matmul with a weight, in fp32."""
        integers = self.integers[parameter]
        with _plain(values):
            total = call(self.rounded(site, values).to(integers.dtype), integers, None)
            scale = self.input_scales[site] * self.scales[parameter]
            ones = (1,) * (max(integers.ndim, 2) - 2)  # an output's channel, then its places
            output = total.round().float() * scale.view(-1, *ones)
            return output if bias is None else output + bias.float().view(-1, *ones)

    def recurrent(self, name: str, kind: str, call: Callable[..., Any], arguments: tuple) -> Any:
        """The layer step by step, its two matmuls in integers."""
        if not self.is_quantized(name):
            return call(*arguments)
        linear = nn.functional.linear

        def matmul(own: bool, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            site = name if own else f"{name}.hidden"
            return self.matmul(site, self._owners[id(weight)][1], linear, values, bias)

        return as_answered(unrolled(kind, arguments, matmul), arguments[0])

    def product(self, site: str, left: Tensor, right: Tensor) -> Tensor:
        """The product of two activations in integers."""
        if not self.is_quantized(f"{site}.left"):
            return left @ right
        return self._product(f"{site}.left", left, f"{site}.right", right).to(output_dtype(left))

    def attention(self, site: str, call: Callable[..., Tensor], arguments: dict) -> Tensor:
        """Attention whose two products are in integers, and its softmax in fp32."""
        if not self.is_quantized(f"{site}.query"):
            return call(**arguments)
        query, key, value = arguments["query"], arguments["key"], arguments["value"]
        scores = self._product(f"{site}.query", query, f"{site}.key", key.transpose(-2, -1))
        weights = softmax(scores, query, arguments)
        return self._product(f"{site}.weights", weights, f"{site}.value", value).to(
            output_dtype(query)
        )

    def _product(self, left_site: str, left: Tensor, right_site: str, right: Tensor) -> Tensor:
        with _plain(left):
            total = self.rounded(left_site, left) @ self.rounded(right_site, right)
            return total.round() * (self.input_scales[left_site] * self.input_scales[right_site])


def softmax(scores: Tensor, query: Tensor, arguments: dict) -> Tensor:
    """Attention weights of raw scores, as scaled_dot_product_attention makes them, in fp32."""
    if arguments.get("enable_gqa"):
        raise QuantError("attention with grouped queries has no INT8 form here")
    scale = arguments.get("scale")
    scores = scores.float() * (query.shape[-1] ** -0.5 if scale is None else scale)
    visible = arguments.get("attn_mask")
    if arguments.get("is_causal"):
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if visible is not None:
        hidden = torch.zeros_like(scores)
        scores = scores + (
            hidden.masked_fill(~visible, float("-inf")) if visible.dtype == torch.bool else visible
        )
    # a row that sees nothing answers zero, as the fused call does
    weights = scores.softmax(-1).nan_to_num(0.0) if visible is not None else scores.softmax(-1)
    return nn.functional.dropout(weights, arguments.get("dropout_p", 0.0))


@contextlib.contextmanager
def _plain(values: Tensor) -> Iterator[None]:
    """Without autocast and TF32, whose rounding would break the sums."""
    with (
        torch.autocast(values.device.type, enabled=False),
        torch.backends.cudnn.flags(allow_tf32=False),
    ):
        yield


def _sum_dtype(oriented: Tensor) -> torch.dtype:
    """Fp32 where no sum of products of an output channel can pass 2^24, else fp64."""
    most = int(oriented.flatten(1).abs().sum(1, dtype=torch.int64).max())
    return torch.float32 if most * LEVELS <= EXACT else torch.float64
