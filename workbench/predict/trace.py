"""What one pass of a network computes, seen on the meta device: products, attention, the rest."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from workbench import sparsity
from workbench.predict.groups import Attention, Group, Node, Pass, grouped
from workbench.predict.shapes import Product, packable, shape_of
from workbench.workload import Workload

GATHERS = ("embedding", "index_select", "index", "gather")


@dataclass
class Trace:
    """The products in their order, attention, and the passes, one by one and grouped."""

    products: list[Product] = field(default_factory=list)
    attention: list[Attention] = field(default_factory=list)
    passes: list[Pass] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)


def traced(work: Workload, batch: int) -> Trace:
    """The pass of a workload on the meta device, for so many examples."""
    model = work.module
    eligible = _eligible(model)
    recorder = _Recorder(eligible)
    arguments = work.arguments(batch, "meta")
    with recorder.hooked(model), torch.no_grad(), recorder, _Attentive(recorder):
        found = model(*arguments)
    for tensor in tree_leaves(found):
        if isinstance(tensor, Tensor):
            recorder.node(tensor).readers += 1
    recorder.trace.groups = grouped(recorder.trace.passes)
    return recorder.trace


def _eligible(model: nn.Module) -> dict[str, str]:
    """For each layer with a weight: why it stays dense, "" for a layer that 2:4 prunes."""
    model.requires_grad_(True)  # what a recipe freezes can be pruned all the same
    return {
        layer.name.removesuffix(".weight"): layer.reason for layer in sparsity.explain(model, "c4")
    }


class _Recorder(TorchDispatchMode):
    """Notes every operation below autograd."""

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__()
        self.trace, self.reasons = Trace(), reasons
        self.nodes: dict[tuple[int, int], Node] = {}
        self.versions: dict[int, int] = {}
        self.alive: list[Any] = []  # a storage that is freed would lend its address to another
        self.layer: tuple[str, nn.Module] | None = None
        self.paused = False

    @contextmanager
    def hooked(self, model: nn.Module) -> Iterator[None]:
        """While it lasts, `layer` is the linear or convolution that runs."""
        handles = []
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                handles.append(module.register_forward_pre_hook(self._enter(name)))
                handles.append(module.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, _: Any) -> None:
            self.layer = (name, module)

        return enter

    def _leave(self, *_: Any) -> None:
        self.layer = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        found = func(*args, **(kwargs or {}))
        if not self.paused:
            made = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
            self._note(func, args, given, made)
        return found

    def node(self, tensor: Tensor) -> Node:
        """What a tensor's memory holds now."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.versions:
            self.versions[key] = 0
            self.alive.append(storage)
        version = self.versions[key]
        if (key, version) not in self.nodes:
            image = tensor.dim() == 4
            self.nodes[key, version] = Node(tensor.numel(), tensor.is_floating_point(), image)
        return self.nodes[key, version]

    def attention(self, query: Tensor, key: Tensor, out: Tensor, given: list[Tensor]) -> None:
        """Note a call of scaled_dot_product_attention."""
        *lead, length, width = query.shape
        flops = 4.0 * length * key.shape[-2] * width * torch.Size(lead).numel()
        reads, made = self._read(given), self._made(out)
        made.level = max(node.level for node in reads) + 1
        made.maker = Attention(flops, reads, [made])
        self.trace.attention.append(made.maker)

    def _note(self, func: Any, args: tuple, given: list[Tensor], made: list[Tensor]) -> None:
        name = func.overloadpacket.__name__
        if not given or not made:
            return  # a factory
        before = {tensor.untyped_storage()._cdata for tensor in given}
        if all(t.untyped_storage()._cdata in before for t in made) and not func._schema.is_mutable:
            return  # a view
        product = shape_of(name, args, made[0], self.layer)
        if product is not None:
            self._product(product, given, made[0])
        elif any(tensor.is_floating_point() for tensor in made):
            self._pass(name, given, made)

    def _product(self, product: Product, given: list[Tensor], made: Tensor) -> None:
        reads = self._read(given)
        name, module = self.layer or ("", None)
        reason = self.reasons.get(name, "computed from other tensors, not a layer's weight")
        product.name, product.reason = name, reason or packable(module)
        node = self._made(made)
        node.level = max(other.level for other in reads) + 1
        node.maker = product
        product.reads = [other for other, t in zip(reads, given, strict=True) if t.dim() > 1]
        product.writes = node
        self.trace.products.append(product)

    def _pass(self, name: str, given: list[Tensor], made: list[Tensor]) -> None:
        if name in GATHERS:  # reads as much as it writes
            given = [tensor for tensor in given if not tensor.is_floating_point()] + [made[0]]
            reads = self._read(given[:-1])
        else:
            reads = self._read(given)
        level = max((node.level for node in reads), default=0)
        writes = [self._made(tensor) for tensor in made]
        found = Pass(name, reads, writes, level)
        if name in GATHERS:
            found.reads = [*reads, Node(writes[0].size, True, False)]
        for node in writes:
            node.level, node.maker = level, found
        self.trace.passes.append(found)

    def _read(self, given: list[Tensor]) -> list[Node]:
        nodes = [self.node(tensor) for tensor in given]
        for node in nodes:
            node.readers += 1
        return nodes

    def _made(self, tensor: Tensor) -> Node:
        key = tensor.untyped_storage()._cdata
        if key in self.versions:  # written in place
            self.versions[key] += 1
        return self.node(tensor)


class _Attentive(TorchFunctionMode):
    """Lets scaled_dot_product_attention be one operation, as its fused kernels are."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.recorder.paused = True
        try:
            found = func(*args, **kwargs)
        finally:
            self.recorder.paused = False
        self.recorder.attention(given[0], given[1], found, given)
        return found
