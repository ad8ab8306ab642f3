"""Rows as the kernels read them: columns contiguous, a multiple of 16 bytes apart."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from .seam import pitch


def aligned(x: Tensor, columns: int) -> Tensor:
    """x as [tokens, columns] with the pitch that the kernels read; a copy only where it must be."""
    flat = x if x.dim() == 2 else x.reshape(-1, columns)
    rows, step = flat.stride()
    size = flat.element_size()
    # a traced tensor does not say where it starts
    starts = torch.compiler.is_compiling() or flat.storage_offset() * size % 16 == 0
    if step == 1 and rows >= columns and rows * size % 16 == 0 and starts:
        return flat
    wide = pitch(columns, flat.dtype)
    if wide == columns:
        return flat.new_empty(flat.shape).copy_(flat)
    if size == 1:  # not every torch pads float8
        return pad(flat.view(torch.int8), (0, wide - columns)).view(flat.dtype)[:, :columns]
    return pad(flat, (0, wide - columns))[:, :columns]
