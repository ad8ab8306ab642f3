"""Several processes inside a stage: the curve of one, the same masks, one record, any resume."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import multiprocessing

from workbench import cli, resolve
from workbench.record import read
from workbench.sparsity import Masks
from workbench.training import resume
from workbench.training.sharing import Sharing, SharingError

ROOT = Path(__file__).resolve().parents[2]

# one network of every task, the phases of BERT being masked language model and questions
NETWORKS = (
    "resnet50",
    "fasterrcnn_rn50_fpn_1x",
    "rpn_rn50_fpn_1x",
    "fairseq_transformer",
    "levenshtein_transformer",
    "transformer_xl",
    "bert_large",
)
CELLS = [
    (name, treatment, stage)
    for name in NETWORKS
    for treatment, stage in (
        ("dense", "dense"),
        ("2to4", "prune"),
        ("2to4", "retrain"),
        ("2to4", "quantize"),
    )
]
SCHEDULED = ("fairseq_transformer", "sr_ste", "retrain")
CLOSE = 1e-6  # measured: not a bit differs, as a mean of two halves is exact in any order


def arguments(cell: tuple[str, str, str]) -> list[str]:
    network, treatment, stage = cell
    return [stage, network, "--treatment", treatment, "--no-track"]


def process(rank: int, world: int, folder: Path, experiments: Path, cells: list, most: int) -> None:
    """A process of a group, started once for many cells; `most` states are saved, then it dies."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "LOCAL_WORLD_SIZE": str(world)}
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    if world > 1:
        store = torch.distributed.FileStore(str(folder / f"store{most}"), world)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    resolve.EXPERIMENTS = experiments
    os.chdir(folder)
    sys.stdout = (folder / f"out{world}.{rank}").open("a", buffering=1)
    if most:
        kept = resume.Resume.save
        left = iter(range(most - 1))

        def save(*given) -> None:
            kept(*given)
            if next(left, None) is None:
                os._exit(9)

        resume.Resume.save = save
    for cell in cells:
        assert cli.run(arguments(cell)) == 0, cell
    if world > 1:
        torch.distributed.destroy_process_group()


def start(world: int, folder: Path, experiments: Path, cells: list, most: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    multiprocessing.spawn(process, (world, folder, experiments, cells, most), nprocs=world)


def curve(folder: Path, cell: tuple[str, str, str]) -> list[dict]:
    network, treatment, stage = cell
    path = folder / "results/smoke" / network / "seed0" / treatment / stage / "curve.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def tiny_scale() -> str:
    """The tiny smoke scale of tests/conftest.py."""
    return (ROOT / "tests/conftest.py").read_text().split('TINY = """')[1].split('"""')[0]


@pytest.fixture(scope="module")
def experiments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny smoke scale, every batch in two shares."""
    folder = tmp_path_factory.mktemp("shared")
    subprocess.run(["cp", "-r", str(resolve.EXPERIMENTS), str(folder)], check=True)
    shared = re.sub(r"train: \{length: \d+it", "train: {shares: 2, length: 22it", tiny_scale())
    assert shared.count("shares: 2") == 7
    (folder / "experiments/scales/smoke.yaml").write_text(shared)
    return folder / "experiments"


@pytest.fixture(scope="module")
def folders(experiments: Path) -> tuple[Path, Path]:
    """The results of one process and those of two."""
    found = (experiments.parent / "one", experiments.parent / "two")
    for world, folder in enumerate(found, start=1):
        cells = [cell for cell in CELLS if world == 2 or cell[2] != "quantize"]
        start(world, folder, experiments, [*cells, SCHEDULED])
    return found


TRAINED = [cell for cell in (*CELLS, SCHEDULED) if cell[2] in ("dense", "retrain")]


@pytest.mark.parametrize("cell", TRAINED, ids="-".join)
def test_two_processes_have_the_curve_of_one(cell, folders) -> None:
    one, two = (curve(folder, cell) for folder in folders)
    assert len(one) > 1
    assert [row["loss"] for row in two] == pytest.approx([r["loss"] for r in one], rel=CLOSE)


@pytest.mark.parametrize(
    "cell", [(n, "2to4", "retrain") for n in NETWORKS] + [SCHEDULED], ids="-".join
)
def test_masks_are_those_of_one_record(cell, folders) -> None:
    network, treatment, stage = cell
    for folder in folders:
        out = folder / "results/smoke" / network / "seed0" / treatment / stage
        masks = Masks.load(out / "masks.safetensors")  # that processes agree, the stage checks
        assert masks.density() == 0.5
        assert read(out / "record.json").mask_digest == masks.digest()
        assert not (out / "resume").exists()


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_a_stage_goes_on_with_another_number_of_processes(
    first, then, folders, experiments
) -> None:
    cell = ("transformer_xl", "dense", "dense")  # whose memory is carried from step to step
    folder = experiments.parent / f"from{first}to{then}"
    with pytest.raises(multiprocessing.ProcessExitedException):
        start(first, folder, experiments, [cell], most=1)
    start(then, folder, experiments, [cell])
    assert "goes on at step 20" in (folder / f"out{then}.0").read_text()
    whole, parts = (curve(each, cell) for each in (folders[0], folder))
    assert [r["loss"] for r in parts] == pytest.approx([r["loss"] for r in whole], rel=CLOSE)


def test_a_launched_stage_makes_one_record_and_one_run(tmp_path: Path, experiments: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in ("workbench", "pyproject.toml"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(folder)], check=True)
    subprocess.run(["cp", "-r", str(experiments), str(folder)], check=True)
    (folder / "experiments/scales/smoke.yaml").write_text(tiny_scale())  # of whole batches
    network = folder / "experiments/networks/transformer_xl.yaml"
    network.write_text(network.read_text().replace("dropout: 0.1", "dropout: 0.0"))
    launchers = {
        "alone": ["-m"],
        "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m"],
        "accelerate": ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m"],
    }
    cell, curves = ("transformer_xl", "dense", "dense"), {}
    for name, launcher in launchers.items():
        tracked = name == "accelerate"
        if tracked:
            command(folder, "-m", "workbench.cli", "track-init")
        stage = ["workbench.cli", *arguments(cell)[: None if not tracked else -1]]
        command(folder, *launcher, *stage)
        curves[name] = [row["loss"] for row in curve(folder, cell)]
        out = folder / "results/smoke/transformer_xl/seed0/dense/dense"
        record = read(out / "record.json")
        subprocess.run(["rm", "-r", str(out)], check=True)
    assert curves["torchrun"] == pytest.approx(curves["alone"], rel=1e-4)
    assert curves["accelerate"] == pytest.approx(curves["alone"], rel=1e-4)
    runs = sqlite3.connect(folder / "mlflow.db")
    stages = "select run_uuid from tags where key='role' and value='stage'"
    assert runs.execute(stages).fetchall() == [(record.mlflow_run_id,)]
    assert runs.execute("select count(*) from runs").fetchone() == (2,)  # and its network's


def command(folder: Path, *given: str) -> None:
    done = subprocess.run(
        [sys.executable, *given],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def test_shares_that_cannot_be_equal_are_refused() -> None:
    two = SimpleNamespace(process_index=1, num_processes=2, device=torch.device("cpu"))
    assert Sharing(two, 1, 0, "train").shares.of == 2
    assert Sharing(two, 4, 0, "train").shares.mine == (1, 3)
    with pytest.raises(SharingError, match="phase train: 2 processes cannot take 3 shares"):
        Sharing(two, 3, 0, "train")
    with pytest.raises(SharingError, match="a batch of 7 examples cannot be cut into 2 equal"):
        Sharing(two, 1, 0, "train").check(lambda step: list(range(7)), 0)


def test_memory_of_other_shares_is_left_out_and_told(capsys) -> None:
    alone = SimpleNamespace(process_index=0, num_processes=1, device=torch.device("cpu"))
    sharing = Sharing(alone, 1, 0, "train")
    sharing.restore({"of": 2, "carry": {0: torch.ones(1), 1: torch.ones(1)}})
    assert sharing.carry == {0: None}
    assert "1 shares, no longer 2: the memory of earlier steps" in capsys.readouterr().out
