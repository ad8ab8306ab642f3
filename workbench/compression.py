"""The frozen sections of a spec that say how a network is made small: treatment, quantization."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from workbench.durations import Duration, Share, steps
from workbench.sections import Count, Fraction, Positive, Schedule, Section, Train

Calibrator = Literal["max", "percentile", "entropy", "mse"]


class Finetune(Section):
    """Quantization-aware training: the last phase again with rounded values, masks held.

    `length` may be a share of that phase's; its rate is `lr_share` of the phase's peak; scales stay
    as calibrated or are learned with the weights. Neither scales nor norms and biases decay.
    """

    length: Duration
    lr_share: Positive = 0.01
    schedule: Schedule = Schedule(shape="cosine")
    scales: Literal["frozen", "learned"] = "frozen"

    def applied(self, train: Train, steps_per_epoch: int) -> Train:
        """The training that it makes of the phase's own."""
        whole = steps(train.length, steps_per_epoch)
        optimizer = train.optimizer.model_copy(
            update={"lr": train.optimizer.lr * self.lr_share, "decay_norms": False}
        )
        return train.model_copy(
            update={
                "length": f"{max(1, steps(self.length, steps_per_epoch, whole))}it",
                "optimizer": optimizer,
                "schedule": self.schedule,
                "average": None,
            }
        )


class Sensitivity(Section):
    """One layer INT8 at a time, on training batches; the `keep_fp16` worst stay as they are."""

    batches: Count = 1
    keep_fp16: Annotated[int, Field(ge=0)] = 0


class Quantize(Section):
    """INT8: how activation ranges are found, on how many training batches, and of what.

    Convolutions, linear layers and LSTMs are INT8; `adds` (of two activations, as a residual
    network's) and the products of `attention` if asked for. `compare` are calibrators to judge
    beside the chosen one.
    """

    calibrator: Calibrator = "percentile"
    percentile: Annotated[float, Field(gt=0, le=100)] = 99.99
    batches: Count = 32
    keep_fp16: Annotated[tuple[str, ...], Field(strict=False)] = ()
    adds: bool = False
    attention: bool = False
    compare: Annotated[tuple[Calibrator, ...], Field(strict=False)] = ()
    sensitivity: Sensitivity | None = None
    finetune: Finetune | None = None


class MaskSchedule(Section):
    """When masks are chosen during training, instead of once between two trainings.

    It acts in the phase `repeat_from`, phases before it being dense and those after it held. The
    stage retrain starts from `scratch`, in the place of the talk's three steps, or from the `dense`
    network, in the place of steps 2 and 3. `dense` is the share of the steps before the first
    masks, `settle` the one after which they are final, `every` the steps between two choices;
    `decay` pulls pruned weights to zero while they learn straight through their masks (SR-STE).
    """

    kind: Literal["straight_through", "once", "gradual"]
    start: Literal["scratch", "dense"] = "scratch"
    dense: Fraction = 0.0
    settle: Fraction = 1.0
    every: Count = 1
    decay: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _has_a_meaning(self) -> "MaskSchedule":
        if self.dense >= self.settle:
            raise ValueError(f"dense {self.dense} has to be below settle {self.settle}")
        if self.decay and self.kind != "straight_through":
            raise ValueError("decay belongs to straight_through: other pruned weights are zero")
        return self


class Distill(Section):
    """Learning from the dense network in the last phase too (Hinton et al., arXiv 1503.02531).

    `weight` is the share in the loss of the divergence between both networks' predictions at
    `temperature`, times its square; the rest is the task's own loss.
    """

    weight: Annotated[float, Field(gt=0, le=1)] = 0.9
    temperature: Positive = 4.0


class Treatment(Section):
    """What is done to the weights between dense training and quantization.

    Retraining repeats `all` phases from the prune point on, or the `last` alone, each for the share
    `retrain_length` of its schedule; milestones shrink with it, a warm-up given in steps or epochs
    does not. With a `schedule`, masks are chosen during that training, without a stage prune. With
    `distill` it learns from the dense network, for tasks that have classes.
    """

    pattern: dict[str, Any] = {"kind": "none"}
    rule: Literal["c4", "c4+", "asp"] = "c4"
    keep_dense: Annotated[tuple[str, ...], Field(strict=False)] = ()
    retrain: bool = True
    repeat: Literal["all", "last"] = "all"
    retrain_length: Share = "100%"
    schedule: MaskSchedule | None = None
    distill: Distill | None = None

    @model_validator(mode="after")
    def _a_student_has_a_teacher(self) -> "Treatment":
        if self.distill and not self.retrain:
            raise ValueError("distill is part of retraining: leave retrain true")
        if self.distill and self.schedule and self.schedule.start == "scratch":
            raise ValueError("from scratch there is no dense network to distill: start dense")
        return self

    @model_validator(mode="after")
    def _a_schedule_has_masks_to_choose(self) -> "Treatment":
        if self.schedule and (self.pattern.get("kind") == "none" or not self.retrain):
            raise ValueError("a schedule chooses masks: give it a pattern, and leave retrain true")
        if self.schedule and self.repeat == "last":
            raise ValueError("a schedule chooses masks from the prune point on: leave repeat all")
        return self
