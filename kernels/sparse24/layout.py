"""The packed weight of csrc/layout.h in plain torch: pack, unpack and what they refuse.

All of it is arithmetic on bits, so it runs on every device and for every element type alike.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from .seam import ELEMENTS

VERSION = 1  # kLayoutVersion
BLOCK_ROWS = 64
BLOCK_BYTES_OF_K = 128
VALUE_BYTES = 64 * 64

EMPTY = 4  # nibble of a group without a non-zero: columns 0 and 1
REFUSED = 255
# by which of a group's four columns are non-zero (bit i: column i): second << 2 | first
NIBBLES = (EMPTY, 12, 13, 4, 14, 8, 9, REFUSED, 12, 12, 13, REFUSED, 14, REFUSED, REFUSED, REFUSED)
LEGAL = (4, 8, 12, 9, 13, 14)

# the bits of a value without its sign, and from where on they are no finite number
_MAGNITUDE = {
    torch.float16: (0x7FFF, 0x7C00),
    torch.bfloat16: (0x7FFF, 0x7F80),
    torch.float8_e4m3fn: (0x7F, 0x7F),  # no infinities, one NaN
}


class PackError(ValueError):
    """A weight that cannot be packed, or bytes that are no packed weight."""


def block_k(dtype: torch.dtype) -> int:
    """Columns of dense K in a block."""
    return BLOCK_BYTES_OF_K // dtype.itemsize


def block_bytes(dtype: torch.dtype, sparse: bool) -> int:
    """Bytes of a block."""
    metadata = 512 if dtype.itemsize == 2 else 1024
    return VALUE_BYTES + metadata if sparse else BLOCK_ROWS * BLOCK_BYTES_OF_K


def packed_shape(
    rows: int, columns: int, dtype: torch.dtype, sparse: bool = True
) -> tuple[int, int, int]:
    """The shape of the packed uint8 tensor: [k_blocks, row_blocks, block_bytes]."""
    return -(-columns // block_k(dtype)), -(-rows // BLOCK_ROWS), block_bytes(dtype, sparse)


def pack(weight: Tensor, sparse: bool = True) -> Tensor:
    """The blocks of a dense weight [out, in], uint8 [k_blocks, row_blocks, block_bytes].

    Sparse blocks turn -0.0 into 0; dense ones (for honest comparison) keep every bit. Raises
    PackError for anything but a 2-D weight of an element type with `in` a multiple of four, for
    NaN and infinite values, and where sparse for a group with more than two non-zeros, by its
    row and group.
    """
    refuse_form(weight)
    bits = integers(weight.detach())
    refuse_values(weight, bad_group(weight, sparse))
    rows, columns = weight.shape
    k_blocks, row_blocks, size = packed_shape(rows, columns, weight.dtype, sparse)
    bits = pad(
        bits,
        (0, k_blocks * block_k(weight.dtype) - columns, 0, row_blocks * BLOCK_ROWS - rows),
    )
    if not sparse:
        return _swizzled(_blocks(bits, k_blocks, 8), dense=True).flatten(2).contiguous()
    groups = bits.unflatten(1, (-1, 4))
    nonzero = _magnitude(groups, weight.dtype) != 0
    nibbles = _nibbles(nonzero)
    kept = torch.stack([nibbles & 3, nibbles >> 2], -1).long()
    values = torch.where(nonzero, groups, 0).gather(2, kept).flatten(1)
    packed = torch.empty(k_blocks, row_blocks, size, dtype=torch.uint8, device=weight.device)
    packed[..., :VALUE_BYTES] = _swizzled(_blocks(values, k_blocks, 4), dense=False).flatten(2)
    packed[..., VALUE_BYTES:] = _metadata(nibbles, k_blocks, weight.dtype)
    return packed


def unpack(
    packed: Tensor, rows: int, columns: int, dtype: torch.dtype, sparse: bool = True
) -> Tensor:
    """The dense weight [rows, columns] that `pack` was given, -0.0 apart."""
    refuse_packed(packed, rows, columns, dtype, sparse)
    blocks = packed[..., :VALUE_BYTES] if sparse else packed
    blocks = _swizzled(blocks.unflatten(2, (BLOCK_ROWS, -1, 16)), dense=not sparse)
    values = blocks.permute(1, 2, 0, 3, 4).flatten(2).flatten(0, 1).contiguous()
    values = values.view(_integer(dtype))  # [rows, kept columns]
    if sparse:
        nibbles = _nibbles_of(packed[..., VALUE_BYTES:], dtype)
        kept = torch.stack([nibbles & 3, nibbles >> 2], -1).long()
        groups = values.new_zeros(*nibbles.shape, 4)
        values = groups.scatter_(2, kept, values.unflatten(1, (-1, 2))).flatten(1)
    return values[:rows, :columns].contiguous().view(dtype)


def bad_group(weight: Tensor, sparse: bool) -> int:
    """The lowest row * groups + group that may not be packed; -1 if all may. What the op says."""
    groups = _magnitude(integers(weight.detach()), weight.dtype).unflatten(1, (-1, 4))
    bad = torch.zeros(groups.shape[:2], dtype=torch.bool, device=weight.device)
    if weight.dtype in _MAGNITUDE:
        bad |= (groups >= _MAGNITUDE[weight.dtype][1]).any(-1)
    if sparse:
        bad |= (groups != 0).sum(-1) > 2
    first = bad.flatten().nonzero()[:1]
    return int(first) if first.numel() else -1


def refuse_form(weight: Tensor) -> None:
    """Raise PackError unless the weight has a shape and a type that can be packed."""
    if weight.dtype not in ELEMENTS:
        raise PackError(f"the weight is {weight.dtype}; allowed are {listed()}: cast it first")
    if weight.dim() != 2 or 0 in weight.shape or weight.shape[1] % 4:
        raise PackError(
            f"the weight is {list(weight.shape)}; allowed is [out, in] with `in` a multiple of 4: "
            "pad its columns with zeros"
        )
    if weight.layout != torch.strided:
        raise PackError(f"the weight is {weight.layout}; give a dense (strided) tensor of it")


def refuse_values(weight: Tensor, bad: int) -> None:
    """Raise PackError for the group `bad` of the weight; -1 is none."""
    if bad < 0:
        return
    row, group = divmod(bad, weight.shape[1] // 4)
    where = f"row {row}, group {group} (columns {4 * group} to {4 * group + 3})"
    refuse_four(weight.detach()[row, 4 * group : 4 * group + 4], where, "columns")


def refuse_four(four: Tensor, where: str, along: str) -> None:
    """Raise PackError for four values that may not be packed, saying where they lie."""
    values = four.to("cpu", torch.float64)
    shown = ", ".join(f"{value:g}" for value in values.tolist())
    if not values.isfinite().all():
        raise PackError(f"{where} holds [{shown}]; only finite values can be packed")
    count = int((values != 0).sum())
    raise PackError(
        f"{where} has {count} non-zeros, [{shown}]; at most 2 of 4 are allowed: prune the weight "
        f"2:4 along its {along}, and check that its masks were held"
    )


def refuse_packed(
    packed: Tensor, rows: int, columns: int, dtype: torch.dtype, sparse: bool
) -> None:
    """Raise PackError unless the bytes can be a packed weight of this shape and type."""
    if dtype not in ELEMENTS:
        raise PackError(f"a packed weight is one of {listed()}, not {dtype}")
    wanted = packed_shape(rows, columns, dtype, sparse)
    if packed.dtype != torch.uint8 or tuple(packed.shape) != wanted or columns % 4:
        raise PackError(
            f"{packed.dtype} {list(packed.shape)} is no packed {dtype} weight [{rows}, {columns}]; "
            f"that is torch.uint8 {list(wanted)}: pack the weight again"
        )


def listed() -> str:
    """The types of weights, in words."""
    return ", ".join(str(dtype) for dtype in ELEMENTS)


def _integer(dtype: torch.dtype) -> torch.dtype:
    return torch.int16 if dtype.itemsize == 2 else torch.int8


def integers(weight: Tensor) -> Tensor:
    """The elements of a weight as integers of their size."""
    return weight.contiguous().view(_integer(weight.dtype))


def _magnitude(bits: Tensor, dtype: torch.dtype) -> Tensor:
    return bits & _MAGNITUDE[dtype][0] if dtype in _MAGNITUDE else bits


def _nibbles(nonzero: Tensor) -> Tensor:
    """The nibble of each group, uint8 [rows, groups], of which columns are not zero."""
    weights = torch.tensor([1, 2, 4, 8], dtype=torch.uint8, device=nonzero.device)
    table = torch.tensor(NIBBLES, dtype=torch.uint8, device=nonzero.device)
    return table[(nonzero * weights).sum(-1)]


def _blocks(bits: Tensor, k_blocks: int, chunks: int) -> Tensor:
    """Rows of values as bytes [k_blocks, row_blocks, 64, chunks, 16]."""
    cut = bits.contiguous().view(torch.uint8).view(-1, BLOCK_ROWS, k_blocks, chunks, 16)
    return cut.permute(2, 0, 1, 3, 4)


def _swizzled(blocks: Tensor, dense: bool) -> Tensor:
    """Blocks [.., 64, chunks, 16] with the chunks of each row exchanged; its own inverse."""
    rows = torch.arange(BLOCK_ROWS, device=blocks.device)[:, None]
    chunks = torch.arange(blocks.shape[-2], device=blocks.device)
    return blocks[:, :, rows, chunks ^ (rows & 7 if dense else rows >> 1 & 3)]


def _metadata(nibbles: Tensor, k_blocks: int, dtype: torch.dtype) -> Tensor:
    """Metadata [k_blocks, row_blocks, bytes]: two nibbles a byte, in the order of the threads."""
    pairs = nibbles[:, 0::2] | nibbles[:, 1::2] << 4
    if dtype.itemsize == 2:  # rows: warp, half, g; bytes of a row: c, 2
        cut = pairs.view(-1, 4, 2, 8, k_blocks, 4, 2)
        return cut.permute(4, 0, 1, 3, 5, 2, 6).flatten(2)
    # rows: warp, c & 1, g; bytes of a row: s, c >> 1, 4
    cut = pairs.view(-1, 4, 2, 8, k_blocks, 2, 2, 4)
    return cut.permute(4, 0, 1, 3, 6, 2, 5, 7).flatten(2)


def _nibbles_of(metadata: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of `_metadata`: nibbles [rows, groups]."""
    k_blocks, row_blocks, _ = metadata.shape
    if dtype.itemsize == 2:
        cut = metadata.unflatten(2, (4, 8, 4, 2, 2)).permute(1, 2, 5, 3, 0, 4, 6)
    else:
        cut = metadata.unflatten(2, (4, 8, 2, 2, 2, 4)).permute(1, 2, 5, 3, 0, 6, 4, 7)
    pairs = cut.reshape(row_blocks * BLOCK_ROWS, -1)
    return torch.stack([pairs & 15, pairs >> 4], -1).flatten(1)
