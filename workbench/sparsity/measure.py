"""Measure: density, 2:4 validity and size of a model's weights."""

from typing import Any

import torch
from torch import Tensor, nn

from workbench.sparsity.eligibility import weights
from workbench.sparsity.layouts import CHANNELS_SECOND, Layout, layout_of
from workbench.sparsity.names import SparsityError


def is_nm(weight: Tensor, keep: int, of: int, layout: Layout = CHANNELS_SECOND) -> bool:
    """Whether every `of` consecutive input channels hold at most `keep` non-zeros.

    False if the input channels do not split into groups of `of`.
    """
    if weight.dim() < 2 or layout.channels(weight) % of:
        return False
    nonzero = layout.oriented(weight.detach() != 0).unflatten(1, (-1, of))
    return bool((nonzero.sum(2, dtype=torch.int32) <= keep).all())


def refuse_unless_nm(
    name: str,
    weight: Tensor,
    keep: int,
    of: int,
    layout: Layout = CHANNELS_SECOND,
    exactly: bool = False,
) -> None:
    """Raise SparsityError, naming layer and group, unless every group holds at most `keep`."""
    if weight.dim() < 2 or layout.channels(weight) % of:
        raise SparsityError(
            f"{name}: shape {list(weight.shape)} has no whole groups of {of} input channels"
        )
    groups = layout.oriented(weight.detach()).unflatten(1, (-1, of)).movedim(2, -1)
    counts = (groups != 0).sum(-1, dtype=torch.int32)
    wrong = (counts != keep if exactly else counts > keep).nonzero()
    if len(wrong):
        first = wrong[0].tolist()
        raise SparsityError(
            f"{name}: {len(wrong)} of {counts.numel()} groups do not keep {keep} of {of} input "
            f"channels; the first is [out, group, *kernel] {first}: "
            f"{groups[tuple(first)].tolist()}"
        )


def layer_sparsity(model: nn.Module) -> list[dict[str, Any]]:
    """One row per weight over input channels: layer, shape, weights, nonzero, density, is_2to4."""
    rows = []
    for name, (module, weight) in weights(model).items():
        nonzero = int(weight.detach().count_nonzero())
        rows.append(
            {
                "layer": name,
                "shape": tuple(weight.shape),
                "weights": weight.numel(),
                "nonzero": nonzero,
                "density": nonzero / weight.numel(),
                "is_2to4": is_nm(weight, 2, 4, layout_of(module)),
            }
        )
    return rows


def summary(model: nn.Module) -> dict[str, float]:
    """Counts and density over the weights of `layer_sparsity`, bytes of all parameters at 16 bits.

    A 2:4 weight of n values compresses to n/2 values of 2 bytes plus 2 bits of metadata each.
    """
    rows = layer_sparsity(model)
    total = sum(row["weights"] for row in rows)
    nonzero = sum(row["nonzero"] for row in rows)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    in_2to4 = sum(row["weights"] for row in rows if row["is_2to4"])
    return {
        "parameters": parameters,
        "weights": total,
        "nonzero": nonzero,
        "density": nonzero / total if total else 1.0,
        "weights_2to4": in_2to4,
        "dense_bytes": 2 * parameters,
        # in a 2:4 weight: n/2 * 2 bytes + n/2 * 2 bits = 9/8 n bytes, against 2 n dense
        "compressed_bytes": 2 * parameters - in_2to4 * 7 // 8,
    }
