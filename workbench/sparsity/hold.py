"""Hold: keep pruned weights at exactly zero through training."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn, optim

from workbench.sparsity.masks import Masks


class Hold:
    """Hooks on one optimizer that keep the pruned weights of one model at zero."""

    def __init__(self, masks: Masks, model: nn.Module, optimizer: optim.Optimizer) -> None:
        """Zero the pruned weights and their optimizer state, then attach to every step."""
        pairs = masks.pairs(model)
        self._weights = [parameter for _, parameter, _ in pairs]
        self._pruned = [~mask for _, _, mask in pairs]
        self._zero_weights()
        self._zero_state(optimizer)
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._zero_weights),
            optimizer.register_load_state_dict_post_hook(self._zero_state),
        ]

    def remove(self) -> None:
        """Let the pruned weights go: later steps may change them."""
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Zero the gradients of pruned weights now; see the function of the same name."""
        for weight, pruned in self._pairs():
            if weight.grad is not None:
                weight.grad.masked_fill_(pruned, 0)

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """(weight, pruned positions), on the device where the weight is now."""
        for i, (weight, pruned) in enumerate(zip(self._weights, self._pruned, strict=True)):
            if weight.device != pruned.device:
                self._pruned[i] = pruned.to(weight.device)
        return list(zip(self._weights, self._pruned, strict=True))

    def _before_step(self, optimizer: optim.Optimizer, args: tuple, kwargs: dict) -> Any:
        self.mask_gradients()
        # args is (optimizer, closure); a closure computes gradients anew inside the step
        if len(args) > 1 and args[1] is not None:
            return (args[0], self._masked_closure(args[1]), *args[2:]), kwargs
        if kwargs.get("closure") is not None:
            return args, {**kwargs, "closure": self._masked_closure(kwargs["closure"])}
        return None

    def _masked_closure(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def masked() -> Any:
            loss = closure()
            self.mask_gradients()
            return loss

        return masked

    @torch.no_grad()
    def _zero_weights(self, *_: Any) -> None:
        # fill, not multiply: 0/0 in an optimizer without eps must not stay NaN, nor zeros be -0
        for weight, pruned in self._pairs():
            weight.masked_fill_(pruned, 0)

    @torch.no_grad()
    def _zero_state(self, optimizer: optim.Optimizer) -> None:
        for weight, pruned in self._pairs():
            for value in optimizer.state.get(weight, {}).values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    value.masked_fill_(pruned.to(value.device), 0)


def hold(masks: Masks, model: nn.Module, optimizer: optim.Optimizer) -> Hold:
    """Hooks, removable by `.remove()`, that keep the pruned weights of `model` at exactly zero.

    Before each step of `optimizer` the gradients of pruned weights become zero, after it the
    weights; momentum of pruned weights is zeroed now and when a state is loaded. Weights are
    zeroed now too. A wrapped optimizer (accelerate) is held by the one inside.
    """
    while isinstance(inner := getattr(optimizer, "optimizer", None), optim.Optimizer):
        optimizer = inner
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if masks and not any(id(parameter) in stepped for _, parameter, _ in masks.pairs(model)):
        raise ValueError(
            f"the optimizer steps none of the {len(masks)} masked weights of this model; "
            "give the optimizer made from this model's own parameters"
        )
    return Hold(masks, model, optimizer)


@torch.no_grad()
def mask_gradients(masks: Masks, model: nn.Module) -> None:
    """Zero the gradients of pruned weights in place; call it between unscaling and clipping.

    The held optimizer masks gradients only inside its step, after `clip_grad_norm_` has measured
    them: the norm would then count gradients of weights that do not exist, and clip too hard
    (measured on one case: 0.424 dense, 0.325 masked).
    """
    for _, parameter, mask in masks.pairs(model):
        if parameter.grad is not None:
            parameter.grad.masked_fill_(~mask, 0)
