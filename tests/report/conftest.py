"""Records that never ran but are valid, chained by their digests as the stages would chain them."""

import hashlib
import json

import pytest

from workbench import dag
from workbench.record import Cell, File, Record
from workbench.spec import stage_slice


def _file(text):
    return File(sha256=hashlib.sha256(text.encode()).hexdigest(), bytes=len(text))


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


@pytest.fixture
def put(results):
    """Writes the record of (network, "treatment/stage") with metrics, the first being primary."""

    def write(network, stage, metrics, seed=0, scale="smoke", higher=True, **changes):
        treatment, stage = stage.split("/")
        cell = Cell(scale=scale, network=network, treatment=treatment, stage=stage, seed=seed)
        spec = dag.spec_of(network, treatment, scale)
        git = changes.pop("git", {"commit": "0123456789ab", "dirty": False})
        version = changes.pop("version", "")
        fields = {
            "cell": cell,
            "metrics": metrics,
            "primary": next(iter(metrics)),
            "higher_is_better": higher,
            "spec": stage_slice(spec, stage),
            "spec_digest": dag.stage_digest(network, treatment, scale, stage),
            "data": {},
            "inputs": {str(path): _file(str(path)) for path in dag.upstream(cell).values()},
            "outputs": {
                name: _file(f"{cell.folder / name}{version}") for name in dag.OUTPUTS[stage]
            },
            "mask_digest": "",
            "sparsity": {},
            "notes": {},
            "started": "2024-05-06T07:08:09+00:00",
            "seconds": 90.0,
            "peak_memory_mb": 512.0,
            "provenance": {"git": git, "versions": {"device": "cpu", "torch": "2.11.0"}},
        }
        record = Record(**fields | changes)
        record.write(results / cell.folder / "record.json")
        return results / cell.folder

    return write


@pytest.fixture
def put_curve():
    """Writes a curve of 100 steps per phase beside a record."""

    def write(folder, phases):
        rows = [
            {"phase": phase, "step": step, "lr": 0.1 if step < 60 else 0.01, "loss": 3 - step / 50}
            for phase in phases
            for step in range(19, 100, 20)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "curve.jsonl").write_text(text)

    return write
