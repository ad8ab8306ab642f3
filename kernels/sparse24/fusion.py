"""What follows a model's convolutions and can be computed with them, found by torch.fx.

Each module whose forward torch.fx can follow is traced by itself, the modules it calls as leaves;
so a model that cannot be traced whole still has its blocks fused. A chain is a convolution, the
batch norm behind it, the add of a residual, the ReLU; each the only user of what precedes it.
"""

import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

_ADDS = (operator.add, operator.iadd, torch.add)
_IN_PLACE_ADDS = (operator.iadd, "add_")
_RELUS = (F.relu, torch.relu, "relu", "relu_")
UNTRACEABLE = (ValueError, TypeError, RuntimeError, AttributeError, LookupError, AssertionError)


@dataclass
class Chain:
    """A convolution and what follows it, as nodes of its caller's graph."""

    owner: nn.Module  # whose forward calls it
    graph: fx.Graph
    conv: fx.Node
    norm: fx.Node | None = None  # a batch norm, or what is left of a folded one
    add: fx.Node | None = None
    relu: fx.Node | None = None

    @property
    def folds(self) -> bool:
        """Whether there is a batch norm to fold."""
        return self.norm is not None and _is(self.norm, self.owner, nn.BatchNorm2d)

    def addend(self, owner: str) -> str:
        """The name of what is added, as in layer1.0:add0.right: the add by its caller and order."""
        adds = [node for node in self.graph.nodes if _adds_tensors(node)]
        side = "right" if self.add.args[1] is _other(self.add, self.norm or self.conv) else "left"
        return f"{owner}:add{adds.index(self.add)}.{side}"

    def folded(self) -> tuple[nn.Parameter, nn.Parameter | None]:
        """Weight and bias of the convolution with the batch norm in them, in their type."""
        conv = self.owner.get_submodule(self.conv.target)
        if not self.folds:
            return conv.weight, conv.bias
        norm = self.owner.get_submodule(self.norm.target)
        given = conv.weight, conv.bias, norm.running_mean, norm.running_var
        wide = [None if t is None else t.detach().float() for t in given]
        ends = [None if t is None else t.detach().float() for t in (norm.weight, norm.bias)]
        weight, bias = fuse_conv_bn_weights(*wide, norm.eps, *ends)
        return tuple(
            nn.Parameter(t.to(conv.weight.dtype), requires_grad=False) for t in (weight, bias)
        )


def find(model: nn.Module) -> dict[nn.Module, Chain]:
    """The chain of each convolution that is called in one place alone and fused safely."""
    graphs, found = _graphs(model), {}
    calls, read = Counter(), set()
    for owner, graph in graphs.items():
        for node in graph.nodes:
            if node.op == "call_module":
                calls[owner.get_submodule(node.target)] += 1
            elif node.op == "get_attr":  # a forward that reads a weight itself
                read.add(owner.get_submodule(node.target.rpartition(".")[0]))
    named = Counter(layer for _, layer in model.named_modules(remove_duplicate=False))

    def alone(owner: nn.Module, node: fx.Node) -> bool:
        layer = owner.get_submodule(node.target)
        return calls[layer] == named[layer] == 1 and layer not in read and not is_hooked(layer)

    for owner, graph in graphs.items():
        rewrites = owner is not model and named[owner] == 1 and not is_hooked(owner)
        rewrites = rewrites and not isinstance(owner, nn.Sequential)  # whose items others may take
        taken: set[fx.Node] = set()
        for node in reversed(graph.nodes):
            if _is(node, owner, nn.Conv2d) and alone(owner, node):
                chain = Chain(owner, graph, node)
                _follow(chain, alone, rewrites, taken)
                found[owner.get_submodule(node.target)] = chain
    return found


def apply(model: nn.Module, chains: list[tuple[Chain, nn.Module, bool]]) -> None:
    """Put new layers in place of convolutions, in place, and take out what they compute now.

    For each chain the layer and whether it computes the add and the ReLU too; else it is the
    convolution with its batch norm.
    """
    owners = {}
    for chain, layer, whole in chains:
        place(chain.owner, chain.conv.target, layer)
        if chain.folds:
            place(chain.owner, chain.norm.target, nn.Identity())
        if whole and chain.relu is not None and _replaceable(chain):
            place(chain.owner, chain.relu.target, nn.Identity())
        elif whole and (chain.add is not None or chain.relu is not None):
            _rewrite(chain)
            owners[chain.owner] = chain.graph
    names = {layer: name for name, layer in model.named_modules()}
    for owner, graph in owners.items():
        made = fx.GraphModule(owner, graph, type(owner).__name__).train(owner.training)
        place(model, names[owner], made)


def _graphs(model: nn.Module) -> dict[nn.Module, fx.Graph]:
    """The graph of each module that has convolutions below it and can be traced."""
    found = {}
    for layer in model.modules():
        if isinstance(layer, nn.ModuleList | nn.ModuleDict) or not any(
            isinstance(child, nn.Conv2d) for child in list(layer.modules())[1:]
        ):
            continue
        try:
            graph = _Shallow().trace(layer)
        except UNTRACEABLE:  # its forward branches on values or takes no tensors
            continue
        # with several inputs it may branch on which of them are given, which no trace shows
        if sum(node.op == "placeholder" for node in graph.nodes) == 1:
            found[layer] = graph
    return found


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


def _follow(
    chain: Chain, alone: Callable[[nn.Module, fx.Node], bool], rewrites: bool, taken: set[fx.Node]
) -> None:
    """Extend the chain by the nodes behind its convolution."""
    owner, node = chain.owner, chain.conv
    after = _only_user(node)
    if after is not None and _is(after, owner, nn.Identity):
        chain.norm = node = after
        after = _only_user(node)
    elif after is not None and _is(after, owner, nn.BatchNorm2d) and alone(owner, after):
        norm = owner.get_submodule(after.target)
        if norm.training or norm.running_mean is None:
            return
        chain.norm = node = after
        after = _only_user(node)
    if after is not None and rewrites and after not in taken and _is_add(chain, node, after):
        taken.add(after)
        chain.add, after = after, _only_user(after)
    if after is None or not _is_relu(after, owner):
        return
    if after.op == "call_module" and is_hooked(owner.get_submodule(after.target)):
        return
    apart = after.op == "call_module" and alone(owner, after)
    if rewrites or (apart and chain.add is None):
        chain.relu = after


def _is_add(chain: Chain, node: fx.Node, add: fx.Node) -> bool:
    """Whether a residual is added to the node, and can be where the convolution is computed."""
    if not _adds_tensors(add) or _other(add, node) is node:
        return False
    if add.target in _IN_PLACE_ADDS and add.args[0] is not node:
        return False  # what it overwrites may be read elsewhere
    return _can_wait(chain, add)


def _adds_tensors(node: fx.Node) -> bool:
    """Whether a node adds two results, by any spelling."""
    called = node.op == "call_function" and node.target in _ADDS
    called = called or (node.op == "call_method" and node.target in ("add", "add_"))
    plain = not node.kwargs and len(node.args) == 2
    return called and plain and all(isinstance(arg, fx.Node) for arg in node.args)


def _other(add: fx.Node, node: fx.Node) -> object:
    first, second = add.args
    return second if first is node else first


def _can_wait(chain: Chain, until: fx.Node) -> bool:
    """Whether the convolution's input is still the same where the add is."""
    image = chain.conv.args[0] if chain.conv.args else None
    node = chain.conv.next
    while node is not until:
        if image in node.all_input_nodes and _may_write(node, chain.owner):
            return False
        node = node.next
    return isinstance(image, fx.Node)


def _may_write(node: fx.Node, owner: nn.Module) -> bool:
    if node.op == "call_module":
        layers = owner.get_submodule(node.target).modules()
        return any(getattr(layer, "inplace", False) for layer in layers)
    if node.op == "call_method":
        return node.target.endswith("_")
    name = getattr(node.target, "__name__", "")
    if node.kwargs.get("inplace") or "out" in node.kwargs or name.endswith("_"):
        return True
    return getattr(operator, name, None) is node.target and name.startswith("i")  # iadd


def _rewrite(chain: Chain) -> None:
    """Let the convolution's node stand where the chain ends, and erase the others."""
    end, extra = chain.relu or chain.add, {}
    if chain.add is not None:
        extra["residual"] = _other(chain.add, chain.norm or chain.conv)
    with chain.graph.inserting_before(chain.add or end):
        conv = chain.conv
        made = chain.graph.call_module(conv.target, conv.args, conv.kwargs | extra)
    end.replace_all_uses_with(made)
    for node in (chain.relu, chain.add, chain.norm, chain.conv):
        if node is not None:
            chain.graph.erase_node(node)


def _replaceable(chain: Chain) -> bool:
    """Whether the ReLU is a module that this chain alone calls, so that Identity can replace it."""
    if chain.add is not None or chain.relu.op != "call_module":
        return False
    same = [n for n in chain.graph.nodes if n.op == "call_module" and n.target == chain.relu.target]
    return len(same) == 1


def _is(node: fx.Node, owner: nn.Module, kind: type[nn.Module]) -> bool:
    return node.op == "call_module" and type(owner.get_submodule(node.target)) is kind


def _is_relu(node: fx.Node, owner: nn.Module) -> bool:
    if node.op in ("call_function", "call_method"):
        return node.target in _RELUS
    return _is(node, owner, nn.ReLU)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def is_hooked(layer: nn.Module) -> bool:
    """Whether something beside its forward watches or changes a layer."""
    hooks = layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks
    return any(hooks) or hasattr(layer, "parametrizations")


def place(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer where another is."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
