"""The frozen sections of a spec: model, data, training, evaluation, treatment, quantization."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from workbench.durations import Duration, Share, steps

Stage = Literal["dense", "prune", "retrain", "quantize"]
TaskName = Literal[
    "classification",
    "detection",
    "proposals",
    "translation",
    "translation_by_edits",
    "language_model",
    "question_answering",
]
STAGES: tuple[Stage, ...] = ("dense", "prune", "retrain", "quantize")
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of a spec: unknown keys and wrong types are errors, and nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Model(Section):
    """Which builder of workbench/models makes the network, and how much of it."""

    build: str
    args: dict[str, Any] = {}
    width: Positive = 1.0
    depth: Positive = 1.0


class Augmentation(Section):
    """A function of workbench/data/augment.py, by name, with its arguments."""

    name: str
    args: dict[str, Any] = {}


class Longer(Section):
    """A second length of training examples, from a share of the phase on."""

    sequence: Count
    after: Duration


class Data(Section):
    """A data set of experiments/data/catalog.yaml and the size in which it is read.

    `minimum_size` is the smallest image the network takes: a smaller `image_size`, as a scale may
    give, is raised to it. `label_noise` is the share of training labels replaced at random.
    `whole` shows held-out images whole, not the middle of them as ImageNet's are shown.
    `augment` replaces the reader's own augmentation (see its class) by the ones listed, in order.
    `sequence` cuts what is longer; `train_sequence` leaves longer training pairs out.
    """

    name: str
    image_size: Count | None = None
    minimum_size: Count | None = None
    label_noise: Fraction = 0.0
    whole: bool = False
    augment: Annotated[tuple[Augmentation, ...], Field(strict=False)] | None = None
    sequence: Count | None = None
    train_sequence: Count | None = None
    longer: Longer | None = None
    vocabulary: Count | None = None
    stride: Count | None = None
    limit: Count | None = None


class Optimizer(Section):
    """Update rule; `lr` belongs to a batch of `lr_batch` and scales linearly with the batch.

    Norms and biases learn at `bias_lr` times the rate, and decay unless `decay_norms` is false.
    """

    name: Literal["sgd", "adam", "adamw"]
    lr: Positive
    lr_batch: Count | None = None
    momentum: Fraction = 0.0
    nesterov: bool = False
    betas: Annotated[tuple[float, float], Field(strict=False)] = (0.9, 0.999)
    eps: Positive = 1e-8
    bias_lr: Positive = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    decay_norms: bool = True


class Schedule(Section):
    """Learning rate over a phase: warm-up, then a shape whose milestones are fractions.

    `factor` is what a milestone multiplies the rate by, or an exponential the whole phase; the
    warm-up rises from the share `warmup_from` of the rate.
    """

    shape: Literal["constant", "step", "exponential", "cosine", "linear", "inverse_sqrt"] = (
        "constant"
    )
    milestones: Annotated[tuple[Fraction, ...], Field(strict=False)] = ()
    factor: Positive = 0.1
    warmup: Duration = "0it"
    warmup_shape: Literal["linear", "exponential"] = "linear"
    warmup_from: Fraction = 0.0

    @model_validator(mode="after")
    def _milestones_belong_to_steps(self) -> "Schedule":
        if (self.shape == "step") != bool(self.milestones):
            raise ValueError("milestones are given for the shape 'step', and only for it")
        return self

    @model_validator(mode="after")
    def _an_exponential_begins_above_zero(self) -> "Schedule":
        if self.warmup_shape == "exponential" and not self.warmup_from:
            raise ValueError("an exponential warm-up rises from a warmup_from above 0, as 0.01")
        return self


class Average(Section):
    """The weights at the end are the mean of `last` checkpoints, `every` so often, to the end."""

    last: Count
    every: Duration


class Train(Section):
    """One phase of training.

    `batch` examples make a step. They are cut into `shares` that are computed one after the other
    and whose gradients are averaged (gradient accumulation): less memory, and batch norms see a
    share. Several processes take the shares in turn, as many shares as processes if more than 1 are
    not asked for, so that the curve depends on the shares and not on how many processes there are.
    """

    length: Duration
    batch: Count
    shares: Count = 1
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    clip_norm: Positive | None = None
    label_smoothing: Fraction = 0.0
    average: Average | None = None
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    workers: Annotated[int, Field(ge=0)] = 0


class Eval(Section):
    """How a network is judged on held-out data, always after the last step.

    `workbench.models.beam_search.generate` has the formulas of the lengths and of coverage.
    Language models read segments of `sequence` (default: as in training) with a `memory`; with
    `same_length` each token sees that many before it, distances above `clamp` counting as it.
    With `every`, a duration, the primary metric is in the curve too: as `held_out`, so often.
    """

    batch: Count = 32
    every: Duration | None = None
    limit: Count | None = None
    beam: Count = 1
    length_penalty: Annotated[float, Field(ge=0)] = 1.0
    length_norm: Literal["fairseq", "gnmt"] = "fairseq"
    coverage_penalty: Annotated[float, Field(ge=0)] = 0.0
    sequence: Count | None = None
    memory: Count | None = None
    clamp: Count | None = None
    same_length: bool = False


class Phase(Section):
    """One training of one task; the next phase starts from its weights, under `prefix`.

    `weights` names an entry of the catalog whose published weights the dense stage takes instead
    of training them ("train (or obtain)"); retraining runs the phase all the same.
    """

    task: TaskName
    objective: Literal["causal", "masked"] | None = None
    model: Model | None = None
    prefix: str = ""
    weights: str | None = None
    data: Data
    train: Train
    eval: Eval = Eval()

    @model_validator(mode="after")
    def _objective_belongs_to_language_models(self) -> "Phase":
        if (self.task == "language_model") != (self.objective is not None):
            raise ValueError(
                "objective (causal or masked) is given for the task "
                "'language_model', and only for it"
            )
        return self


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


class Choice(Section):
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
    def _has_a_meaning(self) -> "Choice":
        if self.dense >= self.settle:
            raise ValueError(f"dense {self.dense} has to be below settle {self.settle}")
        if self.decay and self.kind != "straight_through":
            raise ValueError("decay belongs to straight_through: other pruned weights are zero")
        return self


class Treatment(Section):
    """What is done to the weights between dense training and quantization.

    Retraining repeats `all` phases from the prune point on, or the `last` alone, each for the share
    `retrain_length` of its schedule; milestones shrink with it, a warm-up given in steps or epochs
    does not. With a `schedule`, masks are chosen during that training, without a stage prune.
    """

    pattern: dict[str, Any] = {"kind": "none"}
    rule: Literal["c4", "c4+", "asp"] = "c4"
    keep_dense: Annotated[tuple[str, ...], Field(strict=False)] = ()
    retrain: bool = True
    repeat: Literal["all", "last"] = "all"
    retrain_length: Share = "100%"
    schedule: Choice | None = None

    @model_validator(mode="after")
    def _a_schedule_has_masks_to_choose(self) -> "Treatment":
        if self.schedule and (self.pattern.get("kind") == "none" or not self.retrain):
            raise ValueError("a schedule chooses masks: give it a pattern, and leave retrain true")
        if self.schedule and self.repeat == "last":
            raise ValueError("a schedule chooses masks from the prune point on: leave repeat all")
        return self
