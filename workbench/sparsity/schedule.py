"""Schedule: choose masks during training, instead of once between two trainings."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn, optim

from workbench.sparsity.eligibility import Rule
from workbench.sparsity.hold import hold, inner, refuse_stranger
from workbench.sparsity.masks import Masks
from workbench.sparsity.names import SparsityError
from workbench.sparsity.prune import TWO_OF_FOUR, find_masks, rank_again
from workbench.sparsity.zeroing import clear, is_sharded, unwrapped


@dataclass(frozen=True)
class MaskSchedule:
    """When masks are chosen, as shares of the training, and what happens between the choices.

    "straight_through": the network computes with masked weights while all of them learn, the
    pruned ones decaying by `decay` times their value (SR-STE; its authors' 2e-4). "once": dense,
    then pruned and held. "gradual": held, the density falling from 1 to the pattern's between
    `dense` and `settle` as a cubic (Zhu and Gupta, arXiv 1710.01878).
    """

    kind: Literal["straight_through", "once", "gradual"]
    dense: float = 0.0  # share of the steps before the first masks
    settle: float = 1.0  # share after which the masks are final and held
    every: int = 1  # steps between two choices
    decay: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not 0 <= self.dense < self.settle <= 1:
            raise SparsityError(
                f"dense {self.dense} and settle {self.settle} given; 0 <= dense < settle <= 1"
            )
        if self.decay and self.kind != "straight_through":
            raise SparsityError(
                f"decay {self.decay} given for kind {self.kind}, whose pruned weights are zero; "
                "only straight_through has pruned weights that can decay"
            )


class MaskScheduler:
    """Hooks on one optimizer that choose masks for one model by a schedule of `length` steps."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer,
        length: int,
        schedule: MaskSchedule,
        pattern: Mapping[str, Any] = TWO_OF_FOUR,
        rule: str | Rule = "c4",
        keep_dense: Collection[str] = (),
    ) -> None:
        """Attach to the optimizer; at `dense` 0 the first masks are chosen now."""
        if any(is_sharded(parameter) for parameter in model.parameters()):
            raise SparsityError("schedules are for weights that are whole in each process")
        self.schedule, self.pattern, self._length = schedule, dict(pattern), length
        self._model, self._step = unwrapped(model), 0
        self._chosen = find_masks(model, pattern, rule, keep_dense)  # refuses before training
        self._pattern_at(0.5)
        self._masks: Masks | None = None
        self._dense: dict[str, Tensor] = {}  # straight through: the weights as they learn
        self._flipped, self._choices = torch.zeros(()), 0
        stepped = inner(optimizer)
        refuse_stranger(self._chosen, model, stepped)
        self._hold = hold(Masks({}, pattern, self._chosen.rule), model, stepped)
        self._handles = [
            stepped.register_step_pre_hook(self._before_step),
            stepped.register_step_post_hook(self._after_step),
        ]
        self._choose()

    @property
    def masks(self) -> Masks:
        """The masks chosen last; of the whole training once it is over."""
        if self._masks is None:
            raise SparsityError(
                f"no masks after {self._step} of {self._length} steps: the schedule is dense until "
                f"{self.schedule.dense:.0%} of them"
            )
        return self._masks

    def remove(self) -> None:
        """Leave the network as it computes, with its pruned weights zero."""
        for handle in self._handles:
            handle.remove()
        self._hold.remove()
        self._dense.clear()

    def mask_gradients(self) -> None:
        """Before clipping: zero gradients of weights that are held; straight through, none are."""
        self._hold.mask_gradients()

    def measured(self) -> dict[str, float]:
        """Since the last call: mean share of masked positions that changed per choice; density."""
        density = self._masks.density() if self._masks is not None else 1.0
        mean = float(self._flipped) / max(1, self._choices)
        self._flipped, self._choices = torch.zeros(()), 0
        return {"flip_rate": mean, "density": density}

    def state(self) -> dict[str, Any]:
        """What resuming needs: tensors and numbers only."""
        chosen = dict(self._masks) if self._masks is not None else {}
        return {
            "step": self._step,
            "masks": chosen,
            "pattern": self._masks.pattern if chosen else {},
            "dense": self._dense,
            "flipped": float(self._flipped),
            "choices": self._choices,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; the model's weights are those of the same moment."""
        self._step, self._choices = state["step"], state["choices"]
        self._flipped = torch.tensor(state["flipped"])
        self._dense, self._masks = self._placed(state["dense"]), None
        if state["masks"]:
            masks = self._placed(state["masks"])
            layouts = {name: self._chosen.layout(name) for name in masks}
            self._masks = Masks(masks, state["pattern"], self._chosen.rule, layouts)
            if not self._dense:
                self._hold.change(self._masks)

    def _placed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n: t.to(self._model.get_parameter(n).device) for n, t in tensors.items()}

    @torch.no_grad()
    def _before_step(self, optimizer: optim.Optimizer, args: tuple, kwargs: dict) -> None:
        """Give the optimizer the dense weights, and pruned ones a gradient towards zero."""
        closures = (*args[1:], kwargs.get("closure"))  # the first is the optimizer
        if self._dense and any(closure is not None for closure in closures):
            raise SparsityError(
                "a closure computes gradients inside the step, where the weights are dense; call "
                "backward before step, as optimizers other than LBFGS allow"
            )
        for name, dense in self._dense.items():
            weight = self._model.get_parameter(name)
            weight.copy_(dense)
            if self.schedule.decay and weight.grad is not None:
                pruned = ~self._masks[name].to(weight.device)
                weight.grad.add_(dense * pruned, alpha=self.schedule.decay)

    def _after_step(self, *_: Any) -> None:
        self._step += 1
        self._choose()

    @torch.no_grad()
    def _choose(self) -> None:
        """New masks if they are due at this step; straight through, mask the weights anew."""
        first, last = (
            round(share * self._length) for share in (self.schedule.dense, self.schedule.settle)
        )
        learning = self.schedule.kind == "straight_through" and self._step < last
        if self._is_due(first, last):
            done = (self._step - first) / max(1, last - first)
            self._change(rank_again(self._chosen, self._model, self._pattern_at(done)))
            if not learning:
                self._dense.clear()
                self._hold.change(self._masks)
        if learning and self._masks is not None:
            self._mask_but_remember()

    def _is_due(self, first: int, last: int) -> bool:
        if self._masks is None:
            return self._step >= first
        if self.schedule.kind == "once" or self._step > last:
            return False
        return self._step == last or (self._step - first) % self.schedule.every == 0

    def _mask_but_remember(self) -> None:
        for name, weight, mask in self._masks.pairs(self._model):
            if name not in self._dense:
                self._dense[name] = torch.empty_like(weight)
            self._dense[name].copy_(weight)
            clear(weight, mask)

    def _change(self, masks: Masks) -> None:
        if self._masks is not None:
            flipped = sum((masks[name] != self._masks[name]).sum() for name in masks)
            self._flipped = self._flipped + flipped / sum(mask.numel() for mask in masks.values())
            self._choices += 1
        self._masks = masks

    def _pattern_at(self, done: float) -> dict[str, Any]:
        """The pattern at a share of the way from the first masks to the last."""
        if self.schedule.kind != "gradual":
            return self.pattern
        left = (1 - min(done, 1.0)) ** 3
        if self.pattern["kind"] == "nm":
            keep, of = self.pattern["keep"], self.pattern["of"]
            return {**self.pattern, "keep": keep + math.ceil((of - keep) * left - 1e-9)}
        if "density" not in self.pattern:
            raise SparsityError(f"pattern {self.pattern['kind']} has no density that could fall")
        density = self.pattern["density"]
        return {**self.pattern, "density": density + (1 - density) * left}
