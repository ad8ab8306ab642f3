"""Permute: trade channels so that pruning keeps more magnitude, the function unchanged."""

import copy
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workbench.sparsity import permutation_proof as proof
from workbench.sparsity.channel_graph import ChannelGraph, first_names, follow, trace
from workbench.sparsity.eligibility import Rule, explain
from workbench.sparsity.permutation_plan import as_matrix, consumers, plan, traded
from workbench.sparsity.permutation_search import check_pattern, kept_magnitude


@dataclass(frozen=True)
class LayerMagnitude:
    """|w| kept in one layer by keep N of M, before and after, with its two upper bounds."""

    name: str
    before: float
    after: float
    row_bound: float  # the largest N/M of every row: no order of columns keeps more
    unstructured: float  # the largest N/M of the whole weight
    reason: str  # why nothing was gained; "" otherwise

    @property
    def efficacy(self) -> float:
        """Gained share of what an order of columns could at most gain, in percent."""
        room = self.row_bound - self.before
        return 100 * (self.after - self.before) / room if room > 0 else 0.0


@dataclass(frozen=True)
class PermutationReport:
    """What `permute` did: every layer's kept magnitude, and the proof's largest error."""

    layers: tuple[LayerMagnitude, ...]
    largest_error: float  # of the outputs in fp64, relative to the largest output
    tolerance: float

    @property
    def total(self) -> LayerMagnitude:
        """All layers together."""
        sums = [
            sum(getattr(layer, name) for layer in self.layers)
            for name in ("before", "after", "row_bound", "unstructured")
        ]
        return LayerMagnitude("total", *sums, "")

    def __str__(self) -> str:
        """A table with one line per layer."""
        lines = [f"{'layer':40} {'before':>12} {'after':>12} {'row bound':>12} {'efficacy %':>10}"]
        for layer in (*self.layers, self.total):
            lines.append(
                f"{layer.name:40} {layer.before:12.3f} {layer.after:12.3f} "
                f"{layer.row_bound:12.3f} {layer.efficacy:10.2f}  {layer.reason}".rstrip()
            )
        return "\n".join(lines)


def permute(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Any] | Mapping[str, Any],
    keep: int = 2,
    of: int = 4,
    rule: str | Rule = "c4",
    keep_dense: Collection[str] = (),
    rounds: int = 60,
) -> PermutationReport:
    """Trade channels of `model` in place so that keep N of M keeps more; what was gained.

    Call it on the dense model before `prune` with the same pattern, rule and keep_dense, and
    before the optimizer is made: optimizer state does not follow. `example_inputs` is a tensor, a
    sequence of positional inputs or a mapping of keyword inputs; `rounds` is the search's budget
    for each class of channels. Raises NotTraceableError (no fixed graph) or FunctionChangedError
    (the proof failed, with the node); in both cases the model is as it was.
    """
    check_pattern(keep, of)
    args, kwargs = _as_call(example_inputs)
    layers = explain(model, rule, keep_dense)
    devices = {tensor.device for tensor in model.parameters() if tensor.is_cuda}
    with torch.random.fork_rng(devices=sorted(device.index for device in devices)):
        twin = copy.deepcopy(model).eval().double()
        found = proof.probes(args, kwargs)
        before = [proof.outputs(twin, inputs) for inputs in found]
        proof.refuse_blind_probes(before)
        graph = follow(twin, trace(twin, *found[0]))
        weights = _weights_to_prune(model, graph, [la.name for la in layers if la.eligible], of)
        with torch.no_grad():
            source = plan(graph, weights, keep, of, rounds)
        error = _prove(twin, graph, source, found, before)
    old = {name: kept_magnitude(as_matrix(w), keep, of) for name, w in weights.items()}
    _trade(model, graph, source)
    report = tuple(
        _measured(name, weight, old[name], graph, keep, of) for name, weight in weights.items()
    )
    return PermutationReport(report, error, proof.tolerance(graph))


def _as_call(inputs: Tensor | Sequence[Any] | Mapping[str, Any]) -> proof.Inputs:
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return tuple(inputs), {}


def _weights_to_prune(
    model: nn.Module, graph: ChannelGraph, eligible: list[str], of: int
) -> dict[str, Tensor]:
    """First name -> eligible weight whose input channels split into groups of `of`."""
    names, state = first_names(model), dict(model.named_parameters())
    chosen = {names[name]: state[names[name]] for name in eligible if name in names}
    return {n: w for n, w in chosen.items() if n in graph.state and w.shape[1] % of == 0}


@torch.no_grad()
def _trade(model: nn.Module, graph: ChannelGraph, source: Tensor) -> None:
    """Trade the channels of every parameter (with its gradient) and buffer, in place."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in graph.state:
            components = graph.state[name].components
            tensor.copy_(traded(tensor, components, source))
            if tensor.grad is not None:
                tensor.grad.copy_(traded(tensor.grad, components, source))


def _prove(
    twin: nn.Module,
    graph: ChannelGraph,
    source: Tensor,
    found: list[proof.Inputs],
    before: list[list[Tensor]],
) -> float:
    """Largest error of the twin with its channels traded; FunctionChangedError beyond tolerance."""
    named = (*twin.named_parameters(), *twin.named_buffers())
    old = {name: tensor.detach().clone() for name, tensor in named}
    _trade(twin, graph, source)
    errors = [
        proof.largest_error(earlier, proof.outputs(twin, inputs))
        for earlier, inputs in zip(before, found, strict=True)
    ]
    allowed = proof.tolerance(graph)
    for error, inputs in zip(errors, found, strict=True):
        if error > allowed:
            where = proof.offending_node(graph, source, twin, old, inputs)
            raise proof.FunctionChangedError(
                f"with its channels traded the network's outputs differ by {error:.1e} of the "
                f"largest ({allowed:.0e} is allowed), first at {where}. Nothing was changed. An "
                "operation that depends on the position of a channel is not allowed there; name "
                "the weights that read those channels in keep_dense, or skip permutation"
            )
    return max(errors)


def _measured(
    name: str, weight: Tensor, before: float, graph: ChannelGraph, keep: int, of: int
) -> LayerMagnitude:
    matrix = as_matrix(weight)
    size = matrix.shape[1]
    after = kept_magnitude(matrix, keep, of)
    row_bound = kept_magnitude(matrix, size // of * keep, size)
    flat = matrix.reshape(1, -1)
    unstructured = kept_magnitude(flat, flat.numel() // of * keep, flat.numel())
    reason = "" if after > before else _why_not(name, graph, of)
    return LayerMagnitude(name, before, after, row_bound, unstructured, reason)


def _why_not(name: str, graph: ChannelGraph, of: int) -> str:
    roots = [root for consumer in consumers(graph, name) for root in consumer.roots.tolist()]
    reasons = Counter(graph.frozen[root] for root in roots if root in graph.frozen)
    if reasons:
        return reasons.most_common(1)[0][0]
    tradable = max([0, *(int(torch.isin(c, torch.tensor(roots)).sum()) for c in graph.classes)])
    if tradable < 2 * of:
        return f"fewer than two groups of {of} channels that may trade places"
    return "no better order found"
