"""A real MLflow server: jobs that write at once, a server killed, the mirror mended."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from workbench.record import read
from workbench.track import mlflow

ROOT = Path(__file__).resolve().parents[2]
NETWORKS = ("resnet50", "transformer_xl", "fairseq_transformer", "vgg16")
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]
BACKENDS = ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)]


class Server:
    """`mlflow server` on a port of its own, over a store that outlives it."""

    def __init__(self, folder: Path, store: str) -> None:
        """Start it and wait until it answers."""
        self.folder, self.store = folder, store
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Start it, again if it was killed."""
        command = ["-m", "mlflow", "server", "--backend-store-uri", self.store, "--workers", "2"]
        where = ["--artifacts-destination", str(self.folder / "artifacts"), "--host", "127.0.0.1"]
        self.process = subprocess.Popen(
            [sys.executable, *command, *where, "--port", str(self.port)],
            cwd=self.folder,
            env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=(self.folder / "server.log").open("a"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        end = time.monotonic() + 120
        while not self.answers():
            assert self.process.poll() is None and time.monotonic() < end, "no server came up"
            time.sleep(0.5)

    def answers(self) -> bool:
        """Whether somebody answers at its port."""
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{self.uri}/health", timeout=5).status == 200
        return False

    def kill(self) -> None:
        """Kill it and its workers, as a machine that is switched off."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """The address of a PostgreSQL of its own, over a Unix socket."""
    if not POSTGRES or importlib.util.find_spec("psycopg2") is None:
        pytest.skip("PostgreSQL or psycopg2 is not installed")
    if os.geteuid() != 0:
        pytest.skip("starting PostgreSQL as a user of its own takes root")
    home = folder / "postgres"
    home.mkdir()
    shutil.chown(home, "postgres")
    for above in folder.parents:
        above.chmod(above.stat().st_mode | 0o011)
    folder.chmod(0o755)
    does = ["runuser", "-u", "postgres", "--"]
    made = [f"{POSTGRES[0]}/initdb", "--auth=trust", "--username=mlflow", "-D", f"{home}/data"]
    subprocess.run([*does, *made], check=True, capture_output=True)
    options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={home}"]
    process = subprocess.Popen(
        [*does, f"{POSTGRES[0]}/postgres", "-D", f"{home}/data", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 60
    while subprocess.run(
        [f"{POSTGRES[0]}/pg_isready", "-h", home], capture_output=True, check=False
    ).returncode:
        assert time.monotonic() < end, "PostgreSQL did not come up"
        time.sleep(0.2)
    try:
        yield f"postgresql+psycopg2://mlflow@/postgres?host={home}"
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module", params=BACKENDS)
def server(request, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    sqlite = contextlib.nullcontext(f"sqlite:///{folder}/store.db")
    with sqlite if request.param == "sqlite" else postgres(folder) as store:
        started = Server(folder, store)
        yield started
        started.kill()


@pytest.fixture(scope="module")
def repository(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the repository, and a process beside it that has the libraries loaded."""
    folder = tmp_path_factory.mktemp("tracked") / "repository"
    folder.mkdir()
    for name in ("pyproject.toml", "experiments", "workbench"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(folder)], check=True)
    tiny = (ROOT / "tests/conftest.py").read_text().split('TINY = """')[1].split('"""')[0]
    assert "length: 25it, batch: 4, precision: fp32}\n    eval: {batch: 2, limit: 600" in tiny
    (folder / "experiments/scales/smoke.yaml").write_text(tiny)
    loaded = subprocess.Popen(
        [sys.executable, "-m", "workbench.cli", "serve", str(os.getpid())],
        cwd=folder,
        env=environment(folder, server),
    )
    assert begun(folder, server, "track-init").wait(timeout=120) == 0
    yield folder
    loaded.kill()
    loaded.wait()


def environment(folder: Path, server: Server) -> dict[str, str]:
    ours = {
        "PYTHONPATH": str(folder),
        "OMP_NUM_THREADS": "1",
        "MLFLOW_TRACKING_URI": server.uri,
        "WORKBENCH_SERVER": "s.sock",
    }
    return os.environ | ours


def begun(folder: Path, server: Server, *arguments: str) -> subprocess.Popen:
    """A command of the workbench that writes to the server."""
    return subprocess.Popen(
        [sys.executable, "-m", "workbench.cli", *arguments],
        cwd=folder,
        env=environment(folder, server),
        stdout=(folder / f"{'-'.join(arguments)}.log").open("w"),
        stderr=subprocess.STDOUT,
    )


def is_whole(server: Server, path: Path) -> None:
    """Fail unless the run of a record has all of it: numbers, curve, files, and its end."""
    client, record = mlflow.MlflowClient(server.uri), read(path)
    run = client.get_run(record.mlflow_run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"]
    for name, value in record.metrics.items():
        assert run.data.metrics[f"eval/{name}"] == pytest.approx(value)
    rows = [json.loads(line) for line in path.with_name("curve.jsonl").read_text().splitlines()]
    for key in ("loss", "lr"):
        history = client.get_metric_history(record.mlflow_run_id, f"{rows[0]['phase']}/{key}")
        found = sorted((metric.step, metric.value) for metric in history)
        assert found == [(row["step"], pytest.approx(row[key])) for row in rows]
    files = {file.path for file in client.list_artifacts(record.mlflow_run_id)}
    assert files == {"record.json", "curve.jsonl"}


def record_of(folder: Path, network: str) -> Path:
    return folder / "results/smoke" / network / "seed0/dense/dense/record.json"


@pytest.mark.timeout(1200)
def test_jobs_that_write_at_once_lose_nothing(server: Server, repository: Path) -> None:
    jobs = [begun(repository, server, "dense", network) for network in NETWORKS]
    assert [job.wait(timeout=600) for job in jobs] == [0] * len(jobs)
    for network in NETWORKS:
        is_whole(server, record_of(repository, network))
    client = mlflow.MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("sparsity/smoke").experiment_id
    roles = [run.data.tags["role"] for run in client.search_runs([experiment])]
    assert sorted(roles) == ["network"] * len(NETWORKS) + ["stage"] * len(NETWORKS)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_server_killed_in_the_middle_costs_nothing(server: Server, repository: Path) -> None:
    scale = repository / "experiments/scales/smoke.yaml"
    scale.write_text(scale.read_text().replace("length: 25it", "length: 400it"))
    path = record_of(repository, "gnmt")
    job = begun(repository, server, "dense", "gnmt")
    end = time.monotonic() + 120
    while not (path.parent / "mlflow_run").exists():
        assert job.poll() is None and time.monotonic() < end, "the stage did not begin"
        time.sleep(0.2)
    server.kill()
    assert job.wait(timeout=600) == 0, (repository / "dense-gnmt.log").read_text()
    assert "mend the mirror afterwards" in (repository / "dense-gnmt.log").read_text()
    identity = read(path).mlflow_run_id
    server.start()
    assert mlflow.MlflowClient(server.uri).get_run(identity).info.status == "RUNNING"
    assert begun(repository, server, "track").wait(timeout=300) == 0
    is_whole(server, path)
    assert "0 of " in told(repository, server)


def told(repository: Path, server: Server) -> str:
    """What a second `workbench track` says."""
    assert begun(repository, server, "track").wait(timeout=300) == 0
    return (repository / "track.log").read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_attempt_is_ended_by_the_next(server: Server, repository: Path) -> None:
    path = record_of(repository, "levenshtein_transformer")
    job = begun(repository, server, "dense", "levenshtein_transformer")
    attempt = path.parent / "mlflow_run"
    end = time.monotonic() + 120
    while not attempt.exists():
        assert job.poll() is None and time.monotonic() < end, "the stage did not begin"
        time.sleep(0.1)
    killed = attempt.read_text()
    job.kill()
    job.wait()
    assert begun(repository, server, "dense", "levenshtein_transformer").wait(timeout=300) == 0
    client = mlflow.MlflowClient(server.uri)
    assert client.get_run(killed).info.status == "KILLED"
    is_whole(server, path)
    assert not attempt.exists()


def test_a_server_that_is_away_at_the_start_is_named(repository: Path, server: Server) -> None:
    away = os.environ | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "PYTHONPATH": str(repository)}
    done = subprocess.run(
        [sys.executable, "-m", "workbench.cli", "dense", "vgg19"],
        cwd=repository,
        env=away,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "the MLflow store http://127.0.0.1:9 does not answer as it should" in done.stderr
