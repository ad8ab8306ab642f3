"""Fixtures of the fault harness: a finished chain of stages to compare with, and copies of it."""

import hashlib
import importlib.util
import json
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from workbench import resolve

ROOT = Path(__file__).resolve().parents[2]
NETWORK = "bert_large"  # two phases, and quantization that trains: all there is to resume
STAGES = {
    "dense": ("dense", "--treatment", "dense"),
    "prune": ("prune", "--treatment", "2to4"),
    "retrain": ("retrain", "--treatment", "2to4"),
    "quantize": ("quantize", "--treatment", "2to4"),
    "choose": ("retrain", "--treatment", "sr_ste"),  # masks chosen while training, from scratch
}


def _folder_of(name: str) -> Path:
    stage, _, treatment = STAGES[name]
    return Path("results/smoke", NETWORK, "seed0", treatment, stage)


@pytest.fixture
def folder_of():
    """A function that gives the folder of a stage's files, from the folder of a run."""
    return _folder_of


@dataclass
class Chain:
    """All stages, undisturbed: what they wrote, how long they took, and a stand to run them on."""

    folder: Path
    stand: Any
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, name: str, folder: Path, **hindrance: Any) -> tuple[int, str]:
        """Run a stage in a folder, hindered as asked for."""
        stage, *rest = STAGES[name]
        command = (stage, NETWORK, *rest, "--no-track")
        return self.stand.run(*command, folder=folder, **hindrance)

    def before(self, name: str, folder: Path) -> Path:
        """A new folder in which all stages but this one are done."""
        shutil.copytree(self.folder, folder, copy_function=shutil.copy)
        shutil.rmtree(folder / _folder_of(name))
        return folder

    def is_equal(self, name: str, folder: Path) -> None:
        """Fail unless a stage's numbers and files are those of the undisturbed run."""
        mine, whole = (f / _folder_of(name) for f in (folder, self.folder))
        one, other = (json.loads((f / "record.json").read_text()) for f in (mine, whole))
        for key in ("metrics", "outputs", "mask_digest", "inputs", "spec", "data"):
            assert one[key] == other[key], key
        for file, told in one["outputs"].items():
            assert hashlib.sha256((mine / file).read_bytes()).hexdigest() == told["sha256"], file
        left = {path.name for path in mine.iterdir()}
        assert left == {path.name for path in whole.iterdir()}

    def mended(self, name: str, folder: Path) -> str:
        """Run a stage that was disturbed again, undisturbed; what was printed."""
        status, printed = self.run(name, folder)
        assert status == 0, printed
        self.is_equal(name, folder)
        return printed


@pytest.fixture
def told():
    """A function that gives the named error in which a command ended: no traceback, one line."""

    def error(status: int, printed: str) -> str:
        assert status == 1, printed
        assert "Traceback" not in printed, printed
        return printed.strip().splitlines()[-1]

    return error


def _stand() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stand", Path(__file__).with_name("stand.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(["cp", "-r", str(resolve.EXPERIMENTS), str(folder)], check=True)
    tiny = (ROOT / "tests/conftest.py").read_text().split('TINY = """')[1].split('"""')[0]
    longer = tiny.replace("length: 25it", "length: 45it")  # two states of each phase are saved
    (folder / "experiments/scales/smoke.yaml").write_text(longer)
    bert = folder / "experiments/networks/_bert.yaml"
    bert.write_text(bert.read_text().replace("length: 10%", "length: 100%"))
    found = Chain(folder, _stand().Stand(folder))
    for name in STAGES:
        start = time.monotonic()
        status, printed = found.run(name, folder)
        assert status == 0, printed
        found.seconds[name] = time.monotonic() - start
    yield found
    found.stand.close()


@pytest.fixture
def before(chain: Chain, tmp_path: Path):
    """A function that gives a new folder in which all stages but one are done."""
    return lambda name, number=0: chain.before(name, tmp_path / f"{name}{number}")
