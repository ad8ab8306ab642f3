"""Channel atoms: channels that move as one, tied by union-find, and where tensors hold them."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NEUTRAL = 0  # a position whose value is the same for every channel, such as padding


@dataclass(frozen=True)
class Value:
    """What a tensor of the graph does when channels trade places.

    Each component is an int64 tensor of atoms that broadcasts to `shape` (size 1 where it does not
    vary); trading atoms a and b trades the positions of a with those of b, in order. An activation
    has one component, a weight one per axis; none means that the tensor never changes.
    """

    shape: tuple[int, ...]
    components: tuple[Tensor, ...] = ()


class Atoms:
    """Union-find over channels: atoms that must move as one, with what restricts them."""

    def __init__(self) -> None:
        """No atoms; 0 is NEUTRAL."""
        self._parent = [NEUTRAL]
        self._reasons: dict[int, str] = {}
        self._tokens: dict[int, list[Any]] = defaultdict(list)

    def new(self, *shape: int) -> Tensor:
        """Fresh atoms."""
        start, count = len(self._parent), torch.Size(shape).numel()
        self._parent += range(start, start + count)
        return torch.arange(start, start + count).view(shape)

    def find(self, atom: int) -> int:
        """The atom that stands for all those that move with `atom`."""
        while (parent := self._parent[atom]) != atom:
            self._parent[atom] = atom = self._parent[parent]
        return atom

    def roots(self, atoms: Tensor) -> Tensor:
        """`find` of every element."""
        values, inverse = atoms.unique(return_inverse=True)
        return torch.tensor([self.find(a) for a in values.tolist()])[inverse].view(atoms.shape)

    def join(self, a: Tensor, b: Tensor) -> Tensor:
        """Tie two tensors of atoms element by element; the tensor that stands for both."""
        a, b = torch.broadcast_tensors(a, b)
        pairs = torch.stack([a.reshape(-1), b.reshape(-1)], 1).unique(dim=0)
        for first, second in pairs.tolist():
            if first != NEUTRAL and second != NEUTRAL:
                self._parent[self.find(second)] = self.find(first)
        return torch.where(a == NEUTRAL, b, a)

    def freeze(self, atoms: Tensor, reason: str) -> None:
        """These atoms keep their places."""
        for atom in atoms.unique().tolist():
            self._reasons.setdefault(atom, reason)

    def mark(self, atoms: Tensor, token: Any) -> None:
        """Only atoms with the same marks may trade places."""
        for atom in atoms.unique().tolist():
            self._tokens[atom].append(token)

    def frozen(self) -> dict[int, str]:
        """Root of a frozen atom -> the reason."""
        reasons: dict[int, str] = {}
        for atom, reason in self._reasons.items():
            reasons.setdefault(self.find(atom), reason)
        return reasons

    def classes(self) -> list[Tensor]:
        """Roots that may trade places, 2 or more at a time, by lowest root."""
        tokens: dict[int, set[Any]] = defaultdict(set)
        for atom, found in self._tokens.items():
            tokens[self.find(atom)].update(found)
        frozen = self.frozen()
        groups: dict[frozenset[Any], list[int]] = defaultdict(list)
        for root in sorted(tokens):
            if root != NEUTRAL and root not in frozen:
                groups[frozenset(tokens[root])].append(root)
        return [torch.tensor(roots) for roots in groups.values() if len(roots) > 1]
