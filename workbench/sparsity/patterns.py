"""Patterns: weight -> mask (True where kept), chosen by magnitude."""

import itertools
import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from workbench.sparsity.names import SparsityError

# Weights taken at once: on a CPU what stays in cache, on a GPU what hides the launch of a kernel.
_CHUNK = {"cpu": 2**18, "cuda": 2**25}
_INFINITE = 0x7F800000  # the bits of infinity in fp32; those of NaN are larger
_TABLE_OF = 4  # up to this many channels the comparisons of a group fit a table of 2**6 outcomes


def nm(weight: Tensor, keep: int, of: int) -> Tensor:
    """Mask that keeps `keep` of every `of` consecutive input channels.

    Weights are [out, in / groups, *kernel]; a group runs along dimension 1 at one output channel
    and one kernel position. Scores are |w| in fp32; among equals the lowest index is kept.
    """
    if not 1 <= keep <= of <= 16:
        raise SparsityError(f"nm: keep {keep} of {of} given; 1 <= keep <= of <= 16 is allowed")
    weight = _shaped(weight, "nm", 1, of)
    find_kept = _kept_by_table if of <= _TABLE_OF else _kept_by_count
    mask = torch.empty_like(weight, dtype=torch.bool)  # same memory format as the weight
    rows = _rows_at_once(weight)
    scratch = torch.empty_like(weight[:rows], dtype=torch.float32)  # fresh pages cost more than abs
    largest = []
    for part, out in zip(weight.split(rows), mask.split(rows), strict=True):
        # the bits of a non-negative float order as the float does, and integers compare faster
        bits = scratch[: len(part)].copy_(part).abs_().view(torch.int32)
        largest.append(bits.max())
        lanes = bits.unflatten(1, (-1, of)).unbind(2)
        out.unflatten(1, (-1, of)).copy_(find_kept(lanes, keep).movedim(-1, 2))
    if torch.stack(largest).max() >= _INFINITE:
        _refuse_non_finite(weight, "nm", 1, of)
    return mask


def _kept_by_table(lanes: Sequence[Tensor], keep: int) -> Tensor:
    """Kept lanes, last: the outcomes of all comparisons are bits of an index into a table."""
    code = torch.zeros(lanes[0].shape, dtype=torch.uint8, device=lanes[0].device)
    for bit, (i, j) in enumerate(itertools.combinations(range(len(lanes)), 2)):
        code.add_((lanes[i] >= lanes[j]).view(torch.uint8), alpha=1 << bit)
    kept = _table(keep, len(lanes), code.device).index_select(0, code.flatten().int())
    return kept.view(torch.bool).view(*code.shape, 4)[..., : len(lanes)]


@cache
def _table(keep: int, of: int, device: torch.device) -> Tensor:
    """Four bools in one int32 for each outcome: the lanes that at most `keep` - 1 others beat."""
    pairs = list(itertools.combinations(range(of), 2))
    kept = torch.zeros(1 << len(pairs), 4, dtype=torch.bool)
    for code in range(len(kept)):
        beaten = [0] * of
        for bit, (i, j) in enumerate(pairs):
            beaten[j if code >> bit & 1 else i] += 1  # >= : the lowest index wins a tie
        kept[code, :of] = torch.tensor(beaten) < keep
    return kept.view(torch.int32).flatten().to(device)


def _kept_by_count(lanes: Sequence[Tensor], keep: int) -> Tensor:
    """Kept lanes, last: those that at most `keep` - 1 others beat."""
    shape, device = (len(lanes), *lanes[0].shape), lanes[0].device
    beaten = torch.zeros(shape, dtype=torch.uint8, device=device)
    for i, j in itertools.combinations(range(len(lanes)), 2):
        wins = lanes[i] >= lanes[j]  # >= : the lowest index wins a tie
        beaten[j] += wins
        beaten[i] += ~wins
    return (beaten < keep).movedim(0, -1)


def transposable(weight: Tensor, search: str = "exact") -> Tensor:
    """Mask that keeps 2 of 4 along input and along output channels, so the transpose is 2:4 too.

    Per 4 x 4 block over (out, in) at one kernel position. "exact" takes the one of the 90 masks
    that keeps the largest L1 magnitude (fp64 sums; among equals the one whose kept positions come
    first in row-major order). "greedy" takes positions by falling magnitude while their row and
    column have room: it keeps 7 or 8 of 16.
    """
    if search not in (searches := {"exact": _exact_blocks, "greedy": _greedy_blocks}):
        raise SparsityError(f"transposable: search {search!r} given; one of {', '.join(searches)}")
    weight = _checked(weight, "transposable", 4, 4)
    mask = torch.empty_like(weight, dtype=torch.bool)
    rows = math.ceil(_rows_at_once(weight) / 4) * 4
    for part, out in zip(weight.split(rows), mask.split(rows), strict=True):
        blocks = _blocks_last(part.abs().float())
        kept = searches[search](blocks.reshape(-1, 16))
        _blocks_last(out).copy_(kept.view(blocks.shape))
    return mask


def _blocks_last(weight: Tensor) -> Tensor:
    """View of [out, in, *kernel] as [out / 4, in / 4, *kernel, 4, 4]."""
    return weight.unflatten(1, (-1, 4)).unflatten(0, (-1, 4)).movedim((1, 3), (-2, -1))


def _exact_blocks(scores: Tensor) -> Tensor:
    candidates = _transposable_masks(scores.device)
    return candidates[(scores.double() @ candidates.T.double()).argmax(1)]  # the first maximum


@cache
def _transposable_masks(device: torch.device) -> Tensor:
    """The 90 masks [90, 16] of a block, those that keep earlier positions first."""
    lines = [line for line in itertools.product((1, 0), repeat=4) if sum(line) == 2]
    masks = [
        m for m in itertools.product(lines, repeat=4) if set(map(sum, zip(*m, strict=True))) == {2}
    ]
    return torch.tensor(masks, dtype=torch.bool, device=device).flatten(1)


def _greedy_blocks(scores: Tensor) -> Tensor:
    kept = torch.zeros_like(scores, dtype=torch.bool)
    in_row = torch.zeros(len(scores), 4, dtype=torch.uint8, device=scores.device)
    in_column = torch.zeros_like(in_row)
    for position in scores.argsort(dim=1, descending=True, stable=True).T[:, :, None]:
        row, column = position // 4, position % 4
        fits = (in_row.gather(1, row) < 2) & (in_column.gather(1, column) < 2)
        kept.scatter_(1, position, fits)
        in_row.scatter_add_(1, row, fits.byte())
        in_column.scatter_add_(1, column, fits.byte())
    return kept


def block(weight: Tensor, rows: int, columns: int, density: float) -> Tensor:
    """Mask that keeps the rows x columns blocks of largest L1 magnitude.

    Blocks lie over (out, in) at one kernel position; `density` is the share of the weight's blocks
    that is kept, rounded half up; among equals the lowest (out, in, kernel) index is kept.
    """
    if rows < 1 or columns < 1:
        raise SparsityError(f"block: {rows} x {columns} given; rows and columns must be at least 1")
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
    return unstructured_global([weight], density)[0]


def unstructured_global(weights: Sequence[Tensor], density: float) -> list[Tensor]:
    """Masks that keep the share `density` of largest |w| of all weights together.

    Rounded half up, scores in fp32; among equals the first weight and lowest index are kept.
    """
    weights = [_checked(weight, "unstructured", 1, 1) for weight in weights]
    scores = torch.cat([weight.abs().float().flatten() for weight in weights])
    kept = _largest(scores, density, "unstructured").split([weight.numel() for weight in weights])
    return [
        torch.empty_like(weight, dtype=torch.bool).copy_(mask.view(weight.shape))
        for weight, mask in zip(weights, kept, strict=True)
    ]


def _rows_at_once(weight: Tensor) -> int:
    """Output channels of one chunk."""
    chunk = _CHUNK.get(weight.device.type, _CHUNK["cpu"])
    return max(1, chunk * weight.shape[0] // weight.numel())


def _largest(scores: Tensor, density: float, pattern: str) -> Tensor:
    if not 0 < density <= 1:
        raise SparsityError(f"{pattern}: density {density} given; 0 < density <= 1 is allowed")
    flat = scores.flatten()
    count = math.floor(density * flat.numel() + 0.5)
    if count == 0:
        raise SparsityError(
            f"{pattern}: density {density} of {flat.numel()} keeps nothing; "
            "raise the density or leave this weight dense"
        )
    cut = flat.kthvalue(flat.numel() - count + 1).values
    above, ties = flat > cut, flat == cut
    room = count - above.sum()
    return (above | (ties & (ties.cumsum(0) <= room))).view(scores.shape)


def _checked(weight: Tensor, pattern: str, rows: int, columns: int) -> Tensor:
    """The weight without its graph, if it splits into finite groups of rows x columns."""
    weight = _shaped(weight, pattern, rows, columns)
    low, high = torch.aminmax(weight)  # NaN propagates
    if not torch.isfinite(low) & torch.isfinite(high):
        _refuse_non_finite(weight, pattern, rows, columns)
    return weight


def _refuse_non_finite(weight: Tensor, pattern: str, rows: int, columns: int) -> None:
    first = (~torch.isfinite(weight.float())).nonzero()[0].tolist()
    group_index = [first[0] // rows, first[1] // columns, *first[2:]]
    raise SparsityError(
        f"{pattern}: weight is {weight[tuple(first)].item()} at index {first} "
        f"(group {group_index}); only finite weights can be ranked; find the step that broke it"
    )


def _shaped(weight: Tensor, pattern: str, rows: int, columns: int) -> Tensor:
    """The weight without its graph, if it splits into groups of rows x columns."""
    weight = weight.detach()
    shape = list(weight.shape)
    if weight.dim() < 2 or not weight.is_floating_point() or weight.numel() == 0:
        raise SparsityError(
            f"{pattern}: a {weight.dtype} tensor of shape {shape} given; a non-empty floating "
            "point weight [out, in / groups, *kernel] is allowed"
        )
    for what, size, group in (("out", shape[0], rows), ("in / groups", shape[1], columns)):
        if size % group:
            raise SparsityError(
                f"{pattern}: {what} is {size} in {shape}; a multiple of {group} is allowed; "
                f"pad it to {size + group - size % group} or leave this weight dense"
            )
    return weight
