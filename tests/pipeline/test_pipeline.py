"""The Snakefile end to end on a copy of the repository whose smoke scale is tiny."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("Snakefile", "pyproject.toml", "experiments", "profiles", "workbench", "README.md")
SLOWER = {"length: 40it": "length: 800it", "checkpoint_seconds: 0.001": "checkpoint_seconds: 0.2"}


@pytest.fixture(scope="module")
def tiny() -> str:
    """The tiny smoke scale of tests/conftest.py."""
    text = (ROOT / "tests/conftest.py").read_text()
    return text.split('TINY = """')[1].split('"""')[0]


CONFIG = ("--config", "networks=resnet50,bert_large", "studies=accuracy")


def copy_of_repository(folder: Path, scale: str) -> Path:
    folder.mkdir()
    for name in COPIED:
        subprocess.run(["cp", "-r", str(ROOT / name), str(folder)], check=True)
    (folder / "experiments/scales/smoke.yaml").write_text(scale)
    return folder


def environment(folder: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ours = {
        "PATH": path,
        "PYTHONPATH": str(folder),
        "OMP_NUM_THREADS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "XDG_CACHE_HOME": str(folder / ".cache"),
    }
    return os.environ | ours


def snakemake(folder: Path, *arguments: str) -> str:
    """What Snakemake printed; a failure shows it."""
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", *arguments],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed[-6000:]
    return printed


def planned(printed: str) -> dict[str, int]:
    """The rules of a dry run with their numbers of jobs."""
    if "Nothing to be done" in printed:
        return {}
    table = printed.split("Job stats:")[1].split("Reasons:")[0].splitlines()
    rows = [line.split() for line in table if len(line.split()) == 2]
    return {rule: int(count) for rule, count in rows if count.isdigit()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: str) -> Path:
    folder = copy_of_repository(tmp_path_factory.mktemp("pipeline") / "repository", tiny)
    snakemake(folder, *CONFIG)
    return folder


def test_one_command_makes_records_tables_and_the_page(finished: Path) -> None:
    records = sorted((finished / "results/smoke").glob("*/seed0/*/*/record.json"))
    assert len(records) == 14  # dense; prune, retrain, quantize; prune, retrain; quantize: x 2
    table = (finished / "results/smoke/tables/accuracy.csv").read_text()
    assert "resnet50" in table and "bert_large" in table
    assert (
        "plumbing check, not a result"
        in (finished / "results/smoke/tables/accuracy.md").read_text()
    )
    assert (finished / "results/smoke/report.html").stat().st_size > 20_000


def test_every_stage_is_mirrored_under_its_network(finished: Path) -> None:
    import sqlite3

    runs = sqlite3.connect(finished / "mlflow.db")
    tag = "select value from tags where key='{}' and run_uuid=?"
    for path in (finished / "results/smoke").glob("*/seed0/*/*/record.json"):
        record = json.loads(path.read_text())
        identity = (record["mlflow_run_id"],)
        assert identity[0], path
        parent = runs.execute(tag.format("mlflow.parentRunId"), identity).fetchone()
        network = runs.execute(tag.format("network"), parent).fetchone()
        assert network == (record["cell"]["network"],)
        metric = f"eval/{record['primary']}"
        found = runs.execute(
            "select value from metrics where key=? and run_uuid=?", (metric, *identity)
        ).fetchall()
        assert [record["metrics"][record["primary"]]] == pytest.approx([v for (v,) in found])
        status = runs.execute("select status from runs where run_uuid=?", identity).fetchone()
        assert status == ("FINISHED",)


def test_a_second_run_has_nothing_to_do_and_takes_seconds(finished: Path) -> None:
    start = time.monotonic()
    assert "Nothing to be done" in snakemake(finished, *CONFIG)
    assert time.monotonic() - start < 20  # the goal is 10 s on an idle machine


def test_snakemakes_own_report_holds_tables_and_captions(finished: Path) -> None:
    snakemake(finished, "--report", "workflow.html", *CONFIG)
    text = (finished / "workflow.html").read_text()
    assert "accuracy.csv" in text and "made from the records of its cells alone" in text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_shows_the_page(finished: Path) -> None:
    page = finished / "results/smoke/report.html"
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    shown = subprocess.run(
        [
            "chromium",
            *flags.split(),
            f"--user-data-dir={finished}/.chromium",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    for text in ("plumbing check, not a result", "ResNet-50", "BERT-Large", "Density per layer"):
        assert text in shown


def test_touching_a_file_reruns_nothing(finished: Path) -> None:
    for name in ("networks/resnet50.yaml", "scales/smoke.yaml", "treatments/2to4.yaml"):
        (finished / "experiments" / name).touch()
    assert planned(snakemake(finished, "--dry-run", *CONFIG)) == {}


def test_changing_quantize_reruns_quantize_and_the_tables(finished: Path) -> None:
    path = finished / "experiments/networks/resnet50.yaml"
    text = path.read_text()
    path.write_text(text + "quantize: {calibrator: max}\n")
    jobs = planned(snakemake(finished, "--dry-run", *CONFIG))
    path.write_text(text)
    assert {rule for rule, count in jobs.items() if count} == {
        "all",
        "page",
        "quantize",
        "table",
        "total",
    }
    assert jobs["quantize"] == 2


def test_changing_one_network_leaves_the_others_alone(finished: Path) -> None:
    path = finished / "experiments/networks/resnet50.yaml"
    text = path.read_text()
    path.write_text(text.replace("counts: [3, 4, 6, 3]", "counts: [3, 4, 6, 4]"))
    jobs = planned(snakemake(finished, "--dry-run", *CONFIG))
    path.write_text(text)
    assert jobs["dense"] == 1 and jobs["retrain"] == 2


def test_there_is_a_target_per_network_and_per_table(finished: Path) -> None:
    assert planned(snakemake(finished, "--dry-run", "transformer_xl"))["dense"] == 1
    lite = ("results/lite/tables/accuracy.csv", "--config", "networks=resnet50", "seeds=5,6")
    assert planned(snakemake(finished, "--dry-run", *lite))["dense"] == 2


def test_a_wrong_configuration_stops_at_once(finished: Path) -> None:
    for wrong, message in (
        (("scale=huge",), "huge"),
        (("networks=resnet5O",), "did you mean 'resnet50'"),
        (("seeds=one",), "seeds are whole numbers"),
        (("sceds=1",), "sceds"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", "--dry-run", "--config", *wrong],
            cwd=finished,
            env=environment(finished),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode != 0
        assert message in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kill_at_five_random_moments_changes_no_result(tmp_path: Path, tiny: str) -> None:
    for old, new in SLOWER.items():
        assert old in tiny
        tiny = tiny.replace(old, new)
    target = "results/smoke/resnet50/seed0/2to4/quantize/record.json"
    whole = copy_of_repository(tmp_path / "whole", tiny)
    snakemake(whole, target)
    parts = copy_of_repository(tmp_path / "parts", tiny)
    moments = random.Random(0)
    kills = 0
    while kills < 5:
        run = subprocess.Popen(
            [sys.executable, "-m", "snakemake", target],
            cwd=parts,
            env=environment(parts),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )
        kills += killed_once(run, parts, moments.uniform(1, 8))
        if run.wait() == 0:
            break
    assert kills == 5, "the stages were over before five kills; lengthen them in SLOWER"
    snakemake(parts, target)
    for path in sorted((whole / "results/smoke/resnet50").rglob("*.safetensors")):
        other = parts / path.relative_to(whole)
        assert path.read_bytes() == other.read_bytes(), other
    for path in sorted((whole / "results/smoke/resnet50").rglob("record.json")):
        mine, other = (
            json.loads((f / path.relative_to(whole)).read_text()) for f in (whole, parts)
        )
        assert mine["metrics"] == other["metrics"]


def killed_once(run: subprocess.Popen, folder: Path, after: float) -> bool:
    """Whether a stage was killed, `after` seconds from when one was first seen running."""
    while run.poll() is None:
        if running_stages(folder):
            time.sleep(after)
            for pid in (found := running_stages(folder)):
                os.kill(pid, signal.SIGKILL)
            if found:
                return True
        time.sleep(0.1)
    return False


def running_stages(folder: Path) -> list[int]:
    """The processes of `workbench STAGE resnet50` that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_text().split("\0")
            here = (process / "cwd").resolve() == folder.resolve()
        except OSError:  # it ended while we looked
            continue
        if here and "resnet50" in command and command[0].endswith("python"):
            found.append(int(process.name))
    return found


@pytest.mark.slow
def test_the_second_of_two_pipelines_in_one_folder_is_refused(tmp_path: Path, tiny: str) -> None:
    folder = copy_of_repository(tmp_path / "repository", tiny)
    target = "results/smoke/resnet50/seed0/2to4/prune/record.json"
    command = [sys.executable, "-m", "snakemake", target]
    first = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    while not list((folder / ".snakemake/locks").glob("*.lock")):
        assert first.poll() is None
        time.sleep(0.05)
    second = subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )
    assert second.returncode != 0 and "Directory cannot be locked" in second.stdout + second.stderr
    assert first.wait(timeout=600) == 0
    assert (folder / target).exists()
