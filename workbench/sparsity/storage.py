"""Storage: what a pattern keeps of the magnitude, and the bytes of weights with their metadata."""

import math

import torch
from torch import nn

from workbench.sparsity.masks import Masks
from workbench.sparsity.names import SparsityError

VALUE = 2  # bytes of a weight, at 16 bits
POINTER = 4  # bytes of where a row begins in CSR


def kept_magnitude(model: nn.Module, masks: Masks) -> float:
    """The share of the sum of |w| of the masked weights that `masks` keep, before they are applied.

    1 if nothing is masked.
    """
    kept = whole = 0.0
    for _, weight, mask in masks.pairs(model):
        magnitude = weight.detach().abs().double()
        whole += float(magnitude.sum())
        kept += float(magnitude[mask.to(weight.device)].sum())
    return kept / whole if whole else 1.0


def storage(model: nn.Module, masks: Masks) -> dict[str, int]:
    """Bytes of all parameters at 16 bits: the values that are kept, and what says where they lie.

    n:m: the index of each kept value in its group, 2 bits for 2:4. Blocks: a bit for each. CSR for
    unstructured: a column for each value (16 bits where the columns fit) and where rows begin.
    """
    kind = masks.pattern.get("kind")
    if masks and kind not in _METADATA:
        raise SparsityError(
            f"the storage of pattern {kind} is not defined; known: {', '.join(_METADATA)}"
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    values, bits = parameters, 0
    for name, _, mask in masks.pairs(model):
        oriented = masks.layout(name).oriented(mask).flatten(1)
        values -= int((~mask).sum())
        bits += _METADATA[kind](oriented, masks.pattern)
    metadata = math.ceil(bits / 8)
    return {
        "values_bytes": VALUE * values,
        "metadata_bytes": metadata,
        "bytes": VALUE * values + metadata,
    }


def _nm(mask: torch.Tensor, pattern: dict) -> int:
    return int(mask.sum()) * math.ceil(math.log2(pattern["of"]))


def _transposable(mask: torch.Tensor, pattern: dict) -> int:
    return int(mask.sum()) * 2


def _block(mask: torch.Tensor, pattern: dict) -> int:
    return math.ceil(mask.numel() / (pattern["rows"] * pattern["columns"]))


def _csr(mask: torch.Tensor, pattern: dict) -> int:
    index = 16 if mask.shape[1] <= 2**16 else 32
    return int(mask.sum()) * index + 8 * POINTER * (mask.shape[0] + 1)


_METADATA = {
    "nm": _nm,
    "transposable": _transposable,
    "block": _block,
    "unstructured": _csr,
    "unstructured_global": _csr,
}
