"""The pipeline on a real SLURM: resources, an attempt that fails, a node drained in the middle."""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# fails the first time that a stage prune runs, as a node that is lost does
WRAPPER = """#!/bin/sh
if [ "$1" = prune ] && mkdir failed 2> /dev/null; then echo "a node is lost" >&2; exit 1; fi
exec {python} -m workbench.cli "$@"
"""


def _beside(name: str):  # noqa: ANN202 - a module
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


slurm = _beside("slurm")
pytestmark = pytest.mark.skipif(bool(slurm.absent()), reason=slurm.absent() or "-")


@pytest.fixture
def cluster(tmp_path: Path):
    started = None
    try:
        started = slurm.Slurm(tmp_path / "slurm")
        yield started
    finally:
        slurm.CONFIGURATION.unlink(missing_ok=True)
        if started:
            started.stop()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in ("Snakefile", "pyproject.toml", "experiments", "profiles", "workbench"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(folder)], check=True)
    tiny = (ROOT / "tests/conftest.py").read_text().split('TINY = """')[1].split('"""')[0]
    wanted = "resources: {threads: 1, gpu: 1, mem_mb: 3000, runtime: 7}"
    given = "resources: {threads: 1, gpu: 0, mem_mb: 4000, runtime: 30}"
    assert given in tiny
    (folder / "experiments/scales/smoke.yaml").write_text(tiny.replace(given, wanted))
    (folder / "bin").mkdir()
    (folder / "bin/workbench").write_text(WRAPPER.format(python=sys.executable))
    (folder / "bin/workbench").chmod(0o755)
    return folder


@pytest.mark.timeout(900)
def test_a_study_survives_a_failing_attempt_and_a_drained_node(cluster, repository) -> None:
    python = Path(sys.executable).parent
    path = f"{repository}/bin:{python}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    faster = "--slurm-init-seconds-before-status-checks 3 --seconds-between-status-checks 3"
    run = subprocess.Popen(
        [
            *(sys.executable, "-m", "snakemake", "results/smoke/tables/accuracy.csv"),
            *("--workflow-profile", "profiles/slurm", "--latency-wait", "5"),
            *("--slurm-status-command", "squeue", *faster.split()),  # it keeps no accounts
            *("--config", "networks=resnet50", "studies=accuracy", "preload=False"),
        ],
        cwd=repository,
        env=environment,
        stdout=(repository / "printed").open("w"),
        stderr=subprocess.STDOUT,
    )
    job, node = first_running(cluster, run)
    asked = cluster.tell("scontrol", "show", "job", job)
    cluster.tell("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
    at_work = set(cluster.running())
    assert run.wait(timeout=800) == 0, (repository / "printed").read_text()[-6000:]

    assert "TimeLimit=00:07:00" in asked and "MinMemoryNode=3000M" in asked
    assert "TresPerJob=gres:gpu:1" in asked
    assert (repository / "results/smoke/tables/accuracy.csv").exists()
    records = list((repository / "results/smoke/resnet50").rglob("record.json"))
    assert len(records) == 7  # dense; prune and retrain of 2to4 and dense_again; quantize of two
    assert (repository / "failed").exists()
    ended = cluster.completed()
    states = [job["JobState"] for job in ended]
    assert states.count("FAILED") == 1 and states.count("COMPLETED") == 7
    later = {job["NodeList"] for job in ended if job["JobId"] not in at_work}
    assert later == {"n1", "n2"} - {node}
    assert cluster.nodes("drain") == {node}


def first_running(cluster, run: subprocess.Popen) -> tuple[str, str]:
    """The first running job and its node."""
    end = time.monotonic() + 120
    while not (found := cluster.running()):
        assert run.poll() is None and time.monotonic() < end, "no job came to run"
        time.sleep(0.5)
    return next(iter(found.items()))
