"""Permutation search: an order of columns whose keep N of M groups keep more magnitude."""

import copy

import torch
from torch import Tensor

_BEST_SLOTS = 64  # of a 3-cycle's first and second move; measured: more gains little
_KICK = 6  # columns cycled by one escape
_CHUNK = 2_000_000  # elements at once, to bound memory
_ROWS = 128  # of one distance matrix: fits the cache, 1.6 times as fast as all rows at once
_FORBIDDEN = -1e30


def search(matrix: Tensor, keep: int = 2, of: int = 4, rounds: int = 60) -> Tensor:
    """Order of the columns of `matrix` [rows, columns], int64 [columns], on the CPU.

    `matrix[:, order]` keeps at least the magnitude of `matrix` when every group of `of`
    neighbors keeps its `keep` largest. One round exchanges columns in disjoint pairs of groups
    (or moves them around disjoint cycles of three groups) as long as each exchange gains; at a
    local optimum six columns are cycled at random and the search goes on, until `rounds` are
    spent. Same matrix, same budget, same device: same order; no global random state is used.
    """
    check_pattern(keep, of)
    if matrix.dim() != 2 or not matrix.is_floating_point() or matrix.shape[1] % of:
        raise ValueError(
            f"a {matrix.dtype} matrix of shape {list(matrix.shape)} given; a floating point "
            f"[rows, columns] with columns a multiple of {of} is allowed; leave the rest out"
        )
    if rounds < 0:
        raise ValueError(f"rounds is {rounds}; 0 or more is allowed")
    columns = matrix.detach().abs().float().T.contiguous()  # [columns, rows]
    if not columns.isfinite().all():
        raise ValueError("the matrix holds NaN or infinity; find the step that broke it")
    identity = torch.arange(len(columns))
    if rounds == 0 or keep == of or len(columns) < 2 * of or not columns.numel():
        return identity
    order = _improved(_State(columns, keep, of), rounds).order.cpu()
    # gains were summed in fp32: the exact sums decide
    before, after = (kept_magnitude(matrix[:, o], keep, of) for o in (identity, order))
    return order if after > before else identity


def kept_magnitude(matrix: Tensor, keep: int, of: int) -> float:
    """Sum of |m| over the `keep` largest of every `of` neighboring columns, in fp64."""
    total = 0.0
    for part in matrix.split(max(1, _CHUNK // max(1, matrix.shape[1]))):
        groups = part.detach().abs().unflatten(1, (-1, of))
        total += groups.topk(keep, dim=2).values.sum(dtype=torch.float64).item()
    return total


def check_pattern(keep: int, of: int) -> None:
    """Refuse what is not keep N of M with 1 <= N <= M."""
    if not 1 <= keep <= of:
        raise ValueError(f"keep {keep} of {of} given; 1 <= keep <= of is allowed")


def _improved(state: "_State", rounds: int) -> "_State":
    """The best state found in `rounds` rounds."""
    generator = torch.Generator().manual_seed(0)
    best, best_kept = state, -1.0
    while True:
        rounds = _descend(state, rounds)
        if (kept := state.kept()) > best_kept:
            best, best_kept = state, kept
        if rounds <= 0:
            return best
        state = best.copy()
        slots = torch.randperm(len(state.order), generator=generator)[:_KICK].to(state.device)
        state.move(slots, slots.roll(1), torch.unique(slots // state.of))
        rounds -= 1


def _descend(state: "_State", rounds: int) -> int:
    """Exchange until nothing gains or the rounds are spent; the rounds left."""
    while rounds > 0:
        rounds -= 1
        if not state.exchange_pairs() and not state.exchange_triples():
            break
    return rounds


class _State:
    """An order of columns with the exact effect of every single replacement.

    gain[i, j] is what group(i) gains if slot i held the column now in slot j: a group without
    slot i keeps s_i with its keep-th largest value v_i, so it would keep s_i + max(0, x_j - v_i).
    Summed over rows that is (|x_j - v_i|_1 + sum x_j - sum v_i) / 2, one L1 distance matrix.
    Effects of exchanges whose groups differ add up.
    """

    def __init__(self, columns: Tensor, keep: int, of: int) -> None:
        self.keep, self.of, self.device = keep, of, columns.device
        size = len(columns)
        groups = size // of
        self.columns = columns.clone()  # [slots, rows], in the current order
        self.order = torch.arange(size, device=self.device)
        self.limits = torch.empty_like(columns)  # v
        self.gain = columns.new_empty(size, size)
        self.pair_gain = columns.new_empty(groups, groups)  # of the best swap of two groups
        self.pair = torch.empty(groups, groups, dtype=torch.int64, device=self.device)
        self.column_sums = columns.sum(1)
        self.limit_sums = columns.new_empty(size)
        self.offsets = columns.new_empty(size)  # s_i - kept by group(i)
        self.tolerance = 2e-6 * self.column_sums.max().item()  # fp32 noise of a row sum
        self._refresh(torch.arange(groups, device=self.device))

    def copy(self) -> "_State":
        new = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(new, name, value.clone())
        return new

    def kept(self) -> float:
        top = self.columns.view(-1, self.of, self.columns.shape[1]).topk(self.keep, dim=1)
        return top.values.sum(dtype=torch.float64).item()

    def move(self, to: Tensor, source: Tensor, groups: Tensor) -> None:
        """Put the columns of slots `source` into slots `to`, all of them in `groups`."""
        for held in (self.columns, self.order, self.column_sums):
            held[to] = held[source]
        self._refresh(groups)

    def exchange_pairs(self) -> bool:
        """Swap the best column pair of disjoint pairs of groups; False if none gains."""
        first, second = _disjoint_pairs(self.pair_gain, self.tolerance)
        if not len(first):
            return False
        pair = self.pair[first, second]
        a, b = first * self.of + pair // self.of, second * self.of + pair % self.of
        self.move(torch.cat([a, b]), torch.cat([b, a]), torch.cat([first, second]).sort().values)
        return True

    def exchange_triples(self) -> bool:
        """Move columns around disjoint cycles of three groups; False if none gains."""
        total, second, third = self._best_triples()
        used: set[int] = set()
        to, source = [], []
        for i in total.argsort(descending=True, stable=True).tolist():
            if total[i] <= self.tolerance:
                break
            j, k = second[i].item(), third[i].item()
            groups = {i // self.of, j // self.of, k // self.of}
            if len(groups) == 3 and not used & groups:
                used |= groups
                to += [j, k, i]
                source += [i, j, k]
        if to:
            # as many slots as groups
            self.move(*torch.tensor([to, source, sorted(used)], device=self.device))
        return bool(to)

    def _best_triples(self) -> tuple[Tensor, Tensor, Tensor]:
        """For each column i the best gain of i -> slot j, j -> slot k, k -> slot i, with j, k."""
        size = len(self.order)
        count = min(_BEST_SLOTS, size)
        first, slots = torch.topk(self.gain.T, count, dim=1)  # best slots for each column
        totals, seconds, thirds = [], [], []
        step = max(1, _CHUNK // count**2)
        for start in range(0, size, step):
            i = torch.arange(start, min(start + step, size), device=self.device)
            j = slots[i]  # [i, j]
            k = slots[j]  # [i, j, k]
            gain = first[i][:, :, None] + first[j] + self.gain[i[:, None, None], k]
            best, at = gain.flatten(1).max(1)
            totals.append(best)
            seconds.append(j.gather(1, (at // count)[:, None])[:, 0])
            thirds.append(k.flatten(1).gather(1, at[:, None])[:, 0])
        return tuple(torch.cat(part).cpu() for part in (totals, seconds, thirds))

    def _refresh(self, groups: Tensor) -> None:
        """Recompute what depends on the columns in `groups`."""
        of, size = self.of, len(self.order)
        slots = (groups[:, None] * of + torch.arange(of, device=self.device)).flatten()
        step = max(1, _CHUNK // (of * max(1, self.columns.shape[1])))
        for part in slots.split(step * of):
            self._refresh_limits(part)
        every = torch.arange(size, device=self.device)
        if 2 * len(slots) < size:
            self.gain[slots] = self._gain_of(slots, every)
            self.gain[:, slots] = self._gain_of(every, slots)
        else:  # one whole matrix costs less than two parts
            self.gain = self._gain_of(every, every)
        by_group = self.gain.view(size // of, of, size // of, of)
        by_group.diagonal(dim1=0, dim2=2).fill_(_FORBIDDEN)  # no exchange inside a group
        both = (self.gain[slots] + self.gain[:, slots].T).view(-1, of, size // of, of)
        best, pair = both.transpose(1, 2).flatten(2).max(2)
        self.pair_gain[groups], self.pair[groups] = best, pair
        self.pair_gain[:, groups] = best.T
        self.pair[:, groups] = (pair % of * of + pair // of).T

    def _gain_of(self, slots: Tensor, held: Tensor) -> Tensor:
        """Gain of the groups of `slots` if these held the columns now in slots `held`."""
        distance = self.column_sums[held] - self.limit_sums[slots, None]
        limits, columns = self.limits[slots], self.columns[held]
        for start in range(0, columns.shape[1], _ROWS):
            part = slice(start, start + _ROWS)
            distance += torch.cdist(
                limits[:, part].contiguous(), columns[:, part].contiguous(), p=1
            )
        return distance.div_(2).add_(self.offsets[slots, None])

    def _refresh_limits(self, slots: Tensor) -> None:
        x = self.columns[slots].unflatten(0, (-1, self.of))  # [groups, of, rows]
        top = x.topk(self.keep + 1, dim=1).values
        last, spare = top[:, self.keep - 1 : self.keep], top[:, self.keep :]
        in_top = x >= last
        limits = torch.where(in_top, spare, last).flatten(0, 1)
        self.limits[slots] = limits
        self.limit_sums[slots] = limits.sum(1)
        # a kept column leaves its place to the spare one
        self.offsets[slots] = torch.where(in_top, spare - x, 0.0).sum(2).flatten()


def _disjoint_pairs(gain: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Indices (a, b), a < b, of pairs of rows in greedy order of a symmetric gain matrix."""
    gain = gain.clone()
    chosen = []
    every = torch.arange(len(gain), device=gain.device)
    while True:
        best, partner = gain.max(1)
        mutual = (best > tolerance) & (partner[partner] == every) & (every < partner)
        first = mutual.nonzero()[:, 0]
        if not len(first):
            break
        chosen.append(torch.stack([first, partner[first]]))
        taken = chosen[-1].flatten()
        gain[taken] = _FORBIDDEN
        gain[:, taken] = _FORBIDDEN
    pairs = torch.cat(chosen, 1) if chosen else every.new_empty(2, 0)
    return pairs[0], pairs[1]
