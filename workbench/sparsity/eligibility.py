"""Eligibility: which weights a pattern may touch, and why not the others."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from torch import Tensor, nn

from workbench.sparsity.layouts import RECURRENT, TRANSPOSED, layout_of, leaves
from workbench.sparsity.names import refuse_unknown
from workbench.sparsity.zeroing import unwrapped

Rule = Callable[[str, nn.Module, Tensor], str]


# mma.sp takes 16 (fp16) input channels at a time, and writes 8 output channels
KERNEL_IN, KERNEL_OUT = 16, 8


@dataclass(frozen=True)
class Layer:
    """One weight over input channels: whether a pattern may touch it, and what is in the way.

    `reason` says why it stays dense; `kernel` why sparse kernels could not run it ("" if they
    could); `remedy` what would make it eligible and runnable, and at which cost.
    """

    name: str
    shape: tuple[int, ...]
    eligible: bool
    reason: str
    kernel: str = ""
    remedy: str = ""


def explain(
    model: nn.Module, rule: str | Rule = "c4", keep_dense: Collection[str] = ()
) -> list[Layer]:
    """Every weight over input channels once, in model order, eligible or with the reason why not.

    They are those of linear, convolution, attention, recurrent and transposed convolution modules.
    A rule is "c4" or "asp" (the first three kinds), "c4+" (all) or a callable (name, module,
    weight) -> reason, "" for eligible. Tied, frozen and computed weights stay dense always.
    """
    find_reason, model = find_rule(rule), unwrapped(model)
    found = weights(model)
    aliases: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
    dense = _checked_keep_dense(keep_dense, found, aliases)
    layers = []
    for name, (module, weight) in found.items():
        if isinstance(weight, nn.parameter.UninitializedParameter):
            layers.append(Layer(name, (), False, "not initialized: run one forward first"))
            continue
        fixed, remedy = _always_dense(model, weight, aliases.get(id(weight), []))
        reason = (
            fixed
            or ("kept dense by request" if name in dense else "")
            or find_reason(name, module, weight)
        )
        kernel, padding = _kernel_needs(module, weight)
        if reason and kernel and not fixed and not layers:
            reason = f"first layer: {reason}"
        shape = tuple(weight.shape)
        layers.append(Layer(name, shape, not reason, reason, kernel, remedy or padding))
    return layers


def find_rule(rule: str | Rule) -> Rule:
    """The rule's function; an unknown name is refused."""
    if callable(rule):
        return rule
    refuse_unknown("rule", [rule], _RULES)
    return _RULES[rule]


def rule_name(rule: str | Rule) -> str:
    """The name under which masks remember the rule."""
    return rule if isinstance(rule, str) else getattr(rule, "__qualname__", repr(rule))


def weights(model: nn.Module) -> dict[str, tuple[nn.Module, Tensor]]:
    """Every weight over input channels by its first name, with its module."""
    found: dict[str, tuple[nn.Module, Tensor]] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        for leaf in leaves(module):
            weight = getattr(module, leaf, None)
            if weight is not None and id(weight) not in seen:
                seen.add(id(weight))
                found[f"{path}.{leaf}" if path else leaf] = (module, weight)
    return found


def _kernel_needs(module: nn.Module, weight: Tensor) -> tuple[str, str]:
    """Why sparse kernels could not run this weight, and the padding that would change it."""
    layout = layout_of(module)
    channels, groups = layout.channels(weight), getattr(module, "groups", 1)
    out = layout.oriented(weight).shape[0] // groups
    if channels == 1 and groups > 1:
        return "depthwise: nothing to leave out of 1 input channel", ""
    wide, tall = -(-channels // KERNEL_IN) * KERNEL_IN, -(-out // KERNEL_OUT) * KERNEL_OUT
    needs = [f"{channels} input channels, not a multiple of {KERNEL_IN}"] * (wide > channels)
    needs += [f"{out} output channels, not a multiple of {KERNEL_OUT}"] * (tall > out)
    pads = [f"input channels {channels} -> {wide}"] * (wide > channels)
    pads += [f"output channels {out} -> {tall}"] * (tall > out)
    cost = wide * tall / (channels * out) - 1
    return "; ".join(needs), f"pad {', '.join(pads)}: +{cost:.1%} FLOPs" if pads else ""


def _always_dense(model: nn.Module, weight: Tensor, names: list[str]) -> tuple[str, str]:
    """Reason that holds under every rule, from the weight's names in the model; its remedy."""
    if not names:
        reason = "computed from other parameters (parametrization)"
        return reason, "remove the parametrization before pruning"
    for name in names:
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        if leaf not in leaves(owner):
            return f"tied to {name} ({type(owner).__name__})", "give it a weight of its own"
    if weight.requires_grad:
        return "", ""
    return "frozen (requires_grad is False)", "let it train: requires_grad_(True)"


def _checked_keep_dense(
    keep_dense: Collection[str],
    found: dict[str, tuple[nn.Module, Tensor]],
    aliases: dict[int, list[str]],
) -> set[str]:
    """First names of the weights to keep dense; any of a tied weight's names may be given."""
    if isinstance(keep_dense, str):
        raise TypeError(f"keep_dense: the string {keep_dense!r} given; give a list of names")
    first = {name: name for name in found}
    for name, (_, weight) in found.items():
        first.update(dict.fromkeys(aliases.get(id(weight), ()), name))
    refuse_unknown("weight in keep_dense", keep_dense, first)
    return {first[name] for name in keep_dense}


def _c4(name: str, module: nn.Module, weight: Tensor) -> str:
    if isinstance(module, TRANSPOSED):
        return "transposed convolution: only rule c4+ prunes it"
    if isinstance(module, RECURRENT):
        return "recurrent gates: only rule c4+ prunes them"
    return _c4_plus(name, module, weight)


def _c4_plus(name: str, module: nn.Module, weight: Tensor) -> str:
    channels = layout_of(module).channels(weight)
    if channels == 1 and getattr(module, "groups", 1) > 1:
        return "depthwise: 1 input channel per group"
    if channels % 4:
        return f"{channels} input channels per group, not a multiple of 4"
    return ""


def _asp(name: str, module: nn.Module, weight: Tensor) -> str:
    out, channels = weight.shape[:2]
    if reason := _c4(name, module, weight):
        return reason
    if channels % 16:
        return f"{channels} input channels per group, not a multiple of 16"
    return f"{out} output channels, not a multiple of 8" if out % 8 else ""


_RULES: dict[str, Rule] = {"c4": _c4, "c4+": _c4_plus, "asp": _asp}
