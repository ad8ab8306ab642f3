"""Hold: keep pruned weights at exactly zero through training."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn, optim

from workbench.sparsity.layouts import reflatten
from workbench.sparsity.masks import Masks
from workbench.sparsity.names import SparsityError, refuse_unknown
from workbench.sparsity.zeroing import clear, placed, unwrapped

Masters = Mapping[str, Tensor]


class Hold:
    """Hooks on one optimizer that keep the pruned weights of one model at zero."""

    def __init__(
        self, masks: Masks, model: nn.Module, optimizer: optim.Optimizer, masters: Masters
    ) -> None:
        """Zero the pruned weights and their optimizer state, then attach to every step."""
        masks.pairs(model)  # names and shapes
        self._model = unwrapped(model)
        self._masters = masters
        self._optimizer = optimizer
        self.change(masks)
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._zero_weights),
            optimizer.register_load_state_dict_post_hook(self._zero_state),
        ]

    @property
    def masks(self) -> Masks:
        """The masks that are held."""
        return self._given

    def change(self, masks: Masks) -> None:
        """Hold these masks from now on: their pruned weights and optimizer state become zero."""
        self._given, self._masks = masks, dict(masks)
        split = {name: name.rpartition(".") for name in masks}
        self._owners = {
            n: (self._model.get_submodule(p), leaf) for n, (p, _, leaf) in split.items()
        }
        self._zero_weights()
        self._zero_state(self._optimizer)
        reflatten(self._model)

    def measured(self) -> dict[str, float]:
        """Nothing: masks that are held do not change."""
        return {}

    def state(self) -> dict[str, Any]:
        """Nothing: the masks are an input of the training."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to do: loading the optimizer's state zeroes that of pruned weights."""

    def remove(self) -> None:
        """Let the pruned weights go: later steps may change them."""
        for handle in self._handles:
            handle.remove()

    def mask_gradients(self) -> None:
        """Zero the gradients of pruned weights now; see the function of the same name."""
        for weight, kept in self._pairs():
            if weight.grad is not None:
                clear(weight.grad, kept)

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """(weight, kept positions) of the model and the masters, as they are now.

        Weights are looked up in their modules at every step: sharding and assignment replace them.
        """
        found = []
        for name, mask in self._masks.items():
            module, leaf = self._owners[name]
            weight = getattr(module, leaf)
            self._masks[name] = mask = placed(mask, weight)
            found.append((weight, mask))
            if name in self._masters:
                found.append((self._masters[name], placed(mask, self._masters[name])))
        return found

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

    def _zero_weights(self, *_: Any) -> None:
        for weight, kept in self._pairs():
            clear(weight, kept)

    def _zero_state(self, optimizer: optim.Optimizer) -> None:
        for weight, kept in self._pairs():
            for value in optimizer.state.get(weight, {}).values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    clear(value, placed(kept, value))


def hold(
    masks: Masks, model: nn.Module, optimizer: optim.Optimizer, masters: Masters | None = None
) -> Hold:
    """Hooks, removable by `.remove()`, that keep the pruned weights of `model` at exactly zero.

    Before each step of `optimizer` the gradients of pruned weights become zero, after it the
    weights; momentum of pruned weights is zeroed now and when a state is loaded. Weights are
    zeroed now too. A wrapped optimizer (accelerate) is held by the one inside. `masters` are fp32
    copies by parameter name that the optimizer steps instead of 16-bit weights of the model.
    """
    optimizer = inner(optimizer)
    masters = masters or {}
    refuse_unknown("parameter in the masters, absent from the masks", masters, masks)
    refuse_stranger(masks, model, optimizer, masters)
    return Hold(masks, model, optimizer, masters)


def refuse_stranger(
    masks: Masks, model: nn.Module, optimizer: optim.Optimizer, masters: Masters | None = None
) -> None:
    """Raise SparsityError if the optimizer steps none of the masked weights nor their masters."""
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    held = [(masters or {}).get(name, parameter) for name, parameter, _ in masks.pairs(model)]
    if masks and not any(id(tensor) in stepped for tensor in held):
        raise SparsityError(
            f"the optimizer steps none of the {len(masks)} masked weights of this model; "
            "give the optimizer made from this model's own parameters, or their masters"
        )


def inner(optimizer: optim.Optimizer) -> optim.Optimizer:
    """The optimizer inside the wrappers of accelerate."""
    while isinstance(wrapped := getattr(optimizer, "optimizer", None), optim.Optimizer):
        optimizer = wrapped
    return optimizer


def mask_gradients(masks: Masks, model: nn.Module) -> None:
    """Zero the gradients of pruned weights in place; call it between unscaling and clipping.

    The held optimizer masks gradients only inside its step, after `clip_grad_norm_` has measured
    them: the norm would then count gradients of weights that do not exist, and clip too hard
    (measured on one case: 0.424 dense, 0.325 masked).
    """
    for _, parameter, mask in masks.pairs(model):
        if parameter.grad is not None:
            clear(parameter.grad, mask)
