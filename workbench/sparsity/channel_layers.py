"""Channel rules of layers: linear, convolution, embedding, norms, attention, matrix products."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from workbench.sparsity.channel_atoms import Value
from workbench.sparsity.channel_rules import Rules, axes_of

Arguments = dict[str, Any]
_FIXED = "meets an operand whose channels keep their places"


def _on_axis(axis: int, atoms: Tensor | None, shape: tuple[int, ...]) -> Value:
    """A result whose channels lie on one axis."""
    if atoms is None or atoms.numel() == 1:
        return Value(shape)
    view = [1] * len(shape)
    view[axis] = len(atoms)
    return Value(shape, (atoms.view(view),))


def _part(value: Value, axis: int) -> Tensor | None:
    """Atoms of a weight along one axis; its other components are left alone."""
    axis %= len(value.shape)
    for component in value.components:
        if axes_of(component) == [axis]:
            return component.flatten()
    return None


def _rest(rules: Rules, weight: Value, axes: tuple[int, ...]) -> None:
    """Freeze the components of a weight on axes other than its two channel axes."""
    for component in weight.components:
        if not set(axes_of(component)) <= set(axes):
            rules.atoms.freeze(component, "kernel positions")


def _add_bias(rules: Rules, rows: Tensor | None, bias: Value | None) -> None:
    if bias is not None:
        rules.join(rows, rules.along(bias, -1), _FIXED)


def linear(rules: Rules, named: Arguments) -> Value:
    """y[..., out] = x[..., in] W[out, in] + b."""
    x, weight = named["input"], named["weight"]
    columns, rows = _part(weight, 1), _part(weight, 0)
    _join_columns(rules, rules.along(x, -1), columns, weight.shape[1])
    _add_bias(rules, rows, named["bias"])
    shape = rules.shapes()[0]
    return _on_axis(len(shape) - 1, rows, shape)


def _join_columns(rules: Rules, x: Tensor | None, columns: Tensor | None, size: int) -> None:
    if size > 1 and x is None:
        rules.freeze_with_operand(columns, rules.node.args[0])
    elif size > 1:
        rules.join(x, columns, _FIXED)


def convolution(rules: Rules, named: Arguments) -> Value:
    """Input channels meet the weight's axis 1, inside each group."""
    x, weight, groups = named["input"], named["weight"], named["groups"]
    shape = rules.shapes()[0]
    axis = len(shape) - len(weight.shape) + 1
    _rest(rules, weight, (0, 1))
    incoming, rows = rules.along(x, axis), _part(weight, 0)
    if groups > 1 and weight.shape[1] == 1:
        rows = _depthwise(rules, incoming, rows, weight.shape[0] // groups)
    elif groups > 1:
        grouped = [c for c in weight.components if axes_of(c) == [0, 1]]
        columns = grouped[0].flatten(1)[:: weight.shape[0] // groups].flatten() if grouped else None
        _join_columns(rules, incoming, columns, weight.shape[1])
        for atoms, place in ((columns, "in"), (rows, "out")):
            if atoms is not None:
                for group, part in enumerate(atoms.view(groups, -1)):
                    rules.atoms.mark(part, (rules.node.name, place, group))
    else:
        _join_columns(rules, incoming, _part(weight, 1), weight.shape[1])
    _add_bias(rules, rows, named["bias"])
    return _on_axis(axis, rows, shape)


def _depthwise(
    rules: Rules, incoming: Tensor | None, rows: Tensor | None, each: int
) -> Tensor | None:
    """Channel c makes the outputs c * each ... of its own."""
    repeated = None if incoming is None else incoming.repeat_interleave(each)
    return rules.join(repeated, rows, _FIXED)


def transposed(rules: Rules, named: Arguments) -> Value:
    """A transposed convolution's weight is [in, out, *kernel]."""
    x, weight = named["input"], named["weight"]
    shape = rules.shapes()[0]
    axis = len(shape) - len(weight.shape) + 1
    if named["groups"] > 1:
        rules.stop(x, weight, named["bias"], reason="grouped transposed convolution")
        return Value(shape)
    _rest(rules, weight, (0, 1))
    _join_columns(rules, rules.along(x, axis), _part(weight, 0), weight.shape[0])
    rows = _part(weight, 1)
    _add_bias(rules, rows, named["bias"])
    return _on_axis(axis, rows, shape)


def embedding(rules: Rules, named: Arguments) -> Value:
    """Rows of the table are chosen by index, so only its columns may trade."""
    weight, shape = named["weight"], rules.shapes()[0]
    if (rows := _part(weight, 0)) is not None:
        rules.atoms.freeze(rows, "embedding rows are chosen by index")
    return _on_axis(len(shape) - 1, _part(weight, 1), shape)


def batch_norm(rules: Rules, named: Arguments) -> Any:
    """Each channel of axis 1 for itself, with its parameters and statistics."""
    x = named["input"]
    atoms = rules.along(x, 1)
    for name in ("weight", "bias", "running_mean", "running_var"):
        if named.get(name) is not None:
            atoms = rules.join(atoms, rules.along(named[name], 0), _FIXED)
    return rules.result([_on_axis(1, atoms, shape) for shape in rules.shapes()])


def layer_norm(rules: Rules, named: Arguments) -> Value:
    """Statistics over the last axes do not care for the order on them."""
    x = named["input"]
    rank = len(x.shape)
    rules.symmetric(x, list(range(rank - len(named["normalized_shape"]), rank)))
    affine = [named[name] for name in ("weight", "bias") if named.get(name) is not None]
    return rules.elementwise([x, *affine], x.shape)


def group_norm(rules: Rules, named: Arguments) -> Value:
    """Statistics over the channels of a group do not care for their order."""
    x, groups = named["input"], named["num_groups"]
    atoms = rules.along(x, 1)
    if atoms is not None:
        for group, part in enumerate(atoms.view(groups, -1)):
            rules.atoms.mark(part, (rules.node.name, group))
    for name in ("weight", "bias"):
        if named[name] is not None:
            atoms = rules.join(atoms, rules.along(named[name], 0), _FIXED)
    return _on_axis(1, atoms, x.shape)


def softmax(rules: Rules, named: Arguments) -> Value:
    """A sum over an axis does not care for the order on it."""
    rules.symmetric(named["self"], [named["dim"] % len(named["self"].shape)])
    return Value(rules.shapes()[0], named["self"].components)


def prelu(rules: Rules, named: Arguments) -> Value:
    """One slope per channel of axis 1, or one for all."""
    x, slope = named["self"], named["weight"]
    if not slope.components:
        return Value(x.shape, x.components)
    return _on_axis(1, rules.join(rules.along(x, 1), rules.along(slope, 0), _FIXED), x.shape)


def attention(rules: Rules, named: Arguments) -> Value:
    """Queries and keys trade together inside a head, values with the output inside a head."""
    query, key, value, mask = (named[n] for n in ("query", "key", "value", "attn_mask"))
    shape = rules.shapes()[0]
    if query.shape[:-2] != key.shape[:-2] or query.shape[:-2] != value.shape[:-2]:
        rules.stop(query, key, value, mask, reason="queries and keys of different heads")
        return Value(shape)
    turned = Value(
        (*key.shape[:-2], key.shape[-1], key.shape[-2]),
        tuple(component.transpose(-2, -1) for component in key.components),
    )
    scores = (*query.shape[:-1], key.shape[-2])
    rules.stop(_product(rules, query, turned, scores), mask, reason="channels among the scores")
    return _product(rules, Value(scores), value, shape)


def matmul(rules: Rules, named: Arguments) -> Value:
    """a[..., m, d] b[..., d, n]: the channels on d are tied, those on m and n go on."""
    a, b = named["self"], named.get("mat2", named.get("other"))
    if min(len(a.shape), len(b.shape)) < 2:
        rules.stop(a, b, reason="product with a vector")
        return Value(rules.shapes()[0])
    return _product(rules, a, b, rules.shapes()[0])


def addmm(rules: Rules, named: Arguments) -> Value:
    """A matrix product added to a tensor."""
    names = ("mat1", "mat2") if "mat1" in named else ("batch1", "batch2")
    shape = rules.shapes()[0]
    product = _product(rules, named[names[0]], named[names[1]], shape)
    return rules.elementwise([named["self"], product], shape)


def _product(rules: Rules, a: Value, b: Value, shape: tuple[int, ...]) -> Value:
    rank = len(shape)
    left, right = _inner_and_outer(a, rank, -1), _inner_and_outer(b, rank, -2)
    _contract(rules, left[0], right[0], a.shape[-1])
    outer = []
    for component, own in [(c, rank - 2) for c in left[1]] + [(c, rank - 1) for c in right[1]]:
        rules.symmetric(Value(shape, (component,)), [own])  # the other factor differs by batch
        outer.append(component)
    return Value(shape, tuple(outer))


def _inner_and_outer(value: Value, rank: int, axis: int) -> tuple[list[Tensor], list[Tensor]]:
    """Components that vary on the contracted axis, and the others, with `rank` axes."""
    inner, outer = [], []
    for component in value.components:
        full = component.reshape(*(1,) * (rank - component.dim()), *component.shape)
        (inner if full.shape[axis] > 1 else outer).append(full)
    return inner, outer


def _contract(rules: Rules, left: list[Tensor], right: list[Tensor], size: int) -> None:
    if len(left) == len(right) == 1 and left[0].shape[-2] == right[0].shape[-1] == 1:
        a, b = left[0], right[0].transpose(-2, -1)
        if a.shape == b.shape:
            rules.atoms.join(a, b)
            rules.symmetric(Value(tuple(a.shape), (a,)), [a.dim() - 1])
            return
    for component in left + right:
        rules.freeze(component, _FIXED)


LAYERS: dict[str, Callable[[Rules, Arguments], Any]] = {
    "linear": linear,
    "conv1d": convolution,
    "conv2d": convolution,
    "conv3d": convolution,
    "conv_transpose1d": transposed,
    "conv_transpose2d": transposed,
    "conv_transpose3d": transposed,
    "embedding": embedding,
    "batch_norm": batch_norm,
    "instance_norm": batch_norm,
    "layer_norm": layer_norm,
    "rms_norm": layer_norm,
    "group_norm": group_norm,
    "softmax": softmax,
    "_softmax": softmax,
    "log_softmax": softmax,
    "prelu": prelu,
    "scaled_dot_product_attention": attention,
    "matmul": matmul,
    "mm": matmul,
    "bmm": matmul,
    "addmm": addmm,
    "baddbmm": addmm,
}
