"""Scales: the steps of quantized values, as `linear` takes them."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .seam import DTYPES, TYPES


@dataclass(frozen=True, eq=False)
class Scales:
    """The step that one unit of an int8 or float8 value stands for.

    weight: of the weight, one number or one for each output channel [out]; x: of the input;
    out: of an int8 result, which is asked for by giving it; residual: of an int8 residual, by
    default 1, as of one that is no int8.
    """

    weight: Tensor | float = 1.0
    x: float = 1.0
    out: float | None = None
    residual: float | None = None
    _whole: dict[tuple[int, torch.device], Tensor] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        """Refuses what is no scale."""
        for name in ("x", "out", "residual"):
            value = getattr(self, name)
            if isinstance(value, Tensor):
                raise TypeError(f"Scales.{name} is a tensor; give a number: {name}=float(...)")
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"Scales.{name} is {value}; a step is positive and finite")
        if isinstance(self.weight, Tensor) and self.weight.dim() > 1:
            shape = list(self.weight.shape)
            raise ValueError(f"Scales.weight is {shape}; allowed are one number or [out]")

    def of_sums(self, out_features: int, device: torch.device) -> Tensor:
        """What the sums are multiplied with, float32 [out]; made once per device."""
        whole = self._whole.get((out_features, device))
        if whole is None:
            whole = self._made(out_features, device)
            self._whole[out_features, device] = whole
        return whole

    def bits(self, dtype: torch.dtype) -> Tensor:
        """All of it, and the type of a float result, int32 [4 + out] for a state dict.

        The bits of float32 numbers, which casting a model does not reach; 0 for what is not given.
        """
        numbers = [value or 0.0 for value in (self.x, self.out, self.residual)]
        weight = torch.as_tensor(self.weight).detach().float().flatten()
        values = torch.cat([weight.new_tensor(numbers), weight]).view(torch.int32)
        return torch.cat([values.new_tensor([TYPES[dtype]]), values])

    @classmethod
    def read(cls, bits: Tensor) -> tuple["Scales", torch.dtype]:
        """The inverse of `bits`."""
        values = bits[1:].view(torch.float32)
        x, out, residual = values[:3].tolist()
        return cls(values[3:].clone(), x, out or None, residual or None), DTYPES[int(bits[0])]

    def _made(self, out_features: int, device: torch.device) -> Tensor:
        if not isinstance(self.weight, Tensor):
            return torch.full((out_features,), self.weight * self.x, device=device)
        if self.weight.numel() not in (1, out_features):
            raise ValueError(
                f"Scales.weight has {self.weight.numel()} values; the weight has {out_features} "
                "output channels: give one number or one for each"
            )
        weight = self.weight.detach().to(device, torch.float32) * self.x
        return weight.expand(out_features).contiguous()
