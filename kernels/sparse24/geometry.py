"""How a convolution's kernel walks over an image."""

from collections.abc import Sequence
from typing import NamedTuple

Pair = tuple[int, int]  # height, width

# of the copy engine's im2col mode: corners of 8 bits with a sign, strides in 3 bits
MOST_REACH, MOST_STRIDE = 127, 8


class GeometryError(ValueError):
    """A kernel, stride, padding or dilation that no convolution of ours has."""


class Geometry(NamedTuple):
    """Kernel, stride, padding and dilation, each of height and width."""

    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    @classmethod
    def of(
        cls,
        kernel: Pair,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
    ) -> "Geometry":
        """As torch gives the arguments, with padding `same` and `valid`; GeometryError if wrong."""
        strides, dilations = pair("stride", stride, 1), pair("dilation", dilation, 1)
        if isinstance(padding, str):
            padding = _named(padding, kernel, strides, dilations)
        made = cls(kernel, strides, pair("padding", padding, 0), dilations)
        for size, step, edge, spread in zip(*made, strict=True):
            if step > MOST_STRIDE or edge > MOST_REACH or (size - 1) * spread > MOST_REACH:
                raise GeometryError(
                    f"the {made}; allowed are strides up to {MOST_STRIDE}, paddings up to "
                    f"{MOST_REACH} and kernels that span at most {MOST_REACH + 1} pixels"
                )
        return made

    def out(self, height: int, width: int) -> Pair:
        """Height and width of the result; GeometryError if the image is smaller than the kernel."""
        height, width = (
            (extent + 2 * edge - spread * (size - 1) - 1) // step + 1
            for extent, size, step, edge, spread in zip((height, width), *self, strict=True)
        )
        if height < 1 or width < 1:
            raise GeometryError(f"the {self} leaves no pixel of the image; pad it")
        return height, width

    @property
    def is_pointwise(self) -> bool:
        """Whether a pixel of the result depends on the same pixel alone: a matrix product."""
        return self == Geometry((1, 1), dilation=self.dilation)

    def __str__(self) -> str:
        """As in `3x3 convolution, stride 2x2, padding 1x1, dilation 1x1`."""
        kernel, stride, padding, dilation = (f"{h}x{w}" for h, w in self)
        return f"{kernel} convolution, stride {stride}, padding {padding}, dilation {dilation}"


def pair(name: str, given: int | Sequence[int], least: int) -> Pair:
    """One number for both, or two; GeometryError for anything else or below `least`."""
    values = (given, given) if isinstance(given, int) else tuple(given)
    if len(values) != 2 or any(not isinstance(v, int) or v < least for v in values):
        raise GeometryError(
            f"{name} is {given!r}; allowed are an integer of at least {least} and a pair of them, "
            "height and width"
        )
    return values


def _named(padding: str, kernel: Pair, stride: Pair, dilation: Pair) -> Pair:
    if padding == "valid":
        return 0, 0
    if padding != "same":
        raise GeometryError(f"padding is {padding!r}; allowed are 'same', 'valid' and integers")
    spans = [(size - 1) * spread for size, spread in zip(kernel, dilation, strict=True)]
    if stride != (1, 1) or any(span % 2 for span in spans):
        raise GeometryError(
            f"padding 'same' of a {kernel[0]}x{kernel[1]} kernel of stride {stride} is not equal "
            "on both sides, or of no use; pad the image with torch.nn.functional.pad"
        )
    return spans[0] // 2, spans[1] // 2
