"""Permutation plan: for every class of channels the trade that keeps the most magnitude."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.sparsity.channel_graph import ChannelGraph
from workbench.sparsity.channel_rules import axes_of
from workbench.sparsity.permutation_search import kept_magnitude, search


@dataclass(frozen=True)
class Consumer:
    """Rows of a weight that share the roots of their input channels: one conv group, or all."""

    name: str
    rows: slice
    roots: Tensor  # [input channels per group]


def consumers(graph: ChannelGraph, name: str) -> list[Consumer]:
    """The weight's rows by the roots of their columns; none if its columns were not followed."""
    for component in graph.state[name].components:
        if 1 in (axes := axes_of(component)) and axes[-1] == 1:
            table, counts = component.flatten(1).unique_consecutive(dim=0, return_counts=True)
            ends = (
                counts.cumsum(0) if axes == [0, 1] else torch.tensor([graph.state[name].shape[0]])
            )
            starts = [0, *ends[:-1].tolist()]
            return [
                Consumer(name, slice(start, end), roots)
                for start, end, roots in zip(starts, ends.tolist(), table, strict=True)
            ]
    return []


def plan(
    graph: ChannelGraph, weights: Mapping[str, Tensor], keep: int, of: int, rounds: int
) -> Tensor:
    """Root -> the root whose channel takes its place, int64 [roots]; `weights` are those to prune.

    A class whose trade would lower the magnitude kept by all of its weights together, which can
    only be where groups hold channels of several classes, stays as it is.
    """
    highest = max([0, *(int(c.max()) for v in graph.state.values() for c in v.components)])
    source = torch.arange(highest + 1)
    readers = _readers(graph, weights, highest + 1)
    for members, of_class in zip(graph.classes, readers, strict=True):
        trade, is_exact = _trade(members, of_class, weights, keep, of, rounds)
        candidate = source.clone()
        candidate[members] = trade
        if not is_exact:
            names = sorted({consumer.name for consumer in of_class})
            before, after = (
                sum(
                    kept_magnitude(
                        as_matrix(traded(weights[n], graph.state[n].components, order)), keep, of
                    )
                    for n in names
                )
                for order in (source, candidate)
            )
            if after <= before:
                continue
        source = candidate
    return source


def _readers(graph: ChannelGraph, names: Iterable[str], size: int) -> list[list[Consumer]]:
    """For each class the consumers that read its channels."""
    class_of = torch.full((size,), -1)
    for index, members in enumerate(graph.classes):
        class_of[members] = index
    found: list[list[Consumer]] = [[] for _ in graph.classes]
    for name in names:
        for consumer in consumers(graph, name):
            for index in class_of[consumer.roots].unique().tolist():
                if index >= 0:
                    found[index].append(consumer)
    return found


def as_matrix(weight: Tensor) -> Tensor:
    """[out, in, *kernel] as [out * kernel, in]."""
    return weight.detach().movedim(1, -1).flatten(0, -2)


def traded(tensor: Tensor, components: tuple[Tensor, ...], source: Tensor) -> Tensor:
    """The tensor after the trade: places of root a hold what those of source[a] held, in order."""
    for component in components:
        axes = axes_of(component)
        if not axes or bool((source[component] == component).all()):
            continue
        front = list(range(len(axes)))
        held = component.movedim(axes, front).flatten()
        taken = torch.empty_like(held)
        taken[source[held].argsort(stable=True)] = held.argsort(stable=True)
        moved = tensor.movedim(axes, front)
        flat = moved.reshape(len(held), -1)[taken.to(tensor.device)]
        tensor = flat.reshape(moved.shape).movedim(front, axes)
    return tensor


def _trade(
    members: Tensor,
    of_class: list[Consumer],
    weights: Mapping[str, Tensor],
    keep: int,
    of: int,
    rounds: int,
) -> tuple[Tensor, bool]:
    """For each member the one that takes its place; whether every reader's gain was counted."""
    slots, parts, is_exact = None, [], True
    for consumer in sorted(of_class, key=lambda c: -weights[c.name][c.rows].numel()):
        for places in _places(members, consumer.roots):
            if slots is None:
                whole = _whole_groups(places, of)
                slots = whole if len(whole) >= 2 * of else None
            if slots is None or not _is_same_groups(places[slots], of):
                is_exact = False
            else:
                matrix = as_matrix(weights[consumer.name][consumer.rows])
                parts.append(matrix[:, places[slots]].float())
    trade = members.clone()
    if parts:
        trade[slots] = members[slots[search(torch.cat(parts), keep, of, rounds)]]
    return trade, is_exact or torch.equal(trade, members)


def _is_same_groups(columns: Tensor, of: int) -> bool:
    """Whether every `of` columns in turn are one group of the weight."""
    groups = (columns // of).view(-1, of)
    return bool((groups == groups[:, :1]).all())


def _places(members: Tensor, roots: Tensor) -> Tensor:
    """Columns of each member, [times it occurs, members]."""
    columns = torch.isin(roots, members).nonzero()[:, 0]
    columns = columns[roots[columns].argsort(stable=True)]
    return columns.view(len(members), -1).T  # as many each: the parameter's mark says so


def _whole_groups(places: Tensor, of: int) -> Tensor:
    """Members, by column, whose group of `of` columns holds members only."""
    order = places.argsort()
    groups, counts = (places[order] // of).unique_consecutive(return_counts=True)
    whole = groups[counts == of]
    return order[torch.isin(places[order] // of, whole)]
