"""Operands of a product and the call of a kernel on them, for tests."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from sparse24 import draw, layout
from sparse24.seam import TYPES

COLUMNS = 300  # no multiple of a block; three blocks of 8-bit types, five of 16-bit ones
EXACT = {torch.int8: torch.int32}  # the out type that holds whole sums; else float32
POISON = 77.0


class Gemm(ctypes.Structure):
    """struct Gemm of csrc/gemm.h."""

    _fields_ = [
        ("tokens", ctypes.c_int),
        ("in_features", ctypes.c_int),
        ("out_features", ctypes.c_int),
        ("type", ctypes.c_int),
        ("out_type", ctypes.c_int),
        ("sparse", ctypes.c_bool),
        ("x", ctypes.c_void_p),
        ("x_pitch", ctypes.c_int64),
        ("weight", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("out_pitch", ctypes.c_int64),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("bias_type", ctypes.c_int),
        ("residual", ctypes.c_void_p),
        ("residual_pitch", ctypes.c_int64),
        ("residual_scale", ctypes.c_float),
        ("out_scale", ctypes.c_float),
        ("activation", ctypes.c_int),
        ("convolution", ctypes.c_void_p),
        ("stream", ctypes.c_void_p),
    ]


class Convolution(ctypes.Structure):
    """struct Convolution of csrc/gemm.h."""

    _fields_ = [
        (name + side, ctypes.c_int)
        for name, sides in (
            ("batch", ("",)),
            ("height", ("",)),
            ("width", ("",)),
            ("channels", ("",)),
            ("out", ("_height", "_width")),
            ("kernel", ("_height", "_width")),
            ("stride", ("_height", "_width")),
            ("padding", ("_height", "_width")),
            ("dilation", ("_height", "_width")),
            ("groups", ("",)),
        )
        for side in sides
    ]


def whole(values: Tensor) -> Tensor:
    """Small whole numbers, whose sums are exact in float32 whatever their order."""
    return values if values.dtype == torch.int8 else (2 * values.float()).round().to(values.dtype)


def pitched(values: Tensor, more: int = 1) -> Tensor:
    """The same rows, a multiple of 16 bytes apart and poison between."""
    step = 16 // values.itemsize
    wide = torch.full((len(values), -(-values.shape[1] // step + -more) * step), POISON)
    wide = wide.to(values.dtype)
    wide[:, : values.shape[1]] = values
    return wide[:, : values.shape[1]]


def operands(
    features: int, tokens: int, dtype: torch.dtype, columns: int = COLUMNS
) -> tuple[Tensor, Tensor]:
    x = pitched(whole(draw.operand(tokens, columns, dtype, seed=1)))
    return x, whole(draw.weight_2to4(features, columns, dtype, seed=2, holes=0.2))


def start(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class Call:
    """A product's fields of gemm.h; `out` is part of a poisoned tensor."""

    def __init__(
        self, x: Tensor, weight: Tensor, sparse: bool, out: torch.dtype, gap: int | None = None
    ) -> None:
        """`gap`: elements between rows of `out`; None fills them up to a multiple of 16 bytes."""
        (features, columns), tokens = weight.shape, x.shape[0]
        gap = 16 - features % 16 if gap is None else gap
        self.x, self.packed = x, layout.pack(weight, sparse)
        self.wide = torch.full((tokens + 2, features + gap), POISON).to(out)
        self.out = self.wide[1:-1, :features]
        self.fields: dict[str, Any] = {
            "tokens": tokens,
            "in_features": columns,
            "out_features": features,
            "type": TYPES[x.dtype],
            "out_type": TYPES[out],
            "sparse": sparse,
            "x": start(x),
            "x_pitch": x.stride(0) * x.itemsize,
            "weight": start(self.packed),
            "out": start(self.out),
            "out_pitch": self.wide.stride(0) * out.itemsize,
            "residual_scale": 1.0,
            "out_scale": 1.0,
        }

    def run(self, kernel: Any, *args: Any, **settings: Any) -> str | None:
        """What the kernel (emulated.Emulator or Hopper) returned; only `out` may have changed."""
        wrong: str | None = kernel.gemm(self, *args, **settings)
        around = self.wide.clone()
        around[1:-1, : self.out.shape[1]] = POISON
        assert bool((around == POISON).all()), "wrote outside its rows or columns"
        return wrong
