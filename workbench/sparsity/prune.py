"""Prune: single-shot magnitude pruning of a trained model."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn, optim

from workbench.sparsity import patterns
from workbench.sparsity.eligibility import Layer, Rule, explain, rule_name, weights
from workbench.sparsity.hold import Masters, hold
from workbench.sparsity.layouts import Layout, layout_of
from workbench.sparsity.masks import Masks
from workbench.sparsity.names import SparsityError, refuse_unknown
from workbench.sparsity.zeroing import clear, is_sharded, unwrapped

__all__ = ["TWO_OF_FOUR", "Layer", "Masks", "explain", "find_masks", "prune", "prune_trained_model"]

TWO_OF_FOUR: Mapping[str, Any] = {"kind": "nm", "keep": 2, "of": 4}

# kind -> function of patterns.py, the keys it needs, and those that it may have
_KINDS: dict[str, tuple[Callable[..., Any] | None, tuple[str, ...], tuple[str, ...]]] = {
    "nm": (patterns.nm, ("keep", "of"), ()),
    "transposable": (patterns.transposable, (), ("search",)),
    "block": (patterns.block, ("rows", "columns", "density"), ()),
    "unstructured": (patterns.unstructured, ("density",), ()),
    "unstructured_global": (patterns.unstructured_global, ("density",), ()),
    "none": (None, (), ()),
}


def prune(
    model: nn.Module,
    pattern: Mapping[str, Any] = TWO_OF_FOUR,
    rule: str | Rule = "c4",
    keep_dense: Collection[str] = (),
    masters: Masters | None = None,
) -> Masks:
    """Masks of the eligible weights by magnitude; the pruned weights of `model` become zero.

    `masters` are fp32 copies by parameter name: they are ranked instead of the model's 16-bit
    weights, which tie more often, and are zeroed too. If any weight is refused, the error lists
    all of them and the model is as it was.
    """
    masks = find_masks(model, pattern, rule, keep_dense, masters)
    masks.apply(model)
    for name, master in (masters or {}).items():
        if name in masks:
            clear(master, masks[name].to(master.device))
    return masks


def find_masks(
    model: nn.Module,
    pattern: Mapping[str, Any] = TWO_OF_FOUR,
    rule: str | Rule = "c4",
    keep_dense: Collection[str] = (),
    masters: Masters | None = None,
) -> Masks:
    """The masks that `prune` would apply; the model stays as it is."""
    model = unwrapped(model)
    find_mask, arguments = _checked_pattern(pattern)
    layers = explain(model, rule, keep_dense)
    if find_mask is None:
        return Masks({}, pattern, rule_name(rule))
    chosen = [layer.name for layer in layers if layer.eligible]
    if not chosen:
        reasons = "; ".join(f"{layer.name}: {layer.reason}" for layer in layers[:5])
        raise SparsityError(
            f"rule {rule_name(rule)} finds nothing to prune among {len(layers)} weights "
            f"({reasons}); give a model with eligible weights, or kind none"
        )
    found, masters = weights(model), masters or {}
    refuse_unknown("parameter in the masters, absent from the model", masters, found)
    layouts = {name: layout_of(found[name][0]) for name in chosen}
    ranked = {name: whole(masters.get(name, found[name][1])) for name in chosen}
    masks = _mask_weights(ranked, layouts, find_mask, arguments)
    return Masks(masks, pattern, rule_name(rule), layouts)


def rank_again(masks: Masks, model: nn.Module, pattern: Mapping[str, Any]) -> Masks:
    """Masks of the same weights under a pattern, by their magnitudes now; the model stays."""
    find_mask, arguments = _checked_pattern(pattern)
    pairs = masks.pairs(model)
    ranked = {name: whole(parameter) for name, parameter, _ in pairs}
    layouts = {name: masks.layout(name) for name in masks}
    found = _mask_weights(ranked, layouts, find_mask, arguments)
    return Masks(found, pattern, masks.rule, layouts)


def _mask_weights(
    named: Mapping[str, Tensor],
    layouts: Mapping[str, Layout],
    find_mask: Callable[..., Any],
    arguments: Mapping[str, Any],
) -> dict[str, Tensor]:
    """The mask of each weight; if any is refused, the error lists all of them."""
    oriented = {name: layouts[name].oriented(weight.detach()) for name, weight in named.items()}
    if find_mask is patterns.unstructured_global:
        kept = dict(zip(oriented, find_mask(list(oriented.values()), **arguments), strict=True))
        return {name: layouts[name].restored(mask) for name, mask in kept.items()}
    masks, refused = {}, []
    for name, weight in oriented.items():
        try:
            masks[name] = layouts[name].restored(find_mask(weight, **arguments))
        except ValueError as error:
            refused.append(f"{name}: {error}")
    if refused:
        raise SparsityError("\n".join([*refused, "keep_dense leaves named weights dense"]))
    return masks


def prune_trained_model(
    model: nn.Module,
    optimizer: optim.Optimizer | Sequence[optim.Optimizer],
    pattern: Mapping[str, Any] = TWO_OF_FOUR,
    rule: str | Rule = "c4",
    keep_dense: Collection[str] = (),
    masters: Masters | None = None,
) -> Masks:
    """Masks of the pruned model, held from now on at every step of the optimizer or optimizers.

    The talk's one line: train or load, call this, train again with the same loop.
    """
    optimizers = [optimizer] if isinstance(optimizer, optim.Optimizer) else list(optimizer)
    masks = prune(model, pattern, rule, keep_dense, masters)
    for one in optimizers:
        hold(masks, model, one, masters)
    return masks


def whole(weight: Tensor) -> Tensor:
    """The weight with the shards of all processes."""
    return weight.full_tensor() if is_sharded(weight) else weight


def _checked_pattern(
    pattern: Mapping[str, Any],
) -> tuple[Callable[..., Any] | None, dict[str, Any]]:
    """The pattern's function (None for kind none) and its arguments."""
    if "kind" not in pattern:
        raise SparsityError(f"pattern {dict(pattern)} has no kind; one of {', '.join(_KINDS)}")
    kind = pattern["kind"]
    refuse_unknown("pattern kind", [kind], _KINDS)
    find_mask, needed, possible = _KINDS[kind]
    arguments = {key: value for key, value in pattern.items() if key != "kind"}
    refuse_unknown(f"key of pattern {kind}", arguments, (*needed, *possible))
    if missing := [key for key in needed if key not in arguments]:
        raise SparsityError(
            f"pattern {dict(pattern)} lacks {', '.join(missing)}; kind {kind} needs "
            + ", ".join(needed)
        )
    return find_mask, arguments
