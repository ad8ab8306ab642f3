"""Everything the Snakefile asks: which cells a study needs, what they depend on, their digests."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from workbench import resolve
from workbench.record import Cell
from workbench.sections import Stage
from workbench.spec import Column, Spec, digest

RESULTS = "results"
SERVER = ".snakemake/workbench.sock"  # relative: the path of a socket has at most 107 bytes
OUTPUTS: dict[str, tuple[str, ...]] = {
    "dense": ("prune_point.safetensors", "final.safetensors", "curve.jsonl"),
    "prune": ("pruned.safetensors", "masks.safetensors"),
    "retrain": ("final.safetensors", "masks.safetensors", "curve.jsonl"),
    "quantize": ("int8.safetensors",),
}


LIMITS = ("threads", "gpu", "mem_mb", "runtime")


class ConfigError(ValueError):
    """A pipeline configuration that names something unknown."""


@cache
def spec_of(network: str, treatment: str, scale: str) -> Spec:
    """The resolved spec, read once per process."""
    return resolve.resolve(network, treatment, scale).spec


@cache
def stage_digest(network: str, treatment: str, scale: str, stage: Stage) -> str:
    """The digest of what a stage reads now."""
    return digest(spec_of(network, treatment, scale), stage, _data_digests())


def stage_params(stage: Stage) -> Callable[[Any], str]:
    """For a rule's `params`: the digest of the stage for a job's wildcards."""

    def of(wildcards: Any) -> str:
        treatment = getattr(wildcards, "treatment", "dense")
        return stage_digest(wildcards.network, treatment, wildcards.scale, stage)

    return of


def upstream(cell: Cell) -> dict[str, Path]:
    """The files a stage starts from, relative to the results folder, by their role."""
    if cell.stage == "dense":
        return {}
    if cell.stage == "prune":
        dense, spec = _at(cell, "dense", "dense"), spec_of(cell.network, cell.treatment, cell.scale)
        later = spec.repeat_from != spec.last_phase  # then the final network is judged pruned too
        final = {"final": dense / "final.safetensors"} if later else {}
        return {"weights": dense / "prune_point.safetensors", **final}
    if cell.stage == "retrain":
        spec = spec_of(cell.network, cell.treatment, cell.scale)
        dense = _at(cell, "dense", "dense")
        teacher = {"teacher": dense / "final.safetensors"} if spec.treatment.distill else {}
        if spec.treatment.schedule:
            start = {"weights": dense / "prune_point.safetensors"}
            return {} if spec.from_scratch else start | teacher
        pruned = _at(cell, cell.treatment, "prune")
        return {
            "weights": pruned / "pruned.safetensors",
            "masks": pruned / "masks.safetensors",
            **teacher,
        }
    if not spec_of(cell.network, cell.treatment, cell.scale).treatment.retrain:
        return {"weights": _at(cell, "dense", "dense") / "final.safetensors"}
    retrained = _at(cell, cell.treatment, "retrain")
    return {
        "weights": retrained / "final.safetensors",
        "masks": retrained / "masks.safetensors",
    }


def chain(cell: Cell) -> list[Cell]:
    """The stages of a cell from its first to itself, in the order in which they run."""
    if cell.stage == "dense":
        return [cell.model_copy(update={"treatment": "dense"})]
    before = {"prune": "dense", "retrain": "prune", "quantize": "retrain"}[cell.stage]
    spec = spec_of(cell.network, cell.treatment, cell.scale)
    if cell.stage == "retrain" and spec.from_scratch:
        return [cell]
    if not spec.treatment.retrain or (cell.stage == "retrain" and spec.treatment.schedule):
        before = "dense"
    return [*chain(cell.model_copy(update={"stage": before})), cell]


def stage_inputs(stage: Stage) -> Callable[[Any], dict[str, str]]:
    """For a rule's `input`: the files a stage starts from, for a job's wildcards."""

    def of(wildcards: Any) -> dict[str, str]:
        cell = Cell(
            scale=wildcards.scale,
            network=wildcards.network,
            treatment=wildcards.treatment,
            stage=stage,
            seed=int(wildcards.seed),
        )
        found = {role: f"{RESULTS}/{path}" for role, path in upstream(cell).items()}
        # what starts from nothing starts after the store is made, as the stage dense does
        return found or {"tracking": f"{RESULTS}/{cell.scale}/tracking.json"}

    return of


def outputs(stage: Stage) -> list[str]:
    """For a rule's `output`: the files of a stage beside its record."""
    treatment = "dense" if stage == "dense" else "{treatment}"
    folder = f"{RESULTS}/{{scale}}/{{network}}/seed{{seed}}/{treatment}/{stage}"
    return [f"{folder}/{name}" for name in OUTPUTS[stage]]


def resource(name: str) -> Callable[[Any], int]:
    """For a rule's `threads` and `resources`: what a stage needs at the scale of a job."""

    def of(wildcards: Any) -> int:
        return limits(wildcards.scale)[name]

    return of


def networks(config: Mapping[str, Any]) -> list[str]:
    """The networks a run is about, all if none is named; `networks=a,b` arrives as one text."""
    chosen = _listed(config["networks"]) or resolve.names("networks")
    for name in chosen:
        resolve.known("networks", name)
    return chosen


def seeds(config: Mapping[str, Any], scale: str) -> list[int]:
    """The seeds a run is about: the configured ones, or the scale's."""
    given = config.get("seeds")
    if given in (None, ""):
        given = resolve.read_yaml(resolve.known("scales", scale)).get("seeds")
    try:
        return [int(seed) for seed in _listed(given)]
    except ValueError as error:
        raise ConfigError(f"seeds={given!r}: seeds are whole numbers, as in seeds=0,1,2") from error


def studies(config: Mapping[str, Any]) -> list[str]:
    """The studies whose tables a run makes: the configured ones that are about its networks."""
    chosen = networks(config)
    return [name for name in _listed(config["studies"]) if study_networks(name, chosen)]


def study_cells(study: str, scale: str, chosen: list[str], repeats: list[int]) -> list[Cell]:
    """The cells whose records make the table of a study."""
    plan = resolve.study(study)
    rows = [(method.network, method) for method in plan.methods.values()]
    rows += [(network, column) for network in chosen for column in plan.columns.values()]
    about = study_networks(study, chosen)
    return [
        cell_of(scale, network, column, seed)
        for wanted in about
        for seed in repeats
        for network, column in rows
        if network == wanted
    ]


def cell_of(scale: str, network: str, column: Column, seed: int) -> Cell:
    """The cell of a column of a study."""
    treatment, stage = column.treatment, column.stage
    return Cell(scale=scale, network=network, treatment=treatment, stage=stage, seed=seed)


def study_networks(study: str, chosen: list[str]) -> list[str]:
    """Those of the chosen networks that a study is about: the named in its order, or the talk's."""
    plan = resolve.study(study)
    about = plan.networks or list(dict.fromkeys(m.network for m in plan.methods.values()))
    if about:
        return [network for network in about if network in chosen]
    return [network for network in chosen if spec_of(network, "2to4", "full").talk]


def study_seeds(config: Mapping[str, Any]) -> Callable[[Any], str]:
    """For the table rule's `params`: the seeds as one text."""

    def of(wildcards: Any) -> str:
        return ",".join(str(seed) for seed in seeds(config, wildcards.scale))

    return of


def study_params(wildcards: Any) -> str:
    """For the table rule's `params`: what the study asks for, so that editing it remakes it."""
    return json.dumps(resolve.study(wildcards.study).model_dump(), sort_keys=True)


def bench_params(wildcards: Any) -> str:
    """For the bench rule's `params`: the shapes, if it has some, so that an edit measures them."""
    path = resolve.EXPERIMENTS / "bench" / f"{wildcards.bench}.csv"
    return path.read_text() if path.exists() else ""


def page_studies(config: Mapping[str, Any]) -> Callable[[Any], str]:
    """For the page rule: the study that a page is named after; `report` shows the configured."""

    def of(wildcards: Any) -> str:
        return ",".join(studies(config)) if wildcards.page == "report" else wildcards.page

    return of


def page_tables(config: Mapping[str, Any]) -> Callable[[Any], list[str]]:
    """For the page rule's `input`: the tables that the page shows."""

    def of(wildcards: Any) -> list[str]:
        shown = _listed(page_studies(config)(wildcards))
        return [f"{RESULTS}/{wildcards.scale}/tables/{study}.csv" for study in shown]

    return of


def record_path(cell: Cell) -> str:
    """The record of a cell, from the root of the repository."""
    return f"{RESULTS}/{cell.folder}/record.json"


def study_records(config: Mapping[str, Any]) -> Callable[[Any], list[str]]:
    """For the table rule's `input`: the records of the study named by the wildcards."""

    def of(wildcards: Any) -> list[str]:
        repeats = seeds(config, wildcards.scale)
        cells = study_cells(wildcards.study, wildcards.scale, networks(config), repeats)
        return [record_path(cell) for cell in cells]

    return of


def network_records(config: Mapping[str, Any], network: str) -> list[str]:
    """The records that `snakemake NETWORK` makes: those of every configured study."""
    scale = config["scale"]
    return sorted(
        {
            record_path(cell)
            for study in studies(config)
            for cell in study_cells(study, scale, [network], seeds(config, scale))
        }
    )


@cache
def limits(scale: str) -> dict[str, int]:
    """What a stage needs at a scale: threads, gpu, mem_mb, runtime in minutes."""
    given = resolve.read_yaml(resolve.known("scales", scale)).get("resources", {})
    if set(given) != set(LIMITS):
        raise ConfigError(
            f"experiments/scales/{scale}.yaml: resources has {', '.join(given)}; it "
            f"gives each of {', '.join(LIMITS)}"
        )
    return given


@cache
def _data_digests() -> dict[str, str]:
    return resolve.data_digests()


def _at(cell: Cell, treatment: str, stage: str) -> Path:
    return cell.model_copy(update={"treatment": treatment, "stage": stage}).folder


def _listed(value: Any) -> list[str]:
    if isinstance(value, list | tuple):
        return [str(item) for item in value]
    return [part.strip() for part in str(value).split(",") if part.strip()]
