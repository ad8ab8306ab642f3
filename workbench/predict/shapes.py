"""Products as sizes: of matrices m, n, k and of convolutions, and which of them sparse24 packs."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparse24 import GeometryError, PackError, conv_layout
from sparse24.geometry import Geometry

Pair = tuple[int, int]
_ELEMENT = torch.float16  # packing differs by block only between types


class Convolution(NamedTuple):
    """A convolution of images [n, c, h, w] into k features."""

    n: int
    c: int
    k: int
    h: int
    w: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def __str__(self) -> str:
        """As `256x56x56 64>256 1x1/1 g1`."""
        groups = f" g{self.groups}" if self.groups > 1 else ""
        stride = f"/{self.stride[0]}" if self.stride != (1, 1) else ""
        kernel = "x".join(map(str, self.kernel))
        return f"{self.n}x{self.h}x{self.w} {self.c}>{self.k} {kernel}{stride}{groups}"


@dataclass
class Product:
    """One product: `count` times [m, k] x [k, n], m features and n tokens or pixels.

    `reason` says why it stays dense, "" for one that 2:4 can make faster; `wide` are m, k and
    count as the packed form has them, where narrow groups lie side by side.
    """

    m: int
    n: int
    k: int
    count: int = 1
    shape: Convolution | None = None
    module: bool = False
    wide: tuple[int, int, int] | None = None
    name: str = ""
    reason: str = ""
    reads: list[Any] = field(default_factory=list)
    writes: Any = None

    @property
    def flops(self) -> float:
        """Operations of the dense product."""
        return 2.0 * self.m * self.n * self.k * self.count

    @property
    def weights(self) -> int:
        """Elements of the weight."""
        return self.m * self.k * self.count

    def __str__(self) -> str:
        """Its sizes."""
        several = f"{self.count} x " if self.count > 1 else ""
        return str(self.shape or f"{several}{self.m} x {self.n} x {self.k}")


def shape_of(
    name: str, args: tuple, made: Tensor, layer: tuple[str, nn.Module] | None
) -> Product | None:
    """The product that an operation of aten is, or None; matrices as x [n, k] by weight [k, m]."""
    module = layer[1] if layer else None
    if name in ("mm", "addmm"):
        x, weight = args[-2:]
        return Product(weight.shape[1], x.shape[0], x.shape[1], module=module is not None)
    if name in ("bmm", "baddbmm"):
        x, other = args[-2:]
        return Product(other.shape[2], x.shape[1], x.shape[2], x.shape[0])
    if name in ("mv", "addmv", "dot"):
        matrix = args[-2]
        return Product(1, matrix.shape[0], matrix.shape[-1])
    if name in ("convolution", "convolution_overrideable", "_convolution") and made.dim() == 4:
        return _convolved(args, made, module)
    return None


def _convolved(args: tuple, made: Tensor, module: nn.Module | None) -> Product:
    x, weight, _, stride, padding, dilation, transposed, _, groups = args[:9]
    n, c, h, w = x.shape
    pixels = made.shape[0] * made.shape[2] * made.shape[3]
    if transposed:  # as the product it is before its columns are added up
        features = weight.shape[1] * weight.shape[2] * weight.shape[3]
        return Product(features, n * h * w, c // groups, groups)
    k, own, *kernel = weight.shape
    pairs = [tuple(value) if len(value) == 2 else (value[0],) * 2
             for value in (stride, padding, dilation)]  # fmt: skip
    shape = Convolution(n, c, k, h, w, tuple(kernel), *pairs, groups)
    columns = own * kernel[0] * kernel[1]
    return Product(
        k // groups, pixels, columns, groups, shape, module is not None, _wide(weight, groups)
    )


def _wide(weight: Tensor, groups: int) -> tuple[int, int, int] | None:
    """Features, columns and number of the groups as they are packed; None for what is not."""
    try:
        merged = conv_layout.merge(weight.shape[0], weight.shape[1], groups, _ELEMENT)
    except PackError:
        return None
    count = groups // merged
    columns = conv_layout.columns(tuple(weight.shape), groups, _ELEMENT)
    return weight.shape[0] // count, columns, count


def packable(module: nn.Module) -> str:
    """Why sparse24 does not pack a layer's weight, whatever its values; "" if it does."""
    if type(module) not in (nn.Linear, nn.Conv2d):
        return f"a {type(module).__name__}, whose owner may read its weight"
    if isinstance(module, nn.Linear):
        return ""
    if module.padding_mode != "zeros":
        return f"its padding is {module.padding_mode}"
    weight = torch.empty(module.weight.shape, dtype=_ELEMENT, device="meta")
    try:
        conv_layout.refuse(weight, module.groups)
        Geometry.of(module.kernel_size, module.stride, module.padding, module.dilation)
    except (PackError, GeometryError) as error:
        return str(error)
    return ""
