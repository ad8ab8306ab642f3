"""Channel graph: which channels of a network may trade places, from its exported torch.fx graph."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from workbench.sparsity.channel_atoms import Atoms, Value
from workbench.sparsity.channel_operations import find_rule
from workbench.sparsity.channel_rules import Rules


class NotTraceableError(ValueError):
    """The model's forward has no fixed graph, so its channels cannot be followed."""


@dataclass(frozen=True)
class ChannelGraph:
    """A traced model; components hold roots: equal ones move together."""

    exported: torch.export.ExportedProgram
    values: dict[fx.Node, Any]  # node -> Value or a list of them
    state: dict[str, Value]  # first name of a parameter or buffer -> value
    classes: list[Tensor]  # roots that may trade places
    frozen: dict[int, str]  # root -> why it keeps its place


def follow(model: nn.Module, exported: torch.export.ExportedProgram) -> ChannelGraph:
    """The channels of a traced model, followed through its graph."""
    atoms, values = Atoms(), {}
    state = _state_values(model, exported, atoms, values)
    rules = Rules(atoms, values, find_rule)
    for node in exported.graph.nodes:
        if node.op != "placeholder":
            rules.run(node)
    state = {name: _rooted(value, atoms) for name, value in state.items()}
    for name, value in state.items():
        for index, component in enumerate(value.components):
            for count in (places := component.unique(return_counts=True))[1].unique():
                # inside one parameter only atoms with as many places may trade
                atoms.mark(places[0][places[1] == count], (name, index, int(count)))
    moved = {
        node: [_rooted(v, atoms) for v in value]
        if isinstance(value, list)
        else _rooted(value, atoms)
        for node, value in values.items()
    }
    return ChannelGraph(exported, moved, state, atoms.classes(), atoms.frozen())


def _state_values(
    model: nn.Module,
    exported: torch.export.ExportedProgram,
    atoms: Atoms,
    values: dict[fx.Node, Any],
) -> dict[str, Value]:
    """First name -> value of every parameter and buffer; fills in the placeholders' values."""
    signature = exported.graph_signature
    targets = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names, found = first_names(model), {}
    for node in exported.graph.nodes:
        if node.op != "placeholder":
            continue
        shape = tuple(getattr(node.meta.get("val"), "shape", ()))
        if node.name in targets:
            name = names[targets[node.name]]
            if name not in found:
                found[name] = _fresh(atoms, shape, _conv_groups(node))
            values[node] = found[name]
        else:
            values[node] = Value(shape)
    return found


def _conv_groups(node: fx.Node) -> int:
    """Groups of the convolution whose weight this is; 1 for any other tensor."""
    for user in node.users:
        schema = getattr(user.target, "_schema", None)
        if schema and schema.name in ("aten::conv1d", "aten::conv2d", "aten::conv3d"):
            given = dict(zip([a.name for a in schema.arguments], user.args, strict=False))
            if given.get("weight") is node:
                return {**given, **user.kwargs}.get("groups", 1)
    return 1


def _fresh(atoms: Atoms, shape: tuple[int, ...], groups: int) -> Value:
    """New atoms for every axis; the input channels of every conv group have their own."""
    components = []
    for axis, size in enumerate(shape):
        view = [1] * len(shape)
        view[axis] = size
        if size > 1 and axis == 1 and groups > 1:
            view[0] = shape[0]
            each = atoms.new(groups, size).repeat_interleave(shape[0] // groups, 0)
            components.append(each.view(view))
        elif size > 1:
            components.append(atoms.new(*view))
    return Value(shape, tuple(components))


def _rooted(value: Value, atoms: Atoms) -> Value:
    return Value(value.shape, tuple(atoms.roots(component) for component in value.components))


def trace(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> torch.export.ExportedProgram:
    """The torch.fx graph of `model` (in eval mode) for these inputs, by torch.export.

    Raises NotTraceableError with the innermost module at work and the line of code.
    """
    running: list[str] = []
    handles = []
    for name, module in model.named_modules():
        label = f"{name or '<model>'} ({type(module).__name__})"
        handles.append(module.register_forward_pre_hook(lambda *_, at=label: running.append(at)))
        handles.append(module.register_forward_hook(lambda *_: running.pop() and None))
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operation hides the projections
    try:
        return torch.export.export(model, tuple(args), dict(kwargs), strict=False)
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        where = running[-1] if running else "the model's inputs"
        raise NotTraceableError(
            f"cannot trace {where}: {type(error).__name__}: {str(error).strip()[:600]}\n"
            "A forward without data-dependent control flow is allowed; permute the part of the "
            "model that has one, or skip permutation"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for handle in handles:
            handle.remove()


def first_names(model: nn.Module) -> dict[str, str]:
    """Every name of a parameter or buffer -> the first name of that tensor."""
    found: dict[int, str] = {}
    names = {}
    for listing in (model.named_parameters, model.named_buffers):
        for name, tensor in listing(remove_duplicate=False):
            names[name] = found.setdefault(id(tensor), name)
    return names
