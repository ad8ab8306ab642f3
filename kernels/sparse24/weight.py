"""SparseWeight: a 2:4 weight that holds its packed copy and nothing else."""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from . import backends, layout, ops
from .seam import DTYPES, TYPES

PACKED, HEADER = "packed", "header"  # the entries of a state dict


class PackedWeight(ABC):
    """What packed weights share: the packed bytes, and how they are kept, moved and written.

    Immutable, but for the copies in other forms that dispatch may add where they are measured to
    be faster.
    """

    def __init__(self, packed: Tensor, dtype: torch.dtype, sparse: bool, *told: Any) -> None:
        """`told`: what makes such a weight again, beside its bytes; the order of `__init__`."""
        self.packed = packed
        self.device = packed.device
        self.device_type = packed.device.type  # asked for at every call, and slow to ask
        self.backend = backends.of(packed.device)
        self.dtype = dtype
        self.sparse = sparse
        self.element = TYPES[dtype]
        self.tuned: dict[tuple, tuple] = {}  # of dispatch: rungs, by kind of call
        self.copies: dict[str, Tensor] = {}  # by backend, only of those that a rung names
        self._told = told

    @property
    def nbytes(self) -> int:
        """Bytes of the packed copy."""
        return self.packed.nbytes

    @abstractmethod
    def header(self) -> Tensor:
        """What the packed tensor does not say itself, int64; the layout's version comes first."""

    @staticmethod
    @abstractmethod
    def read_header(values: Tensor) -> tuple:
        """What a header says, in the order of `__init__`; PackError if it is of another version."""

    def of(self, packed: Tensor) -> Self:
        """The weight of other bytes of the same form, not tuned."""
        return type(self)(packed, *self._told)

    def to(self, device: torch.device | str | int) -> Self:
        """The same weight on another device, not tuned; itself if it is there already."""
        packed = self.packed.to(device)
        return self if packed is self.packed else self.of(packed)

    def clone(self) -> Self:
        """A copy, not tuned."""
        return self.of(self.packed.clone())

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors alone, so that torch.save and safetensors take it: `packed` and `header`."""
        return {PACKED: self.packed, HEADER: self.header()}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Self:
        """The weight of `state_dict`; PackError for another version, shape or missing entries."""
        if set(state) != {PACKED, HEADER}:
            raise layout.PackError(
                f"a packed weight has the entries {PACKED!r} and {HEADER!r}, not {sorted(state)}"
            )
        return cls(state[PACKED], *cls.read_header(state[HEADER]))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file."""
        from safetensors.torch import save_file

        save_file({name: t.cpu().contiguous() for name, t in self.state_dict().items()}, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Self:
        """The weight that `save` wrote."""
        from safetensors.torch import load_file

        return cls.from_state_dict(load_file(path, device=str(device)))

    def __repr__(self) -> str:
        """Shape, type, place and size, as in SparseWeight(1024x4096 float16, 2:4, cpu, 4.5 MiB)."""
        shape = "x".join(map(str, self.shape))
        name = str(self.dtype).removeprefix("torch.")
        kind = "2:4" if self.sparse else "dense blocks"
        dense = self.shape.numel() * self.dtype.itemsize
        size = f"{self.nbytes / 2**20:.1f} MiB of {dense / 2**20:.1f}"
        return f"{type(self).__name__}({shape} {name}, {kind}, {self.device}, {size})"


class SparseWeight(PackedWeight):
    """A weight [out, in] in blocks of csrc/layout.h; made by `pack`, read back by `unpack`.

    `sparse=False` holds dense blocks, for the same kernel's dense mode.
    """

    def __init__(
        self, packed: Tensor, shape: tuple[int, int], dtype: torch.dtype, sparse: bool = True
    ) -> None:
        """Refuses bytes that cannot be this weight, with PackError."""
        layout.refuse_packed(packed, *shape, dtype, sparse)
        super().__init__(packed, dtype, sparse, shape, dtype, sparse)
        self.out_features, self.in_features = shape

    @property
    def shape(self) -> torch.Size:
        """[out, in] of the dense weight."""
        return torch.Size((self.out_features, self.in_features))

    def unpack(self) -> Tensor:
        """The dense weight [out, in] that was packed, -0.0 read back as 0."""
        if self.backend == "reference":
            return layout.unpack(self.packed, *self.shape, self.dtype, self.sparse)
        return ops.unpack(self.packed, *self.shape, self.element, self.sparse)

    def header(self) -> Tensor:
        """int64 [version, out, in, element, sparse]."""
        values = [layout.VERSION, *self.shape, self.element, int(self.sparse)]
        return torch.tensor(values, dtype=torch.int64)

    @staticmethod
    def read_header(values: Tensor) -> tuple[tuple[int, int], torch.dtype, bool]:
        """Shape, type and whether sparse."""
        out, columns, element, sparse = header_values(values, 5)
        return (out, columns), DTYPES[element], bool(sparse)


def pack(weight: Tensor, sparse: bool = True) -> SparseWeight:
    """The packed copy of a dense 2:4 weight [out, in] on its device.

    float16, bfloat16, int8 or float8_e4m3fn; `in` a multiple of four. PackError names the row and
    group of what is not 2:4, NaN or infinite. `sparse=False`: dense blocks, of any weight.
    """
    if not isinstance(weight, Tensor):
        raise layout.PackError(f"the weight is {type(weight).__name__}; give a torch.Tensor")
    layout.refuse_form(weight)
    weight = weight.detach()
    if backends.of(weight.device) == "reference":
        packed = layout.pack(weight, sparse)
    else:
        packed = ops.pack(weight if weight.stride(1) == 1 else weight.contiguous(), sparse)
    return SparseWeight(packed, tuple(weight.shape), weight.dtype, sparse)


def header_values(values: Tensor, count: int) -> list[int]:
    """A header of `count` values without its version, the last two an element type and a flag.

    PackError if it is of another version or kind.
    """
    told = values.tolist()
    if len(told) != count or told[0] != layout.VERSION or told[-2] not in DTYPES:
        raise layout.PackError(
            f"the header {told} is not of layout version {layout.VERSION}; pack the weight again"
        )
    return told[1:]
