"""Prune: single-shot magnitude pruning of a trained model."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, nn, optim

from workbench.sparsity import patterns
from workbench.sparsity.eligibility import Layer, Rule, explain, weights
from workbench.sparsity.hold import hold
from workbench.sparsity.layouts import layout_of
from workbench.sparsity.masks import Masks
from workbench.sparsity.names import refuse_unknown

__all__ = ["TWO_OF_FOUR", "Layer", "Masks", "explain", "prune", "prune_trained_model"]

TWO_OF_FOUR: Mapping[str, Any] = {"kind": "nm", "keep": 2, "of": 4}

# kind -> function of patterns.py, and the keys it needs
_KINDS: dict[str, tuple[Callable[..., Tensor] | None, tuple[str, ...]]] = {
    "nm": (patterns.nm, ("keep", "of")),
    "block": (patterns.block, ("rows", "columns", "density")),
    "unstructured": (patterns.unstructured, ("density",)),
    "none": (None, ()),
}


def prune(
    model: nn.Module,
    pattern: Mapping[str, Any] = TWO_OF_FOUR,
    rule: str | Rule = "c4",
    keep_dense: Collection[str] = (),
) -> Masks:
    """Masks of the eligible weights by magnitude; the pruned weights of `model` become zero.

    If any weight is refused, the error lists all of them and the model is as it was.
    """
    find_mask, arguments = _checked_pattern(pattern)
    rule_name = rule if isinstance(rule, str) else getattr(rule, "__qualname__", repr(rule))
    layers = explain(model, rule, keep_dense)
    if find_mask is None:
        return Masks({}, pattern, rule_name)
    if not any(layer.eligible for layer in layers):
        reasons = "; ".join(f"{layer.name}: {layer.reason}" for layer in layers[:5])
        raise ValueError(
            f"rule {rule_name} finds nothing to prune among {len(layers)} weights "
            f"({reasons}); give a model with eligible weights, or kind none"
        )
    found, masks, refused = weights(model), {}, []
    for layer in layers:
        if layer.eligible:
            module, weight = found[layer.name]
            layout = layout_of(module)
            try:
                mask = find_mask(layout.oriented(weight), **arguments)
                masks[layer.name] = layout.restored(mask)
            except ValueError as error:
                refused.append(f"{layer.name}: {error}")
    if refused:
        raise ValueError("\n".join([*refused, "keep_dense leaves named weights dense"]))
    result = Masks(masks, pattern, rule_name)
    result.apply(model)
    return result


def prune_trained_model(
    model: nn.Module,
    optimizer: optim.Optimizer,
    pattern: Mapping[str, Any] = TWO_OF_FOUR,
    rule: str | Rule = "c4",
    keep_dense: Collection[str] = (),
) -> Masks:
    """Masks of the pruned model, held from now on at every step of `optimizer`.

    The talk's one line: train or load, call this, train again with the same loop.
    """
    masks = prune(model, pattern, rule, keep_dense)
    hold(masks, model, optimizer)
    return masks


def _checked_pattern(
    pattern: Mapping[str, Any],
) -> tuple[Callable[..., Tensor] | None, dict[str, Any]]:
    """The pattern's function (None for kind none) and its arguments."""
    if "kind" not in pattern:
        raise ValueError(f"pattern {dict(pattern)} has no kind; one of {', '.join(_KINDS)}")
    kind = pattern["kind"]
    refuse_unknown("pattern kind", [kind], _KINDS)
    find_mask, keys = _KINDS[kind]
    arguments = {key: value for key, value in pattern.items() if key != "kind"}
    refuse_unknown(f"key of pattern {kind}", arguments, keys)
    if missing := [key for key in keys if key not in arguments]:
        raise ValueError(
            f"pattern {dict(pattern)} lacks {', '.join(missing)}; kind {kind} needs "
            + ", ".join(keys)
        )
    return find_mask, arguments
