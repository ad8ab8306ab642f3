"""The Kubernetes job, as far as it can be tried without a cluster: which pod runs which network."""

import os
import subprocess
from pathlib import Path

import yaml

from workbench import cli, dag, resolve

ROOT = Path(__file__).resolve().parents[2]


def test_every_index_of_the_job_is_a_network_of_the_talk() -> None:
    job = yaml.safe_load((ROOT / "profiles/kubernetes/job.yaml").read_text())["spec"]
    container = job["template"]["spec"]["containers"][0]
    talk = [n for n in resolve.names("networks") if dag.spec_of(n, "2to4", "full").talk]
    assert job["completions"] == len(talk)
    command = [*container["command"], container["args"][0].replace("workbench", "echo", 1)]
    found = []
    for index in range(job["completions"]):
        environment = os.environ | {"JOB_COMPLETION_INDEX": str(index), "LC_ALL": "C"}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        given = cli.parser().parse_args(done.stdout.split())  # the options exist
        found.append(given.network)
    assert sorted(found) == sorted(talk)


def test_the_job_asks_for_what_the_scale_says() -> None:
    job = yaml.safe_load((ROOT / "profiles/kubernetes/job.yaml").read_text())["spec"]
    asked = job["template"]["spec"]["containers"][0]["resources"]
    limits = resolve.read_yaml(resolve.known("scales", "lite"))["resources"]
    assert asked["requests"]["cpu"] == limits["threads"]
    assert asked["limits"]["nvidia.com/gpu"] == limits["gpu"]
    assert asked["limits"]["memory"] == f"{limits['mem_mb'] // 1000}Gi"
