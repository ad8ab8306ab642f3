"""Readers under mutated files: a named error or a right answer, never a crash or a hang."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fuzz.py")
READERS = (
    *("safetensors", "torch", "masks", "compressed", "any", "resume", "onnx", "record", "yaml"),
)


def fuzzed(name: str, count: int, seed: int, folder: Path) -> dict:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), name, str(count), str(seed), str(folder)],
        env=os.environ | {"PYTHONPATH": str(SCRIPT.parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
    )
    at = (folder / "now").read_text() if (folder / "now").exists() else "the start"
    assert done.returncode == 0, f"ended with {done.returncode} at {at}: {done.stderr[-2000:]}"
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", READERS)
def test_mutated_files_are_named_or_read(name: str, tmp_path: Path) -> None:
    found = fuzzed(name, 150, 0, tmp_path)
    assert not found["strange"]
    assert found["named"] + found["read"] == 150 and (found["named"] or name == "resume")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", READERS)
def test_thousands_of_mutated_files_are_named_or_read(name: str, tmp_path: Path) -> None:
    found = fuzzed(name, 1500, 1000, tmp_path)  # 13,500 of all readers
    print(name, found["named"], "named,", found["read"], "read")
    assert not found["strange"]
