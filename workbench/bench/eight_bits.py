"""Dense linear layers in 8 bits by torch's own products, as opponents: INT8 and FP8."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

FP8 = torch.float8_e4m3fn
LARGEST = {torch.int8: 127.0, FP8: 448.0}


class EightBitLinear(nn.Module):
    """A Linear by torch._int_mm or torch._scaled_mm, steps of x known, of the weight by row.

    A compiler fuses the rounding into what makes x, and scales and bias into what reads the sums.
    """

    def __init__(self, layer: nn.Linear, dtype: torch.dtype, most: Tensor) -> None:
        """`most`: the largest magnitude of x."""
        super().__init__()
        weight = layer.weight.detach().float()
        steps = (weight.abs().amax(1).clamp(min=1e-12) / LARGEST[dtype])[None]  # [1, out]
        self.register_buffer("weight", _rounded(weight / steps.T, dtype))
        self.register_buffer("steps", steps)
        self.register_buffer("step", (most.float().clamp(min=1e-12) / LARGEST[dtype]).reshape(1, 1))
        self.bias, self.dtype = layer.bias, dtype

    def forward(self, x: Tensor) -> Tensor:
        """As the Linear, in x's type."""
        flat = _rounded(x.flatten(0, -2).float() / self.step, self.dtype)
        if self.dtype == torch.int8:
            found = torch._int_mm(flat, self.weight.T) * (self.step * self.steps)
        else:
            rows = self.step.expand(len(flat), 1).contiguous()
            found = torch._scaled_mm(
                flat, self.weight.T, rows, self.steps, out_dtype=torch.bfloat16, use_fast_accum=True
            )
        found = found if self.bias is None else found + self.bias
        return found.to(x.dtype).unflatten(0, x.shape[:-1])


def in_eight_bits(model: nn.Module, example: tuple[Tensor, ...], dtype: torch.dtype) -> int:
    """Replace every Linear that torch's product takes, in place; how many."""
    with _observed(model) as most, torch.no_grad():
        model(*example)
    count = 0
    for name, layer in list(model.named_modules()):
        if name not in most or not takes(layer, most[name][1]):
            continue
        owner, _, leaf = name.rpartition(".")
        made = EightBitLinear(layer, dtype, most[name][0]).train(layer.training)
        setattr(model.get_submodule(owner), leaf, made)
        count += 1
    return count


def takes(layer: nn.Linear, rows: int) -> bool:
    """Whether the products of 8 bits take a layer: multiples of 16, and more than 16 rows."""
    return layer.in_features % 16 == 0 and layer.out_features % 16 == 0 and rows > 16


@contextmanager
def _observed(model: nn.Module) -> Iterator[dict[str, tuple[Tensor, int]]]:
    """While it lasts: of each Linear the largest magnitude that it reads, and how many rows."""
    most: dict[str, tuple[Tensor, int]] = {}

    def note(name: str):  # noqa: ANN202 - a hook
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            largest = given[0].detach().abs().amax()
            most[name] = largest, given[0].numel() // given[0].shape[-1]

        return hook

    handles = [
        module.register_forward_pre_hook(note(name))
        for name, module in model.named_modules()
        if type(module) is nn.Linear
    ]
    try:
        yield most
    finally:
        for handle in handles:
            handle.remove()


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    limited = values.clamp(-LARGEST[dtype], LARGEST[dtype])
    return limited.round().to(dtype) if dtype == torch.int8 else limited.to(dtype)
