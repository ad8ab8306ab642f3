"""What is run: a spec, a study, what a stage reads of a spec, and the digest of that."""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from workbench.compression import Quantize, Treatment
from workbench.durations import shortened
from workbench.sections import Model, Phase, Positive, Section, Stage

INT8_METHOD = 2  # raised when workbench/quant comes to other integers from the same spec


class Column(Section):
    """A column of a study's table: the records of a stage of a treatment."""

    treatment: str
    stage: Stage


class Method(Column):
    """A row of a study of methods: the records of a stage of a treatment of a network."""

    network: str
    title: str


class Claim(Section):
    """What a slide says of two methods: one is better than the other, or both are the same."""

    slide: str
    method: str
    relation: Literal["better", "same"]
    than: str


class Study(Section):
    """Which cells form one table: columns of networks, or methods that are rows of their own.

    `networks` are named where it is not about all. `talk` names the table of experiments/talk that
    holds its printed numbers, if it is not the one that the networks name. The methods `baseline`
    of a study of methods are dense trainings, whose spread over seeds is that of a run.
    """

    title: str
    slides: str = ""
    talk: str | None = None
    columns: dict[str, Column] = {}
    networks: Annotated[tuple[str, ...], Field(strict=False)] = ()
    methods: dict[str, Method] = {}
    baseline: Annotated[tuple[str, ...], Field(strict=False)] = ()
    claims: Annotated[tuple[Claim, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _has_one_kind_of_cells(self) -> "Study":
        if bool(self.columns) == bool(self.methods):
            raise ValueError("give columns, for rows that are networks, or methods, and not both")
        if self.methods and self.networks:
            raise ValueError("methods name their networks: leave networks out")
        if bool(self.methods) != bool(self.baseline):
            raise ValueError("baseline names dense methods, where there are methods")
        for claim in self.claims:
            self._check_methods((claim.method, claim.than), "claims")
        self._check_methods(self.baseline, "baseline")
        return self

    def _check_methods(self, named: tuple[str, ...], key: str) -> None:
        if unknown := [name for name in named if name not in self.methods]:
            raise ValueError(
                f"{key}: unknown method {unknown[0]!r}; known: {', '.join(self.methods)}"
            )


class Spec(Section):
    """Everything that decides the result of a cell but its seed, and how it is run.

    How is no part of a digest: `checkpoint_seconds`, and whether a `training_step` is launched
    kernel by kernel (eager) or is one CUDA graph, which is an error where it cannot be, or
    left eager there (auto). The record notes which it was, unless eager was asked for.
    """

    title: str
    talk: str | None = None
    source: str
    model: Model
    phases: dict[str, Phase]
    repeat_from: str
    treatment: Treatment
    quantize: Quantize = Quantize()
    checkpoint_seconds: Positive = 60.0
    training_step: Literal["eager", "graph", "auto"] = "eager"

    @model_validator(mode="after")
    def _repeat_from_is_a_phase(self) -> "Spec":
        if self.repeat_from not in self.phases:
            raise ValueError(
                f"repeat_from names the phase {self.repeat_from!r}; the phases are "
                f"{', '.join(self.phases)}"
            )
        return self

    @model_validator(mode="after")
    def _the_last_phase_follows_the_prune_point(self) -> "Spec":
        if self.treatment.repeat == "last" and len(self.after_prune_point) > 1:
            between = ", ".join(self.after_prune_point[:-1])
            raise ValueError(f"repeat last leaves out {between}; repeat all, or move repeat_from")
        return self

    @model_validator(mode="after")
    def _phases_share_a_precision(self) -> "Spec":
        given = {phase.train.precision for phase in self.phases.values()}
        if len(given) > 1:
            raise ValueError(
                f"the phases train in {', '.join(sorted(given))}; give all of them one precision"
            )
        return self

    @property
    def precision(self) -> str:
        """The precision of training, which evaluation uses too."""
        return self.phases[self.repeat_from].train.precision

    @property
    def last_phase(self) -> str:
        """The phase whose metric is the network's."""
        return list(self.phases)[-1]

    @property
    def after_prune_point(self) -> list[str]:
        """The phases that follow the prune point."""
        names = list(self.phases)
        return names[names.index(self.repeat_from) + 1 :]

    @property
    def repeated(self) -> list[str]:
        """The phases that retraining runs again."""
        whole = [self.repeat_from, *self.after_prune_point]
        return whole[-1:] if self.treatment.repeat == "last" else whole

    @property
    def from_scratch(self) -> bool:
        """Whether the stage retrain starts from fresh weights."""
        return self.treatment.schedule is not None and self.treatment.schedule.start == "scratch"

    @property
    def retraining(self) -> dict[str, Phase]:
        """The phases that the stage retrain runs, as it runs them."""
        names = self.phases if self.from_scratch else self.repeated
        return {name: self.retrained(name) for name in names}

    def retrained(self, phase: str) -> Phase:
        """A repeated phase as retraining runs it, of the treatment's share of its length."""
        given = self.phases[phase]
        length = shortened(given.train.length, self.treatment.retrain_length)
        train = given.train.model_copy(update={"length": length})
        return given.model_copy(update={"train": train, "weights": None})

    def model_of(self, phase: str) -> Model:
        """The model of a phase: its own, or the network's."""
        return self.phases[phase].model or self.model


def stage_slice(spec: Spec, stage: Stage) -> dict[str, Any]:
    """The parts of a spec that a stage reads, without values that equal their defaults."""
    whole = spec.model_dump(mode="json", exclude_defaults=True)
    phases = whole["phases"]
    judged = {"model", "task", "objective", "data", "eval", "prefix"}

    def seen(name: str) -> dict[str, Any]:
        return {key: value for key, value in phases[name].items() if key in judged}

    def trained(name: str) -> dict[str, Any]:
        return {key: value for key, value in phases[name].items() if key != "weights"}

    last = spec.last_phase
    treatment = whole["treatment"]
    treated = {key: treatment[key] for key in ("pattern", "rule", "keep_dense") if key in treatment}
    # masks that are an input are no part of what retraining reads
    read = {
        key: treatment[key] for key in ("schedule", "distill") if treatment.get(key) is not None
    }
    chosen = {"treatment": read} if read else {}
    if spec.treatment.schedule:
        chosen = {"treatment": treated | read, "repeat_from": spec.repeat_from}
    parts: dict[Stage, dict[str, Any]] = {
        "dense": {"phases": phases, "repeat_from": spec.repeat_from},
        "prune": {
            "phases": {name: seen(name) for name in (spec.repeat_from, last)},
            "treatment": treated,
        },
        "retrain": {
            "phases": {
                name: phase.model_dump(mode="json", exclude_defaults=True)
                for name, phase in spec.retraining.items()
            },
            **chosen,
        },
        "quantize": {
            "phases": {last: trained(last) if spec.quantize.finetune else seen(last)},
            "quantize": whole.get("quantize", {}),
            "method": INT8_METHOD,
        },
    }
    return {"model": whole["model"], **parts[stage]}


def data_sets(part: dict[str, Any]) -> list[str]:
    """The catalog entries that a stage opens: data sets and published weights, sorted."""
    phases = part["phases"].values()
    obtained = {phase["weights"] for phase in phases if phase.get("weights")}
    return sorted({phase["data"]["name"] for phase in phases} | obtained)


def digest(spec: Spec, stage: Stage, data_digests: dict[str, str]) -> str:
    """Twelve hex digits over what the stage reads, the content of its data sets included."""
    part = stage_slice(spec, stage)
    names = data_sets(part)
    part["data"] = {name: data_digests[name] for name in names}
    text = json.dumps(part, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
