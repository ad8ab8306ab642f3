"""Full disks, truncated files, a clock that goes back, read-only results, two at once.

Every fault ends in a named error or in going on, and afterwards all is as if it had not been.
"""

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from workbench.files import alone

NOBODY = 65534
SLOW = ("prune", "retrain", "choose")
STAGES = ["dense", "quantize", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@pytest.mark.parametrize("name", STAGES)
def test_a_limit_on_files_is_named(chain, before, told, folder_of, name) -> None:
    sizes = {path.stat().st_size for path in (chain.folder / folder_of(name)).iterdir()}
    for number, largest in enumerate((max(sizes) // 8, max(sizes) // 2)):
        folder = before(name, number)
        error = told(*chain.run(name, folder, largest_file=largest))
        assert "cannot be written: File too large; raise the limit" in error
        chain.mended(name, folder)


@pytest.fixture
def small_disk(tmp_path: Path):
    """A function that mounts a disk of so many kilobytes at a folder."""
    mounted = []

    def mount(folder: Path, kilobytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k,mode=777", "tmpfs", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"file systems cannot be mounted here: {done.stderr.strip()}")
        mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("name", STAGES)
def test_a_full_disk_is_named(chain, before, told, folder_of, small_disk, name) -> None:
    folder = before(name)
    small_disk(folder / folder_of(name), random.Random(name).randrange(40, 400, 4))
    assert "cannot be written: No space left on device; free some" in told(*chain.run(name, folder))
    command = ["mount", "-o", "remount,size=64m", folder / folder_of(name)]
    subprocess.run(command, check=True)
    chain.mended(name, folder)


def halves(path: Path) -> list[int]:
    """Four lengths to which a file is cut: none of it, two bytes less, and two in between."""
    size, chosen = path.stat().st_size, random.Random(path.name)
    return [0, size - 2, *(chosen.randrange(1, size) for _ in range(2))]


INPUTS = [
    ("prune", "dense", "prune_point.safetensors"),
    ("prune", "dense", "final.safetensors"),
    ("retrain", "prune", "pruned.safetensors"),
    ("retrain", "prune", "masks.safetensors"),
    ("retrain", "prune", "record.json"),
    ("quantize", "retrain", "final.safetensors"),
    ("quantize", "retrain", "masks.safetensors"),
]  # the stage choose starts from nothing


@pytest.mark.parametrize(("name", "maker", "file"), INPUTS)
def test_a_truncated_input_is_named(chain, before, told, folder_of, name, maker, file) -> None:
    folder = before(name)
    path = folder / folder_of(maker) / file
    whole = path.read_bytes()
    for length in halves(path):
        path.write_bytes(whole[:length])
        assert file in told(*chain.run(name, folder))
    path.write_bytes(whole)
    chain.mended(name, folder)


def test_a_changed_byte_of_the_weights_is_named(chain, before, told, folder_of) -> None:
    folder = before("prune")
    path = folder / folder_of("dense") / "prune_point.safetensors"
    whole = bytearray(path.read_bytes())
    whole[-5] ^= 1
    path.write_bytes(whole)
    error = told(*chain.run("prune", folder))
    assert "prune_point.safetensors: this is not the file of the record beside it" in error
    assert "run the stage that makes it again" in error
    chain.mended("dense", folder)  # as it says
    chain.mended("prune", folder)


def data_files() -> list[str]:
    catalog = yaml.safe_load((Path("experiments/data/catalog.yaml")).read_text())
    return [
        file
        for name in ("squad_small", "squad_text_small")
        for file in sorted(catalog[name]["files"].values())
    ]


@pytest.mark.parametrize("file", sorted(set(data_files())))
def test_a_truncated_data_set_is_named(chain, before, told, file) -> None:
    folder = before("dense")
    path = folder / "experiments/data" / file
    whole = path.read_bytes()
    for length in halves(path)[:2]:
        path.write_bytes(whole[:length])
        error = told(*chain.run("dense", folder))
        assert f"{file} is not the file of the catalog (sha256 differs): truncated" in error


@pytest.mark.parametrize(
    "file",
    [
        "networks/bert_large.yaml",
        "networks/_bert.yaml",
        "treatments/2to4.yaml",
        "scales/smoke.yaml",
        "data/catalog.yaml",
    ],
)
def test_truncated_yaml_is_named_or_another_spec(chain, tmp_path, told, file) -> None:
    shutil.copytree(chain.folder / "experiments", tmp_path / "experiments")
    path = tmp_path / "experiments" / file
    whole = path.read_bytes()
    for length in halves(path):
        path.write_bytes(whole[:length])
        command = ("show", "bert_large", "--scale", "smoke")
        status, printed = chain.stand.run(*command, folder=tmp_path)
        if status:
            told(status, printed)
        else:
            assert "model.build: bert" in printed


STATES = ["state.pt", "pretrain.safetensors", "spec_digest"]


@pytest.mark.parametrize("file", STATES)
def test_a_damaged_state_is_told_and_trained_again(chain, before, folder_of, file) -> None:
    folder = before("dense")
    chain.run("dense", folder, event=24)  # in the second phase
    path = folder / folder_of("dense") / "resume" / file
    assert path.exists(), sorted(path.parent.iterdir())
    disturbed = folder.with_name("disturbed")
    for length in halves(path):
        shutil.copytree(folder, disturbed)
        damaged = disturbed / path.relative_to(folder)
        damaged.write_bytes(damaged.read_bytes()[:length])
        printed = chain.mended("dense", disturbed)
        assert "damaged (" in printed or "left by another spec" in printed, length
        shutil.rmtree(disturbed)


def test_a_truncated_record_of_the_stage_itself_is_made_again(
    chain, before, told, folder_of
) -> None:
    folder = before("prune")
    chain.mended("prune", folder)
    path = folder / folder_of("prune") / "record.json"
    for turn in range(4):  # the record made last decides the lengths: its seconds have any digits
        path.write_bytes(path.read_bytes()[: halves(path)[turn]])
        command = ("run", "bert_large", "--no-track")
        error = told(*chain.stand.run(*command, folder=folder))
        assert "record.json: not a record (" in error and "delete it and run the stage" in error
        path.unlink()
        chain.mended("prune", folder)


@pytest.mark.parametrize("name", STAGES)
def test_a_clock_that_goes_back_changes_no_result(chain, before, name) -> None:
    folder = before(name)
    status, printed = chain.run(name, folder, clock=60.0)
    assert status == 0, printed
    chain.is_equal(name, folder)


@pytest.mark.parametrize("name", STAGES)
def test_read_only_results_are_named(chain, before, told, folder_of, name) -> None:
    folder = before(name)
    (folder / "printed").touch()
    (folder / "printed").chmod(0o666)
    parent = (folder / folder_of(name)).parent
    parent.mkdir(parents=True, exist_ok=True)
    for above in parent.relative_to(folder.parents[-1]).parents:  # the user can go there
        (folder.parents[-1] / above).chmod((folder.parents[-1] / above).stat().st_mode | 0o555)
    parent.chmod(0o555)
    error = told(*chain.run(name, folder, user=NOBODY if os.geteuid() == 0 else None))
    assert "cannot be written: Permission denied; give this user the right to write" in error
    parent.chmod(0o755)
    chain.mended(name, folder)


@pytest.mark.parametrize("name", STAGES)
def test_the_second_of_two_in_one_folder_is_refused(chain, before, told, folder_of, name) -> None:
    folder = before(name)
    with alone(folder / folder_of(name)):
        error = told(*chain.run(name, folder))
    assert "another process is at work there; wait until it ends, or end it" in error
    chain.mended(name, folder)


def test_stages_use_no_network(chain, before) -> None:
    for name in ("dense", "prune", "retrain", "quantize"):
        folder = before(name)
        status, printed = chain.run(name, folder, network=False)
        assert status == 0, printed
        chain.is_equal(name, folder)
