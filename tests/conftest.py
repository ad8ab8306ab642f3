"""Fixtures: a copy of the experiments whose smoke scale is over in seconds, and the GPU skip."""

import shutil
from pathlib import Path

import pytest
import torch

from workbench import dag, resolve
from workbench.record import Cell
from workbench.stages import Work

TINY = """
seeds: [0]
resources: {threads: 1, gpu: 0, mem_mb: 4000, runtime: 30}
network:
  model: {width: 0.03125, depth: 0.0625}
  quantize: {batches: 2}
  checkpoint_seconds: 0.001
standins:
  imagenet:
    data: {name: caltech10, image_size: 32, limit: 64}
    train: {length: 40it, batch: 8, precision: fp32, workers: 0}
    eval: {batch: 16, limit: 64}
  cifar10:
    weights: null
    data: {name: caltech10, image_size: 32, limit: 64}
    train: {length: 40it, batch: 8, precision: fp32, workers: 0}
    eval: {batch: 16, limit: 64}
  coco: &coco
    model: {args: {frozen_stages: 0, freeze_norms: false}}
    data: {name: bccd_small, image_size: 64, limit: 8}
    train: {length: 22it, batch: 2, precision: fp32, workers: 0, schedule: {warmup: 5%}}
    eval: {batch: 4, limit: 8}
  coco_masks:
    <<: *coco
    data: {name: nuclei_small, image_size: 64, limit: 8}
  wmt16:
    data: {name: tatoeba_small, vocabulary: 512, sequence: 16, limit: 400}
    train: {length: 25it, batch: 8, precision: fp32, average: {last: 3, every: 4it}}
    eval: {batch: 8, limit: 8}
  enwik8:
    data: {name: enwik8_small, sequence: 16, limit: 60000}
    train: {length: 25it, batch: 4, precision: fp32}
    eval: {batch: 2, limit: 600, memory: 16}
  wikipedia: &wikipedia
    data:
      name: squad_text_small
      sequence: 32
      limit: 30000
      longer: {sequence: 48, after: 60%}
    train: {length: 25it, batch: 4, precision: fp32, workers: 0}
    eval: {batch: 8, limit: 4000}
  squad: &squad
    data: {name: squad_small, sequence: 64, stride: 16, limit: 100}
    train: {length: 25it, batch: 4, precision: fp32}
    eval: {batch: 8, limit: 16}
  wikipedia_alone: *wikipedia
  wikipedia_tuned:
    <<: *wikipedia
    weights: null
  squad_tuned: *squad
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Derived data of the tests and their subprocesses: none of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of experiments/ that a test may change, its smoke scale tiny."""
    copy = tmp_path / "experiments"
    shutil.copytree(resolve.EXPERIMENTS, copy)
    (copy / "scales" / "smoke.yaml").write_text(TINY)
    monkeypatch.setattr(resolve, "EXPERIMENTS", copy)
    forget()
    yield copy
    forget()


def forget() -> None:
    """Make dag read the specs again."""
    for name in ("spec_of", "stage_digest", "_data_digests", "limits"):
        getattr(dag, name).cache_clear()


@pytest.fixture
def edit(experiments: Path):
    """A function that replaces a text in a file of the copied experiments."""

    def replace(file: str, old: str, new: str) -> None:
        path = experiments / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        forget()

    return replace


@pytest.fixture
def work_of(experiments: Path, tmp_path: Path):
    """A function that gives the Work of a cell in a temporary results folder."""

    def of(network: str, treatment: str, stage: str, results: Path | None = None) -> Work:
        cell = Cell(scale="smoke", network=network, treatment=treatment, stage=stage, seed=0)
        spec = dag.spec_of(network, treatment, "smoke")
        return Work(cell, spec, results or tmp_path / "results", tmp_path / "data")

    return of
