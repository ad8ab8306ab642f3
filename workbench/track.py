"""Tracking: MLflow mirrors what the records and curves hold; the only file that imports mlflow."""

import json
import os
import time
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import mlflow  # noqa: E402
from mlflow.entities import Metric, Param, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402

from workbench.provenance import sha256  # noqa: E402
from workbench.record import Cell, Record, read, write_text  # noqa: E402
from workbench.resolve import leaves  # noqa: E402

DEFAULT_STORE = "sqlite:///mlflow.db"
FLUSH_SECONDS = 10
Row = dict[str, Any]


class TrackError(RuntimeError):
    """The tracking store cannot be used; the message says what to do."""


def store() -> str:
    """The tracking URI: MLFLOW_TRACKING_URI, or a sqlite file in the current folder."""
    return os.environ.get("MLFLOW_TRACKING_URI", DEFAULT_STORE)


def init(scale: str, networks: Iterable[str], out: Path) -> None:
    """Make the store, the scale's experiment and one parent run per network, once each."""
    client = _client()
    experiment = mlflow.set_experiment(f"sparsity/{scale}")
    for network in networks:
        _parent(client, experiment.experiment_id, network)
    told = {"experiment": experiment.name, "networks": sorted(networks)}
    write_text(out, json.dumps(told, indent=1) + "\n")


class Mirror:
    """One MLflow run that follows one attempt at a stage."""

    def __init__(self, run_id: str):
        """`run_id` is the open run's."""
        self.run_id = run_id
        self.waiting: list[Metric] = []
        self.flushed = time.monotonic()

    def log(self, phase: str, rows: list[Row]) -> None:
        """Add rows of the training curve; they are sent every ten seconds."""
        now = int(time.time() * 1000)
        self.waiting += [
            Metric(f"{phase}/{key}", row[key], now, row["step"])
            for row in rows
            for key in ("loss", "lr")
        ]
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send what waits; a store that fails now is reported, and `workbench track` mends it."""
        try:
            for start in range(0, len(self.waiting), 1000):
                _client().log_batch(self.run_id, metrics=self.waiting[start : start + 1000])
            self.waiting.clear()
        except MlflowException as error:
            print(
                f"mlflow: {error}; training goes on, mend the mirror afterwards with "
                "`workbench track`",
                flush=True,
            )
        self.flushed = time.monotonic()


@contextmanager
def following(cell: Cell, task: str, digest: str):  # noqa: ANN201 - a Mirror
    """A run for one attempt at a stage, nested under its network's, with system metrics."""
    client = _client()
    experiment = client.get_experiment_by_name(f"sparsity/{cell.scale}")
    parent = _parents(client, experiment.experiment_id).get(cell.network) if experiment else None
    if parent is None:
        raise TrackError(
            f"the MLflow store {store()} has no run for {cell.network} at scale "
            f"{cell.scale}; run `workbench track-init --scale {cell.scale}`, or give "
            "--no-track and mirror the records later with `workbench track`"
        )
    with mlflow.start_run(
        experiment_id=experiment.experiment_id,
        run_name=_name(cell),
        parent_run_id=parent,
        tags=_tags(cell, task, digest),
        log_system_metrics=True,
    ) as run:
        mirror = Mirror(run.info.run_id)
        yield mirror
        mirror.flush()


def finish(record: Record, path: Path, run_id: str, curve: list[Row] | None = None) -> None:
    """Send a record's metrics, parameters, data sets and files to a run."""
    client = _client()
    now = int(time.time() * 1000)
    metrics = [Metric(f"eval/{name}", value, now, 0) for name, value in record.metrics.items()]
    metrics += [
        Metric(f"{row['phase']}/{key}", row[key], now, row["step"])
        for row in curve or []
        for key in ("loss", "lr")
    ]
    params = [Param(key, str(value)[:500]) for key, value in leaves(record.spec)]
    tags = [
        RunTag("git", str(record.provenance["git"]["commit"])),
        RunTag("device", record.provenance["versions"]["device"]),
        RunTag("mask_digest", record.mask_digest),
        RunTag("record_path", str(path)),
        RunTag("record_sha256", sha256(path)),
    ]
    for start in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[start : start + 1000])
    for start in range(0, len(params), 100):
        client.log_batch(run_id, params=params[start : start + 100])
    client.log_batch(run_id, tags=tags)
    for name, sha in record.data.items():
        data = mlflow.data.meta_dataset.MetaDataset(
            source=mlflow.data.http_dataset_source.HTTPDatasetSource(f"catalog:{name}"),
            name=name,
            digest=sha[:32],
        )
        client.log_inputs(run_id, datasets=[mlflow.entities.DatasetInput(data._to_mlflow_entity())])
    for file in (path, path.parent / "curve.jsonl"):
        if file.exists():
            client.log_artifact(run_id, str(file))


def mirror_records(paths: list[Path]) -> int:
    """Mirror the records whose runs are absent or unfinished in this store; how many those were."""
    client, mirrored = _client(), 0
    for path in paths:
        record = read(path)
        experiment = mlflow.set_experiment(f"sparsity/{record.cell.scale}")
        tagged = f"tags.record_sha256 = '{sha256(path)}'"
        if client.search_runs([experiment.experiment_id], tagged):
            continue
        parent = _parent(client, experiment.experiment_id, record.cell.network)
        tags = _tags(record.cell, "", record.spec_digest) | {"mlflow.parentRunId": parent}
        run = client.create_run(experiment.experiment_id, run_name=_name(record.cell), tags=tags)
        finish(record, path, run.info.run_id, _curve(path.parent / "curve.jsonl"))
        client.set_terminated(run.info.run_id)
        mirrored += 1
    return mirrored


def _curve(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _client() -> mlflow.MlflowClient:
    mlflow.set_tracking_uri(store())
    return mlflow.MlflowClient()


def _parents(client: mlflow.MlflowClient, experiment_id: str) -> dict[str, str]:
    runs = client.search_runs([experiment_id], "tags.role = 'network'", max_results=1000)
    return {run.data.tags["network"]: run.info.run_id for run in runs}


def _parent(client: mlflow.MlflowClient, experiment_id: str, network: str) -> str:
    known = _parents(client, experiment_id)
    if network not in known:
        tags = {"network": network, "role": "network"}
        run = client.create_run(experiment_id, run_name=network, tags=tags)
        client.set_terminated(run.info.run_id)
        known[network] = run.info.run_id
    return known[network]


def _name(cell: Cell) -> str:
    return f"{cell.network}/{cell.treatment}/{cell.stage}/seed{cell.seed}"


def _tags(cell: Cell, task: str, digest: str) -> dict[str, str]:
    named = {name: str(value) for name, value in cell.model_dump().items()}
    return named | {"task": task, "spec_digest": digest, "role": "stage"}
