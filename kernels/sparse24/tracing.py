"""Tracing by torch.fx: modules by themselves, or a model whole."""

import operator
from collections.abc import Callable

from torch import fx, nn

from .packed_layer import PackedLayer

_UNTRACEABLE = (ValueError, TypeError, RuntimeError, AttributeError, LookupError, AssertionError)


def graphs_of(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> dict[nn.Module, fx.Graph]:
    """The graph of each module that has layers of these kinds below it and can be traced."""
    found = {}
    for layer in model.modules():
        if isinstance(layer, nn.ModuleList | nn.ModuleDict) or not any(
            isinstance(child, kinds) for child in list(layer.modules())[1:]
        ):
            continue
        try:
            graph = _Shallow().trace(layer)
        except _UNTRACEABLE:  # its forward branches on values or takes no tensors
            continue
        if _has_one_input(graph):
            found[layer] = graph
    return found


def _has_one_input(graph: fx.Graph) -> bool:
    """With several, a forward may branch on which of them are given, which no trace shows."""
    return sum(node.op == "placeholder" for node in graph.nodes) == 1


class _Proxy(fx.Proxy):
    """Records `+=` and the like as what they are, where torch's own records an add."""

    def _within(self, operation: Callable, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operation, (self, other), {})

    def __iadd__(self, other: object) -> fx.Proxy:
        return self._within(operator.iadd, other)

    def __isub__(self, other: object) -> fx.Proxy:
        return self._within(operator.isub, other)

    def __imul__(self, other: object) -> fx.Proxy:
        return self._within(operator.imul, other)

    def __itruediv__(self, other: object) -> fx.Proxy:
        return self._within(operator.itruediv, other)


class _Shallow(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def whole_graph(model: nn.Module) -> fx.Graph | None:
    """The graph of a model down to layers of torch and packed ones; None if it has no sure one."""
    try:
        graph = _Whole().trace(model)
    except _UNTRACEABLE:
        return None
    return graph if _has_one_input(graph) else None


class _Whole(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, PackedLayer) or super().is_leaf_module(m, module_qualified_name)
