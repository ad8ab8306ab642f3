"""Random operands for checks and benchmarks, of every element type and on every device."""

import torch
from torch import Tensor


def weight_2to4(
    rows: int,
    columns: int,
    dtype: torch.dtype,
    seed: int,
    device: str | torch.device = "cpu",
    holes: float = 0.0,
) -> Tensor:
    """A weight [rows, columns] with two random columns of each four, a share `holes` of them 0."""
    generator = torch.Generator(device).manual_seed(seed)
    groups = torch.rand(rows, columns // 4, 4, device=device, generator=generator)
    kept = torch.zeros_like(groups, dtype=torch.bool)
    kept.scatter_(2, groups.argsort(-1)[..., :2], True)
    kept &= torch.rand(kept.shape, device=device, generator=generator) >= holes
    values = operand(rows, columns, dtype, seed + 1, device)
    wide = values.float()
    wide = torch.where(wide == 0, 1, wide)  # so that exactly two of four stay without holes
    return (wide * kept.flatten(1)).to(dtype)


def operand(
    rows: int, columns: int, dtype: torch.dtype, seed: int, device: str | torch.device = "cpu"
) -> Tensor:
    """Normal values [rows, columns]; of int8, and of 8-bit floats, spread over their range."""
    generator = torch.Generator(device).manual_seed(seed)
    if dtype == torch.int8:
        return torch.randint(
            -127, 128, (rows, columns), dtype=dtype, device=device, generator=generator
        )
    return torch.randn(rows, columns, device=device, generator=generator).to(dtype)


def kernel_2to4(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    seed: int,
    device: str | torch.device = "cpu",
    holes: float = 0.0,
    dense: bool = False,
) -> Tensor:
    """A convolution's weight [out, in, height, width], 2:4 along `in` unless `dense`."""
    features, channels, *kernel = shape
    rows = features * kernel[0] * kernel[1]
    if dense:
        flat = operand(rows, channels, dtype, seed, device)
    else:
        flat = weight_2to4(rows, channels, dtype, seed, device, holes)
    return flat.view(features, *kernel, channels).permute(0, 3, 1, 2)
