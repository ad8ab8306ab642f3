"""The frozen sections of a spec that say how a network is trained: model, data, training."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from workbench.durations import Duration

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
