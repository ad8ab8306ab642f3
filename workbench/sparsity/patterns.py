"""Patterns: weight -> mask (True where kept), chosen by magnitude."""

import math

import torch
from torch import Tensor

# Chunks of about this many weights stay in cache: up to 1.5x faster than whole linear layers (CPU).
_CHUNK = 2**20


def nm(weight: Tensor, keep: int, of: int) -> Tensor:
    """Mask that keeps `keep` of every `of` consecutive input channels.

    Weights are [out, in / groups, *kernel]; a group runs along dimension 1 at one output channel
    and one kernel position. Scores are |w| in fp32; among equals the lowest index is kept.
    """
    if not 1 <= keep <= of <= 256:
        raise ValueError(f"nm: keep {keep} of {of} given; 1 <= keep <= of <= 256 is allowed")
    weight = _checked(weight, "nm", 1, of)
    mask = torch.empty_like(weight, dtype=torch.bool)  # same memory format as the weight
    rows = max(1, _CHUNK * weight.shape[0] // weight.numel())
    for part, out in zip(weight.split(rows), mask.split(rows), strict=True):
        scores = _group_first(part, of).abs().float().contiguous()
        beaten = torch.zeros(scores.shape, dtype=torch.uint8, device=weight.device)
        for i in range(of):
            for j in range(i + 1, of):
                wins = scores[i] >= scores[j]  # >= : the lowest index wins a tie
                beaten[j] += wins
                beaten[i] += ~wins
        _group_first(out, of).copy_(beaten < keep)
    return mask


def block(weight: Tensor, rows: int, columns: int, density: float) -> Tensor:
    """Mask that keeps the rows x columns blocks of largest L1 magnitude.

    Blocks lie over (out, in) at one kernel position; `density` is the share of the weight's blocks
    that is kept, rounded half up; among equals the lowest (out, in, kernel) index is kept.
    """
    if rows < 1 or columns < 1:
        raise ValueError(f"block: {rows} x {columns} given; rows and columns must be at least 1")
    weight = _checked(weight, "block", rows, columns)
    blocks = weight.abs().unflatten(1, (-1, columns)).unflatten(0, (-1, rows))
    magnitude = blocks.sum(dim=(1, 3), dtype=torch.float64)  # [out / rows, in / columns, *kernel]
    kept = _largest(magnitude, density, "block")
    kept = kept.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return torch.empty_like(weight, dtype=torch.bool).copy_(kept)


def unstructured(weight: Tensor, density: float) -> Tensor:
    """Mask that keeps the share `density` of largest |w| of this weight, rounded half up.

    Scores are in fp32; among equals the lowest index is kept.
    """
    weight = _checked(weight, "unstructured", 1, 1)
    kept = _largest(weight.abs().float(), density, "unstructured")
    return torch.empty_like(weight, dtype=torch.bool).copy_(kept)


def _group_first(weight: Tensor, of: int) -> Tensor:
    """View of [out, in, *kernel] as [of, out, in / of, *kernel]."""
    return weight.unflatten(1, (-1, of)).movedim(2, 0)


def _largest(scores: Tensor, density: float, pattern: str) -> Tensor:
    if not 0 < density <= 1:
        raise ValueError(f"{pattern}: density {density} given; 0 < density <= 1 is allowed")
    flat = scores.flatten()
    count = math.floor(density * flat.numel() + 0.5)
    if count == 0:
        raise ValueError(
            f"{pattern}: density {density} of {flat.numel()} keeps nothing; "
            "raise the density or leave this weight dense"
        )
    cut = flat.topk(count, sorted=False).values.amin()
    above, ties = flat > cut, flat == cut
    room = count - above.sum()
    return (above | (ties & (ties.cumsum(0) <= room))).view(scores.shape)


def _checked(weight: Tensor, pattern: str, rows: int, columns: int) -> Tensor:
    """The weight without its graph, if it splits into finite groups of rows x columns."""
    weight = weight.detach()
    shape = list(weight.shape)
    if weight.dim() < 2 or not weight.is_floating_point() or weight.numel() == 0:
        raise ValueError(
            f"{pattern}: a {weight.dtype} tensor of shape {shape} given; a non-empty floating "
            "point weight [out, in / groups, *kernel] is allowed"
        )
    for what, size, group in (("out", shape[0], rows), ("in / groups", shape[1], columns)):
        if size % group:
            raise ValueError(
                f"{pattern}: {what} is {size} in {shape}; a multiple of {group} is allowed; "
                f"pad it to {size + group - size % group} or leave this weight dense"
            )
    low, high = torch.aminmax(weight)  # NaN propagates
    if not torch.isfinite(low) & torch.isfinite(high):
        first = (~torch.isfinite(weight)).nonzero()[0].tolist()
        group_index = [first[0] // rows, first[1] // columns, *first[2:]]
        raise ValueError(
            f"{pattern}: weight is {weight[tuple(first)].item()} at index {first} "
            f"(group {group_index}); only finite weights can be ranked; find the step that broke it"
        )
    return weight
