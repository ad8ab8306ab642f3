"""What is published is what the committed records say: the README's tables, made again."""

import shutil
from pathlib import Path

import pytest

from workbench import dag, resolve
from workbench.record import read
from workbench.report import table

ROOT = resolve.ROOT
PUBLISHED = [("smoke", "results/reference"), ("lite", "results")]
SHOWN = {"smoke": "tour", "lite": "builders"}  # the study whose table the README has


@pytest.mark.parametrize(("scale", "folder"), PUBLISHED)
def test_the_readme_shows_what_the_records_say(scale: str, folder: str, tmp_path: Path) -> None:
    root = tmp_path / Path(folder).name
    shutil.copytree(ROOT / folder / scale, root / scale)
    seeds = dag.seeds({"seeds": ""}, scale)
    study = SHOWN[scale]
    table(study, scale, resolve.names("networks"), seeds, root)
    made = (root / scale / f"tables/{study}.md").read_text()
    readme = (ROOT / "README.md").read_text()
    shown = readme.split(f"<!-- table:{scale}/{study} -->\n")[1].split("<!-- /table -->")[0]
    assert shown == made


@pytest.mark.parametrize(("scale", "folder"), PUBLISHED)
def test_published_records_name_their_commit_device_and_inputs(scale: str, folder: str) -> None:
    paths = sorted((ROOT / folder / scale).glob("*/seed*/*/*/record.json"))
    assert len(paths) >= 30
    for path in paths:
        record = read(path)
        assert record.cell.folder == path.parent.relative_to(ROOT / folder)
        assert record.provenance["git"]["commit"]
        assert record.provenance["versions"]["device"]
        assert bool(record.inputs) == (record.cell.stage != "dense")
