"""Treatments that choose masks while they train: from scratch or from the dense network."""

import json
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from workbench import cli, dag, resolve, stages
from workbench.record import Cell, read
from workbench.sparsity import Masks
from workbench.stages.weights import StageError

SCRATCH = ("sr_ste", "2to4_repeated", "2to4_dense_half")


class Interrupted(Exception):
    """Stands for a kill."""


def finish(work) -> None:
    stages.run(work).write(work.out / "record.json")
    work.forget_resume()


def curve(work) -> list[dict]:
    return [json.loads(line) for line in (work.out / "curve.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("treatment", [*SCRATCH, "2to4_gradual"])
def test_a_scheduled_treatment_ends_in_two_of_four_and_is_quantized(treatment, work_of) -> None:
    if treatment not in SCRATCH:
        finish(work_of("resnet50", "dense", "dense"))
    for stage in ("retrain", "quantize"):
        finish(work_of("resnet50", treatment, stage))
    work = work_of("resnet50", treatment, "retrain")
    masks, record = Masks.load(work.out / "masks.safetensors"), read(work.out / "record.json")
    assert masks.density() == 0.5 and record.mask_digest == masks.digest()
    masks.verify_tensors(load_file(work.out / "final.safetensors"))
    rates = [row["flip_rate"] for row in curve(work)]
    assert record.sparsity["schedule"]["flip_rate"] == sum(rates) / len(rates)
    assert (max(rates) > 0) == (treatment != "2to4_dense_half")
    assert curve(work)[-1]["density"] == 0.5
    assert record.spec["treatment"]["schedule"]
    integers = read(work_of("resnet50", treatment, "quantize").out / "record.json").sparsity
    assert integers["integers"]["pruned_not_zero"] == 0


@pytest.mark.parametrize("network", ["bert_large", "fasterrcnn_rn50_fpn_1x"])
def test_masks_are_chosen_in_the_repeated_phase_and_held_in_those_after_it(
    network, work_of
) -> None:
    work = work_of(network, "sr_ste", "retrain")
    finish(work)
    phases = {row["phase"]: "flip_rate" in row for row in curve(work)}
    assert list(phases) == list(work.spec.phases)  # from scratch: all of them
    assert [name for name, chose in phases.items() if chose] == [work.spec.repeat_from]
    masks = Masks.load(work.out / "masks.safetensors")
    assert masks.density() == 0.5
    masks.verify_tensors(load_file(work.out / "final.safetensors"))


@pytest.mark.parametrize("treatment", ["sr_ste", "2to4_dense_half"])
@pytest.mark.parametrize("interrupted_in", [0, 1])
def test_an_interrupted_schedule_ends_bit_equal(
    treatment, interrupted_in, work_of, tmp_path
) -> None:
    def run(folder: str, log=None) -> None:
        work = work_of("bert_large", treatment, "retrain", tmp_path / folder)
        work.log = log or work.log
        finish(work)

    seen: list[str] = []

    def interrupt(phase: str, rows: list) -> None:
        seen.append(phase)
        if len(set(seen)) > interrupted_in and seen[-2:] == [phase, phase]:
            raise Interrupted

    run("whole")
    with pytest.raises(Interrupted):
        run("parts", interrupt)
    run("parts")
    for name in ("final.safetensors", "masks.safetensors", "curve.jsonl"):
        found = [
            work_of("bert_large", treatment, "retrain", tmp_path / folder).out / name
            for folder in ("whole", "parts")
        ]
        assert found[0].read_bytes() == found[1].read_bytes(), name


def test_a_scheduled_treatment_has_no_stage_prune(work_of) -> None:
    with pytest.raises(StageError, match="treatment sr_ste chooses masks while it trains"):
        stages.run(work_of("resnet50", "sr_ste", "prune"))


def test_the_pipeline_knows_what_a_schedule_starts_from(experiments) -> None:
    def chain(treatment: str) -> list[str]:
        end = Cell(scale="smoke", network="resnet50", treatment=treatment, stage="quantize", seed=0)
        return [f"{cell.treatment}/{cell.stage}" for cell in dag.chain(end)]

    assert chain("sr_ste") == ["sr_ste/retrain", "sr_ste/quantize"]
    assert chain("2to4_gradual") == [
        "dense/dense",
        "2to4_gradual/retrain",
        "2to4_gradual/quantize",
    ]
    assert chain("2to4") == ["dense/dense", "2to4/prune", "2to4/retrain", "2to4/quantize"]
    cell = Cell(scale="smoke", network="resnet50", treatment="sr_ste", stage="retrain", seed=0)
    assert dag.upstream(cell) == {}


def test_the_digest_of_a_schedule_is_its_own_and_follows_its_values(edit) -> None:
    def digest(treatment: str) -> str:
        return dag.stage_digest("resnet50", treatment, "full", "retrain")

    digests = [digest(name) for name in ("2to4", *SCRATCH, "2to4_gradual")]
    assert len(set(digests)) == len(digests)
    edit("treatments/sr_ste.yaml", "decay: 2e-4", "decay: 1e-4")
    assert digest("sr_ste") != digests[1]
    assert digest("2to4") == digests[0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("decay: 2e-4", "dense: 1.0", "dense 1.0 has to be below settle 1.0"),
        ("straight_through", "once", "decay belongs to straight_through"),
        ("straight_through", "sr-ste", "schedule.kind: "),
        ("kind: nm, keep: 2, of: 4", "kind: none", "a schedule chooses masks: give it a pattern"),
    ],
)
def test_a_schedule_without_meaning_is_one_line(old, new, message, edit) -> None:
    edit("treatments/sr_ste.yaml", old, new)
    with pytest.raises(resolve.SpecError) as caught:
        resolve.resolve("resnet50", "sr_ste", "full")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_study_of_schedules_can_be_planned() -> None:
    given = ["--config", "scale=smoke", "networks=resnet50", "studies=schedules"]
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "rules", *given]
    done = subprocess.run(command, cwd=resolve.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_table_shows_a_schedule_beside_dense_and_marks_what_is_absent(
    work_of, tmp_path, monkeypatch
) -> None:
    finish(work_of("resnet50", "dense", "dense"))
    finish(work_of("resnet50", "sr_ste", "retrain"))
    root = tmp_path / "results"
    given = ["table", "schedules", "--networks", "resnet50", "--seeds", "0", "--root", str(root)]
    assert cli.run(given) == 0
    text = (root / "smoke" / "tables" / "schedules.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    header, _, row = rows[:3]  # of the first of the two tables
    cells = dict(zip(header, row, strict=True))
    assert cells["Straight through FP16"][0].isdigit()
    assert cells["Gradual FP16"].startswith("–")
