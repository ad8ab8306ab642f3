"""Tracking: MLflow mirrors what the records and curves hold; the only file that imports mlflow."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
# a server that is gone holds a stage up for seconds, where 7 retries would for minutes
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")

import mlflow  # noqa: E402
from mlflow.data.http_dataset_source import HTTPDatasetSource  # noqa: E402
from mlflow.data.meta_dataset import MetaDataset  # noqa: E402
from mlflow.entities import Metric, Param, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402

from workbench.files import refusing, write_text  # noqa: E402
from workbench.provenance import sha256  # noqa: E402
from workbench.record import Cell, Record, read  # noqa: E402
from workbench.resolve import leaves  # noqa: E402

DEFAULT_STORE = "sqlite:///mlflow.db"
FLUSH_SECONDS = 10  # doubled each time that the store does not answer
LOCK = "tracking.lock"  # in a network's folder of results
ATTEMPT = "mlflow_run"  # in a stage's folder while an attempt lasts: its run
Row = dict[str, Any]


class TrackError(RuntimeError):
    """The tracking store cannot be used; the message says what to do."""


def store() -> str:
    """The tracking URI: MLFLOW_TRACKING_URI, or a sqlite file in the current folder."""
    return os.environ.get("MLFLOW_TRACKING_URI", DEFAULT_STORE)


def init(scale: str, out: Path) -> None:
    """Make the store and the scale's experiment, once, before stages use it side by side."""
    with _answering():
        _client()
        experiment = mlflow.set_experiment(f"sparsity/{scale}")
        # opens in the UI's training view
        mlflow.set_experiment_tag("mlflow.experimentKind", "custom_model_development")
    write_text(out, json.dumps({"experiment": experiment.name}) + "\n")


class Mirror:
    """One MLflow run that follows one attempt at a stage."""

    def __init__(self, run_id: str):
        """`run_id` is the open run's."""
        self.run_id = run_id
        self.waiting: list[Metric] = []
        self.flushed, self.pause = time.monotonic(), FLUSH_SECONDS

    def log(self, phase: str, rows: list[Row]) -> None:
        """Add rows of the training curve; they are sent every ten seconds."""
        now = int(time.time() * 1000)
        self.waiting += [
            Metric(f"{phase}/{key}", row[key], now, row["step"])
            for row in rows
            for key in row
            if key not in ("phase", "step")
        ]
        if time.monotonic() - self.flushed > self.pause:
            self.flush()

    def finish(self, record: Record, path: Path) -> None:
        """Send what the record holds; the run counts as whole only if the curve was sent too."""
        self.flush()
        if not self.waiting:
            with _reported():
                send(record, path)

    def flush(self) -> None:
        """Send what waits; a store that fails now is reported, and `workbench track` mends it."""
        self.pause *= 2
        with _reported():
            while self.waiting:
                _client().log_batch(self.run_id, metrics=self.waiting[:1000])
                del self.waiting[:1000]
            self.pause = FLUSH_SECONDS
        self.flushed = time.monotonic()


@contextmanager
def following(cell: Cell, task: str, digest: str, lock: Path):  # noqa: ANN201 - a Mirror
    """A run for one attempt at a stage, nested under its network's, with system metrics.

    `lock` is a file by which stages of one network agree on who makes the network's run.
    """
    attempt = lock.parents[2] / cell.folder / ATTEMPT
    mirror = Mirror(_started(cell, task, digest, lock, attempt))
    try:
        yield mirror
    except BaseException:
        with _reported():
            mlflow.end_run("FAILED")
        attempt.unlink(missing_ok=True)
        raise
    mirror.flush()
    with _reported():
        mlflow.end_run()
    attempt.unlink(missing_ok=True)


def _started(cell: Cell, task: str, digest: str, lock: Path, attempt: Path) -> str:
    """The id of a new run; that of an attempt which was killed is ended as such."""
    with _answering():
        client = _client()
        experiment = client.get_experiment_by_name(f"sparsity/{cell.scale}")
        if attempt.exists() and _is_known(client, attempt.read_text()):
            client.set_terminated(attempt.read_text(), "KILLED")
        parent = experiment and _parent(client, experiment.experiment_id, cell.network, lock)
    if experiment is None:
        raise TrackError(
            f"the MLflow store {store()} has no experiment sparsity/{cell.scale}; run `workbench "
            f"track-init --scale {cell.scale}`, or give --no-track and mirror the records later "
            "with `workbench track`"
        )
    run = mlflow.start_run(
        experiment_id=experiment.experiment_id,
        run_name=_name(cell),
        parent_run_id=parent,
        tags=_tags(cell, task, digest),
        log_system_metrics=True,
    )
    write_text(attempt, run.info.run_id)
    return run.info.run_id


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        raise TrackError(
            f"the MLflow store {store()} does not answer as it should "
            f"({' '.join(str(error).split())[:200]}); mend it, or give --no-track and mirror the "
            "records later with `workbench track`"
        ) from error


@contextmanager
def _reported() -> Iterator[None]:
    # the files are the truth: a store that fails after the start costs no result
    try:
        yield
    except (MlflowException, OSError) as error:  # OSError: an artifact that cannot be copied
        why = " ".join(str(error).split())[:300]
        print(f"mlflow: {why}; mend the mirror afterwards with `workbench track`", flush=True)


def send(record: Record, path: Path, curve: list[Row] | None = None) -> None:
    """Send a record's metrics, parameters, data sets and files to the active run."""
    client, run_id = _client(), mlflow.active_run().info.run_id
    now = int(time.time() * 1000)
    metrics = [Metric(f"eval/{name}", value, now, 0) for name, value in record.metrics.items()]
    metrics += [
        Metric(f"{row['phase']}/{key}", row[key], now, row["step"])
        for row in curve or []
        for key in row
        if key not in ("phase", "step")
    ]
    params = [Param(key, str(value)[:500]) for key, value in leaves(record.spec)]
    tags = [
        RunTag("git", str(record.provenance["git"]["commit"])),
        RunTag("device", record.provenance["versions"]["device"]),
        RunTag("mask_digest", record.mask_digest),
        RunTag("record_path", str(path)),
    ]
    for start in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[start : start + 1000])
    for start in range(0, len(params), 100):
        client.log_batch(run_id, params=params[start : start + 100])
    client.log_batch(run_id, tags=tags)
    for name, sha in record.data.items():
        source = HTTPDatasetSource(f"catalog:{name}")
        mlflow.log_input(MetaDataset(source, name=name, digest=sha[:32]))
    for file in (path, path.parent / "curve.jsonl"):
        if file.exists():
            client.log_artifact(run_id, str(file))
    client.set_tag(run_id, "record_sha256", sha256(path))  # last: it says that all is there


def mirror_records(paths: list[Path]) -> int:
    """Mirror the records whose runs are absent or unfinished in this store; how many those were."""
    with _answering():
        return sum(_mirrored(_client(), path) for path in paths)


def _mirrored(client: mlflow.MlflowClient, path: Path) -> bool:
    """Whether a record had to be mirrored."""
    record = read(path)
    experiment = mlflow.set_experiment(f"sparsity/{record.cell.scale}")
    tagged = f"tags.record_sha256 = '{sha256(path)}'"
    if client.search_runs([experiment.experiment_id], tagged):
        return False
    curve = _curve(path.parent / "curve.jsonl")
    if record.mlflow_run_id and _is_known(client, record.mlflow_run_id):
        with mlflow.start_run(run_id=record.mlflow_run_id):
            send(record, path, _unsent(client, record.mlflow_run_id, curve))
    else:
        parent = _parent(
            client, experiment.experiment_id, record.cell.network, path.parents[3] / LOCK
        )
        tags = _tags(record.cell, "", record.spec_digest) | {"mlflow.parentRunId": parent}
        with mlflow.start_run(
            experiment_id=experiment.experiment_id, run_name=_name(record.cell), tags=tags
        ):
            send(record, path, curve)
    return True


def _is_known(client: mlflow.MlflowClient, run_id: str) -> bool:
    """Whether a run is in this store, and nobody deleted it."""
    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def _unsent(client: mlflow.MlflowClient, run_id: str, curve: list[Row]) -> list[Row]:
    """The rows of the curve with those values that the run does not have yet."""
    sent = {
        (key, metric.step)
        for key in {f"{row['phase']}/{name}" for row in curve for name in row}
        for metric in client.get_metric_history(run_id, key)
    }
    kept = ("phase", "step")
    return [
        {
            n: v
            for n, v in row.items()
            if n in kept or (f"{row['phase']}/{n}", row["step"]) not in sent
        }
        for row in curve
    ]


def _curve(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _client() -> mlflow.MlflowClient:
    mlflow.set_tracking_uri(store())
    return mlflow.MlflowClient()


def _parent(client: mlflow.MlflowClient, experiment_id: str, network: str, lock: Path) -> str:
    with refusing(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        opened = lock.open("w")
    with opened as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = client.search_runs(
            [experiment_id], f"tags.role = 'network' and tags.network = '{network}'"
        )
        if found:
            return found[0].info.run_id
        tags = {"network": network, "role": "network"}
        run = client.create_run(experiment_id, run_name=network, tags=tags)
        client.set_terminated(run.info.run_id)
        return run.info.run_id


def _name(cell: Cell) -> str:
    return f"{cell.network}/{cell.treatment}/{cell.stage}/seed{cell.seed}"


def _tags(cell: Cell, task: str, digest: str) -> dict[str, str]:
    named = {name: str(value) for name, value in cell.model_dump().items()}
    return named | {"task": task, "spec_digest": digest, "role": "stage"}
