"""Channel operations: rules of moves, elementwise operations, pools and reductions; find_rule."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from workbench.sparsity.channel_atoms import NEUTRAL, Value
from workbench.sparsity.channel_layers import LAYERS
from workbench.sparsity.channel_rules import Rules, axes_of, one_component

Arguments = dict[str, Any]

# names of ATen operations
_MOVES = re.compile(
    "view|reshape|_unsafe_view|flatten|unflatten|permute|transpose|t|mT|movedim|swapaxes|unsqueeze|"
    "squeeze|expand|expand_as|view_as|cat|concat|concatenate|stack|chunk|split|split_with_sizes|"
    "tensor_split|unbind|slice|select|narrow|contiguous|clone|detach|alias|roll|flip|pixel_shuffle|"
    "pixel_unshuffle|channel_shuffle|repeat|repeat_interleave|tile|lift_fresh_copy"
)
_ELEMENTWISE = re.compile(  # those without the tag pointwise
    "dropout|feature_dropout|alpha_dropout|to|_to_copy|type_as|hardswish|hardsigmoid|hardtanh|relu6|"
    "silu|elu|selu|celu|leaky_relu|softplus|mish|gelu|masked_fill|where|clamp|rsub"
)
_POOLS = ("max_pool", "avg_pool", "adaptive_", "upsample_")
_REDUCTIONS = re.compile("mean|sum|amax|amin|var|std|prod|logsumexp")


def find_rule(name: str, node: fx.Node) -> Callable[[Rules, Arguments], Any] | None:
    """The rule of an ATen operation, without the underscore of the in-place ones."""
    if name in LAYERS:
        return LAYERS[name]
    if _MOVES.fullmatch(name):
        return move
    if name in ("pad", "constant_pad_nd"):
        return pad
    if _ELEMENTWISE.fullmatch(name) or torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return lambda rules, named: rules.elementwise(rules.inputs(), rules.shapes()[0])
    if name.startswith(_POOLS):
        return pool
    return reduction if _REDUCTIONS.fullmatch(name) else None


def move(rules: Rules, named: Arguments) -> Any:
    """Move the atoms as the operation moves the values, by running it on them."""
    node, nodes = rules.node, rules.node.all_input_nodes
    values = [rules.values[before] for before in nodes]
    if not any(value.components for value in values):
        return rules.unmoved()
    if len(nodes) == 1:
        tables = [{nodes[0]: _in_full(c, values[0])} for c in values[0].components]
    else:
        chosen = {id(value): component for value, component in one_component(rules, values)}
        full = [_in_full(chosen[id(v)] if id(v) in chosen else _still(rules), v) for v in values]
        tables = [dict(zip(nodes, full, strict=True))]
    moved = []
    for table in tables:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), table.__getitem__)
        found = node.target(*args, **kwargs)
        moved.append(found if isinstance(found, (list, tuple)) else [found])
    results = [
        Value(shape, tuple(_compact(parts[i]) for parts in moved))
        for i, shape in enumerate(rules.shapes())
    ]
    _close(rules, values, results)
    return rules.result(results)


def pad(rules: Rules, named: Arguments) -> Value:
    """Padding with a constant adds positions that are the same for every channel."""
    value, mode = named["self"], named.get("mode", "constant")
    fill = NEUTRAL if mode == "constant" else None
    moved = []
    for component in value.components:
        full = _in_full(component, value).double()  # padding knows no int64
        moved.append(_compact(torch.nn.functional.pad(full, named["pad"], mode, fill).long()))
    return Value(rules.shapes()[0], tuple(moved))


def pool(rules: Rules, named: Arguments) -> Any:
    """Pooling and resizing work channel by channel, over the last axes."""
    value, name = rules.inputs()[0], str(rules.node.target)
    found = re.search(r"(\d)d", name)
    mixed = range(len(value.shape) - int(found[1]) if found else 2, len(value.shape))
    kept = []
    for component in value.components:
        if set(axes_of(component)) & set(mixed):
            rules.freeze(component, f"{name.split('.')[1]} mixes channels")
        else:
            kept.append(component)
    return rules.result([Value(shape, tuple(kept)) for shape in rules.shapes()])


def reduction(rules: Rules, named: Arguments) -> Value:
    """A sum over channels does not care for their order; other axes leave them as they are."""
    value, rank = named["self"], len(named["self"].shape)
    dims = named.get("dim")
    dims = [dims] if isinstance(dims, int) else list(dims or range(rank))
    dims = [dim % rank for dim in dims]
    rules.symmetric(value, dims)
    kept = []
    for component in value.components:
        own = set(axes_of(component))
        if not own & set(dims):
            gone = [] if named.get("keepdim") else dims
            shape = [size for axis, size in enumerate(component.shape) if axis not in gone]
            kept.append(component.reshape(shape))
        elif own - set(dims):
            rules.freeze(component, "reduced over some of the axes of its channels")
    return Value(rules.shapes()[0], tuple(kept))


def _close(rules: Rules, values: list[Value], results: list[Value]) -> None:
    """What takes a part of the channels keeps that part together."""
    whole = sum(len(c.unique()) for value in values for c in value.components)
    for place, value in enumerate(results):
        for component in value.components:
            if len(component.unique()) < whole:
                rules.atoms.mark(component, (rules.node.name, place))


def _still(rules: Rules) -> Tensor:
    atom = rules.atoms.new(1)
    rules.freeze(atom, "put beside channels that keep their places")
    return atom


def _in_full(component: Tensor, value: Value) -> Tensor:
    """The component in the value's shape; contiguous, so that every view of it is possible."""
    return component.expand(value.shape).contiguous()


def _compact(atoms: Tensor) -> Tensor:
    """Size 1 along every axis on which the atoms do not vary, NEUTRAL aside."""
    for axis, size in enumerate(atoms.shape):
        if size > 1:
            highest = atoms.amax(axis, keepdim=True)
            if ((atoms == highest) | (atoms == NEUTRAL)).all():
                atoms = highest
    return atoms
