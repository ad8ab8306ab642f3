"""What follows a model's layers and can be computed with them, found by torch.fx.

Each module whose forward torch.fx can follow is traced by itself, the modules it calls as leaves;
so a model that cannot be traced whole still has its blocks fused. A chain is a convolution or a
linear layer, the batch norm behind a convolution, the add of a residual, the activation; each the
only user of what precedes it.
"""

import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .tracing import graphs_of

_ADDS = (operator.add, operator.iadd, torch.add)
_IN_PLACE_ADDS = (operator.iadd, "add_")
_RELUS = (F.relu, torch.relu, "relu", "relu_")
_LAYERS = (nn.Conv2d, nn.Linear)


@dataclass
class Chain:
    """A layer and what follows it, as nodes of its caller's graph."""

    owner: nn.Module  # whose forward calls it
    graph: fx.Graph
    layer: fx.Node
    norm: fx.Node | None = None  # a batch norm, or what is left of a folded one
    add: fx.Node | None = None
    end: fx.Node | None = None  # the activation
    activation: str | None = None

    @property
    def folds(self) -> bool:
        """Whether there is a batch norm to fold."""
        return self.norm is not None and _is(self.norm, self.owner, nn.BatchNorm2d)

    def addend(self, owner: str) -> str:
        """The name of what is added, as in layer1.0:add0.right: the add by its caller and order."""
        adds = [node for node in self.graph.nodes if _adds_tensors(node)]
        side = "right" if self.add.args[1] is _other(self.add, self.norm or self.layer) else "left"
        return f"{owner}:add{adds.index(self.add)}.{side}"

    def folded(self) -> tuple[nn.Parameter, nn.Parameter | None]:
        """Weight and bias of the convolution with the batch norm in them, in their type."""
        conv = self.owner.get_submodule(self.layer.target)
        norm = self.owner.get_submodule(self.norm.target)
        given = conv.weight, conv.bias, norm.running_mean, norm.running_var
        wide = [None if t is None else t.detach().float() for t in given]
        ends = [None if t is None else t.detach().float() for t in (norm.weight, norm.bias)]
        weight, bias = fuse_conv_bn_weights(*wide, norm.eps, *ends)
        return tuple(
            nn.Parameter(t.to(conv.weight.dtype), requires_grad=False) for t in (weight, bias)
        )


def find(model: nn.Module) -> dict[nn.Module, Chain]:
    """The chain of each layer that is called in one place alone and fused safely."""
    graphs, found = graphs_of(model, _LAYERS), {}
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
            if _is(node, owner, *_LAYERS) and alone(owner, node):
                chain = Chain(owner, graph, node)
                _follow(chain, alone, rewrites, taken)
                found[owner.get_submodule(node.target)] = chain
    return found


def apply(model: nn.Module, chains: list[tuple[Chain, nn.Module, bool]]) -> None:
    """Put new layers in place of others, in place, and take out what they compute now.

    For each chain the layer and whether it computes the add and the activation too; else it is the
    convolution with its batch norm.
    """
    owners = {}
    for chain, layer, whole in chains:
        place(chain.owner, chain.layer.target, layer)
        if chain.folds:
            place(chain.owner, chain.norm.target, nn.Identity().eval())
        if whole and chain.end is not None and _replaceable(chain):
            place(chain.owner, chain.end.target, nn.Identity().eval())
        elif whole and (chain.add is not None or chain.end is not None):
            _rewrite(chain)
            owners[chain.owner] = chain.graph
    names = {layer: name for name, layer in model.named_modules()}
    for owner, graph in owners.items():
        made = fx.GraphModule(owner, graph, type(owner).__name__).train(owner.training)
        place(model, names[owner], made)


def _follow(
    chain: Chain, alone: Callable[[nn.Module, fx.Node], bool], rewrites: bool, taken: set[fx.Node]
) -> None:
    """Extend the chain by the nodes behind its layer."""
    owner, node = chain.owner, chain.layer
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
    activation = None if after is None else _activation(after, owner)
    if activation is None:
        return
    if after.op == "call_module" and is_hooked(owner.get_submodule(after.target)):
        return
    apart = after.op == "call_module" and alone(owner, after)
    if rewrites or (apart and chain.add is None):
        chain.end, chain.activation = after, activation


def _is_add(chain: Chain, node: fx.Node, add: fx.Node) -> bool:
    """Whether a residual is added to the node, and can be where the layer is computed."""
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
    """Whether the layer's input is still the same where the add is."""
    image = chain.layer.args[0] if chain.layer.args else None
    node = chain.layer.next
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
    """Let the layer's node stand where the chain ends, and erase the others."""
    end, extra = chain.end or chain.add, {}
    if chain.add is not None:
        extra["residual"] = _other(chain.add, chain.norm or chain.layer)
    with chain.graph.inserting_before(chain.add or end):
        layer = chain.layer
        made = chain.graph.call_module(layer.target, layer.args, layer.kwargs | extra)
    end.replace_all_uses_with(made)
    for node in (chain.end, chain.add, chain.norm, chain.layer):
        if node is not None:
            chain.graph.erase_node(node)


def _replaceable(chain: Chain) -> bool:
    """Whether the activation is a module that this chain alone calls: Identity can replace it."""
    if chain.add is not None or chain.end.op != "call_module":
        return False
    same = [n for n in chain.graph.nodes if n.op == "call_module" and n.target == chain.end.target]
    return len(same) == 1


def _is(node: fx.Node, owner: nn.Module, *kinds: type[nn.Module]) -> bool:
    return node.op == "call_module" and type(owner.get_submodule(node.target)) in kinds


def _activation(node: fx.Node, owner: nn.Module) -> str | None:
    """The name of the activation that a node computes; None if the kernels have none such."""
    if node.op == "call_module":
        return activation_of(owner.get_submodule(node.target))
    if node.target in _RELUS:
        return "relu"
    if node.target is F.gelu and len(node.args) == 1 and not node.kwargs.keys() - {"approximate"}:
        return "gelu" if node.kwargs.get("approximate", "none") == "none" else "gelu_tanh"
    return None


def activation_of(module: nn.Module) -> str | None:
    """The name of a module's activation, a GELU of any library told by what it computes."""
    if type(module) is nn.ReLU:
        return "relu"
    if "GELU" not in type(module).__name__ or list(module.parameters()):
        return None
    x = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    found = module(x)
    for name, approximate in (("gelu", "none"), ("gelu_tanh", "tanh")):
        if torch.allclose(found, F.gelu(x, approximate=approximate), rtol=0, atol=1e-6):
            return name
    return None


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
