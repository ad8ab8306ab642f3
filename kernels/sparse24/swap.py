"""swap: every 2:4 layer of a model replaced where that is faster, in a precision."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import fusion, int8
from .families import swap_encoders
from .geometry import GeometryError
from .layout import PackError
from .nn import SparseConv2d, SparseLinear
from .packed_layer import PackedLayer
from .run import Example, sizes
from .table import Given, Layer, Table, measured

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float16}  # of floats
PACKED = {nn.Linear: SparseLinear, nn.Conv2d: SparseConv2d}
UNSEEN = "swap got no example that reaches it"


def swap(
    model: nn.Module,
    tokens: Sequence[int] | None = None,
    measure: bool | None = None,
    example: Example | list[Example] | None = None,
    precision: str | None = None,
    scales: Mapping[str, float | Tensor] | None = None,
    **tuning: Any,
) -> Table:
    """Replace, in place, each Linear and Conv2d of a model that is 2:4 by its packed form.

    precision: "fp16" or "bf16" casts the model; "int8" lets packed layers compute in INT8 and gives
    int8 from layer to layer where only INT8 layers read it, all else in fp16; None leaves types as
    they are. The steps of INT8 are `scales`: by name, `<layer>` of its input, `<layer>.weight` of
    its weight [out] (else largest / 127), `<module>:add<n>.left` and `.right` of what is added,
    which stays a float without one. A layer without a step stays in fp16. Without `scales` they are
    those of `calibrate(model, example)`.

    The batch norm behind a convolution of a model in eval mode is folded into it, dense or packed;
    into a packed layer go the ReLU or GELU and the residual's add too, where fusion.py finds that
    safe (it puts a traced copy in the place of a block whose forward changes). The layers of an
    encoder that families.py knows become one module, query, key and value one product. Layers that
    are not 2:4, of other types or with a shared weight stay, with the reason in their row of the
    table.

    Where the weights lie on a GPU (or with `measure=True`) each shape is measured, once per device,
    and what was fastest runs; a layer where dense wins at every size stays dense. Sizes are those
    that layers get when the model runs `example` (a tensor, a tuple of arguments, a mapping of
    named ones, or a list of such), or for Linears `tokens`, numbers of rows; convolutions are not
    measured without it.
    """
    given = _given(model, tokens, measure, example, precision, scales, tuning)
    shared = _shared(model)
    table = Table(swap_encoders(model, shared, given))
    names = {layer: name for name, layer in model.named_modules()}
    chains, done, added = fusion.find(model), [], set()
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        chain, addend = chains.get(layer), None
        if chain is not None and chain.add is not None:
            addend = chain.addend(names[chain.owner])
            added.add(name)
        row, new = _replaced(name, layer, shared.get(name), given, chain, addend)
        if new is not None and chain is not None:
            done.append((chain, new, row.swapped))
        elif new is not None:
            fusion.place(model, name, new)
        table.append(row)
    fusion.apply(model, done)
    if given.dtype is not None:
        _cast(model, given.dtype)
    return table if given.scales is None else _connected(model, table, given, added)


def _given(
    model: nn.Module,
    tokens: Sequence[int] | None,
    measure: bool | None,
    example: Example | list[Example] | None,
    precision: str | None,
    scales: Mapping[str, float | Tensor] | None,
    tuning: dict[str, Any],
) -> Given:
    """The arguments of swap, checked, and what the model's run on the example says."""
    if isinstance(model, nn.Linear | nn.Conv2d):
        name = type(model).__name__
        raise ValueError(f"the model is a {name} itself; use Sparse{name}.of(model)")
    if precision is not None and precision not in PRECISIONS:
        allowed = ", ".join(map(repr, PRECISIONS))
        raise ValueError(f"precision is {precision!r}; allowed are {allowed} and None")
    if scales is not None and precision != "int8":
        raise ValueError(f"scales are of precision 'int8', not of {precision!r}: leave them out")
    if precision == "int8" and scales is None:
        if example is None:
            raise ValueError(
                "precision 'int8' needs scales (name -> step, as of calibrate or a checkpoint), or "
                "an example to calibrate on: give one of them"
            )
        scales = int8.calibrate(model, example)
    elif scales is not None:
        int8.refuse_unknown(model, scales)
    found = {} if example is None else sizes(model, example)
    return Given(PRECISIONS.get(precision), scales, tokens, found, measure, tuning)


def _replaced(
    name: str,
    layer: nn.Linear | nn.Conv2d,
    other: str | None,
    given: Given,
    chain: fusion.Chain | None,
    addend: str | None,
) -> tuple[Layer, nn.Module | None]:
    """The row of a layer and what takes its place, a batch norm folded into it."""
    row = partial(Layer, name, type(layer).__name__, tuple(layer.weight.shape))
    if reason := _owned(layer, other):
        return row(False, reason), None
    folds = chain is not None and chain.folds
    if folds:
        layer = copy(layer)  # shares all but what is folded
        layer._parameters = dict(layer._parameters)
        layer.weight, layer.bias = chain.folded()
    after = "; batch norm folded" if folds else ""
    activation = None if chain is None else chain.activation
    scales = given.scales_of(name, layer.weight, addend)
    try:
        new = PACKED[type(layer)].of(layer, activation, given.dtype, scales)
    except (PackError, GeometryError) as error:
        return row(False, f"{error}{after}"), layer if folds else None
    fused = f"{after}; residual fused" if addend else after
    fused += f"; {activation} fused" if activation else ""
    if not given.measures(layer.weight) or scales is not None:
        return row(True, f"2:4, not measured{fused}"), new
    counts = given.counts(name, layer)
    if not counts:
        return row(True, f"2:4, not measured: {UNSEEN}{fused}"), new
    dense = layer.weight.to(new.weight.dtype)
    swapped, reason, times = measured(new, addend is not None, counts, given, dense)
    if not swapped:
        return row(False, f"{reason}{after}", times), layer if folds else None
    return row(True, f"{reason}{fused}", times), new


def _connected(model: nn.Module, table: Table, given: Given, added: set[str]) -> Table:
    """The table of an INT8 model, whose layers know now what they give; they are measured here."""
    traced, rows = int8.connect(model), Table()
    layers = dict(model.named_modules())
    for row in table:
        layer = layers.get(row.name)
        is_int8 = isinstance(layer, PackedLayer) and layer.scales is not None
        rows.append(_told(row, layer, row.name in added, given, traced) if is_int8 else row)
    return rows


def _told(row: Layer, layer: PackedLayer, residual: bool, given: Given, traced: bool) -> Layer:
    result = "float" if layer.scales.out is None else "int8"
    after = f"; INT8, {result} result" + ("" if traced else ": the model cannot be traced whole")
    if not given.measures(layer.packed):
        return replace(row, reason=row.reason + after)
    counts = given.counts(row.name, layer)
    if not counts:
        reason = row.reason.replace("not measured", f"not measured: {UNSEEN}")
        return replace(row, reason=reason + after)
    swapped, reason, times = measured(layer, residual, counts, given)
    reason = row.reason.replace("2:4, not measured", reason) + after
    return replace(row, swapped=swapped, reason=reason, times=times)


def _owned(layer: nn.Module, other: str | None) -> str:
    """Why a layer is not to be replaced whatever its weight is."""
    if type(layer) not in PACKED:
        kind = "Linear" if isinstance(layer, nn.Linear) else "Conv2d"
        own = type(layer).__name__
        return f"a {own}, whose owner may read its weight: only nn.{kind} is replaced"
    return "" if other is None else f"its weight is also that of {other}"


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast what is not packed; images are to lie as convolutions read them."""
    for module in model.modules():
        if not isinstance(module, PackedLayer):
            module._apply(lambda t: t.to(dtype) if t.is_floating_point() else t, recurse=False)
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)


def _shared(model: nn.Module) -> dict[str, str]:
    """For each module whose weight another parameter is too: that parameter's name."""
    owners: dict[Tensor, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter, []).append(name)
    found = {}
    for names in owners.values():
        for name in names if len(names) > 1 else ():
            module, _, last = name.rpartition(".")
            if last == "weight":
                found[module] = next(other for other in names if other != name)
    return found
