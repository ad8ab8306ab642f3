"""Permutation proof: the network computes in fp64 what it did before its channels traded places."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from workbench.sparsity.channel_graph import ChannelGraph, first_names
from workbench.sparsity.permutation_plan import traded

Inputs = tuple[Sequence[Any], Mapping[str, Any]]

_TOLERANCE = 1e-9  # of the largest output, in fp64
_TOLERANCE_CAST = 1e-4  # where the forward itself casts to a shorter type


class FunctionChangedError(ValueError):
    """The network with traded channels is another function; it was left as it was."""


def probes(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Inputs]:
    """The example in fp64, and another of its shape: noise of its scale, or integers reversed."""
    generator = torch.Generator().manual_seed(0)

    def other(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() == 0:
            return leaf
        if not leaf.is_floating_point():
            return leaf.flip(-1)
        noise = torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype).to(leaf.device)
        spread = leaf.std(correction=0)
        return leaf.mean() + noise * torch.where(spread > 0, spread, 1.0)

    example = tree_map(_double, (tuple(args), dict(kwargs)))
    return [example, tree_map(other, example)]


def outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """All tensors that the model returns; random operations see the same numbers every time."""
    torch.manual_seed(0)
    with torch.no_grad():
        found = model(*tree_map(_clone, inputs[0]), **tree_map(_clone, inputs[1]))
    return [leaf.clone() for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]


def refuse_blind_probes(found: Sequence[Sequence[Tensor]]) -> None:
    """Refuse probes on which a wrong network could look right."""
    floats = [leaf for leaves in found for leaf in leaves if leaf.is_floating_point()]
    if not floats or not all(leaf.isfinite().all() for leaf in floats):
        raise ValueError(
            "the example inputs give outputs that are not finite floating point tensors, which "
            "prove nothing; give inputs on which the model works"
        )
    if all(torch.equal(a, b) for a, b in zip(*found, strict=True)):
        raise ValueError(
            "the outputs are the same for the example inputs and for others, which proves "
            "nothing; give example inputs that vary"
        )


def tolerance(graph: ChannelGraph) -> float:
    """Largest error allowed, relative to the largest output."""
    for node in graph.exported.graph.nodes:
        dtype = getattr(node.meta.get("val"), "dtype", torch.float64)
        if dtype.is_floating_point and dtype != torch.float64:
            return _TOLERANCE_CAST
    return _TOLERANCE


def largest_error(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Largest |after - before| over the largest |before|, over all tensors; inf if they differ."""
    worst = 0.0
    for a, b in zip(before, after, strict=True):
        if not a.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(a, b) else float("inf"))
        elif a.numel():
            scale = a.abs().max().clamp_min(torch.finfo(a.dtype).tiny)
            error = ((a - b).abs().max() / scale).item()
            worst = max(worst, error if error == error else float("inf"))
    return worst


def offending_node(
    graph: ChannelGraph, source: Tensor, model: nn.Module, old: Mapping[str, Tensor], inputs: Inputs
) -> str:
    """The first node whose result is not that of before with its channels traded.

    `model` holds the traded parameters and buffers, `old` those of before by first name.
    """
    new = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    names, allowed = first_names(model), tolerance(graph)
    before: dict[fx.Node, Any] = {}
    _Recorder(graph, lambda name: old[names[name]], before.__setitem__).run_on(inputs)
    found: list[fx.Node] = []

    def check(node: fx.Node, result: Any) -> None:
        values = graph.values[node] if isinstance(result, list) else [graph.values[node]]
        results = result if isinstance(result, list) else [result]
        earlier = before[node] if isinstance(result, list) else [before[node]]
        for value, a, b in zip(values, earlier, results, strict=True):
            if isinstance(a, Tensor):
                expected = traded(a, value.components, source)
                if largest_error([expected], [b]) > allowed and not found:
                    found.append(node)

    _Recorder(graph, lambda name: new[names[name]], check).run_on(inputs)
    if not found:
        return "no node of its graph: forward does something that its graph does not show"
    node, stack = found[0], list(found[0].meta.get("nn_module_stack", {}).values())
    return f"node {node.name} ({node.target}) in {stack[-1][0] if stack else ''!r}"


class _Recorder(fx.Interpreter):
    """Runs an exported graph and hands every node's result on."""

    def __init__(
        self,
        graph: ChannelGraph,
        state: Callable[[str], Tensor],
        record: Callable[[fx.Node, Any], None],
    ) -> None:
        super().__init__(graph.exported.graph_module)
        self._exported, self._state, self._record = graph.exported, state, record

    def run_on(self, inputs: Inputs) -> None:
        """Run on (args, kwargs)."""
        signature = self._exported.graph_signature
        state = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        constants = signature.inputs_to_lifted_tensor_constants
        leaves = iter(tree_leaves(tree_map(_clone, inputs)))
        given = []
        for node in self._exported.graph.nodes:
            if node.op == "placeholder":
                if node.name in state:
                    given.append(self._state(state[node.name]))
                elif node.name in constants:
                    given.append(self._exported.constants[constants[node.name]])
                else:
                    given.append(next(leaves))
        torch.manual_seed(0)
        with torch.no_grad():
            self.run(*given)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_function":
            result = list(result) if isinstance(result, tuple) else result
            self._record(n, tree_map(_clone, result))
        return result


def _clone(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _double(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else _clone(leaf)
