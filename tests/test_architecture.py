"""The arrows between packages, read from the source by ast."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "workbench").rglob("*.py"))

# package or module -> the parts of workbench it may import besides itself
MAY = {
    "durations": set(),
    "sections": {"durations"},
    "compression": {"durations", "sections"},
    "spec": {"compression", "durations", "sections"},
    "seeds": set(),
    "files": set(),
    "admitted": set(),
    "spec_errors": {"sections"},
    "references": {"admitted", "sections", "spec", "spec_errors"},
    "resolve": {"references", "spec", "spec_errors"},
    "provenance": {"resolve"},
    "record": {"files", "sections"},
    "failure": {"files"},
    "current": {"dag", "record"},
    "dag": {"resolve", "record", "sections", "spec"},
    "sparsity": {"files"},
    "quant": {"sparsity"},
    "models": set(),
    "data": {"files", "resolve", "provenance", "seeds"},
    "tasks": {"data", "durations", "models", "resolve", "sections", "seeds"},
    "training": {"data", "durations", "files", "sections", "seeds", "tasks"},
    "stages": {
        "compression",
        "data",
        "dag",
        "files",
        "models",
        "provenance",
        "record",
        "resolve",
        "durations",
        "sections",
        "seeds",
        "sparsity",
        "spec",
        "tasks",
        "training",
        "quant",
    },
    "deploy": {"dag", "quant", "record", "stages"},
    "workload": {"dag", "inventory", "models", "sections"},
    "predict": {"record", "resolve", "sections", "sparsity", "workload"},
    "bench": {
        "data",
        "files",
        "predict",
        "provenance",
        "quant",
        "resolve",
        "sparsity",
        "stages",
        "tasks",
        "workload",
    },
    "inventory": {"dag", "models", "resolve", "sparsity", "tasks"},
    "track": {"files", "record", "provenance", "resolve"},
    "serve": {"models", "tasks", "stages", "track"},  # by name, so that it stays light itself
    "report": {
        "current",
        "dag",
        "durations",
        "failure",
        "files",
        "record",
        "resolve",
        "sections",
        "spec",
        "training",
    },
    "cli": {
        "bench",
        "current",
        "dag",
        "data",
        "failure",
        "files",
        "inventory",
        "predict",
        "provenance",
        "record",
        "report",
        "resolve",
        "sections",
        "serve",
        "sparsity",
        "spec",
        "stages",
        "track",
        "workload",
    },
}
LIGHT = (
    "durations",
    "sections",
    "compression",
    "spec",
    "seeds",
    "files",
    "admitted",
    "spec_errors",
    "references",
    "resolve",
    "provenance",
    "record",
    "failure",
    "dag",
    "current",
    "report",
    "serve",
    "cli",
)


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / "workbench").parts[0].removesuffix(".py")


def imports(path: Path, top_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_the_table(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        return
    named = {name.split(".")[1] for name in imports(path) if name.startswith("workbench.")}
    assert named - MAY[part] - {part} == set()


def test_every_part_is_in_the_table() -> None:
    assert {part_of(path) for path in FILES} - {"__init__"} == set(MAY)


def test_light_parts_import_no_heavy_library() -> None:
    for path in FILES:
        if part_of(path) in LIGHT:
            roots = {name.split(".")[0] for name in imports(path, top_level=True)}
            assert not roots & {"torch", "mlflow", "transformers", "torchvision"}, path


def using(text: str) -> set[str]:
    return {part_of(path) for path in FILES if text in path.read_text()}


def test_mlflow_is_imported_in_one_file_and_snakemake_in_none() -> None:
    roots = {path: {name.split(".")[0] for name in imports(path)} for path in FILES}
    assert [part_of(path) for path in FILES if "mlflow" in roots[path]] == ["track"]
    assert not any("snakemake" in found for found in roots.values())


def test_yaml_is_parsed_and_the_environment_read_in_few_places() -> None:
    assert using("yaml.load(") == {"resolve"}
    assert using("os.environ") == {"cli", "data", "provenance", "serve", "track"}


def test_nothing_asks_which_scale_it_runs_at() -> None:
    for path in [*FILES, ROOT / "Snakefile"]:
        assert not re.search(r"scale (==|in) [\"'(\[]", path.read_text()), path


SPARSE24 = sorted((ROOT / "kernels" / "sparse24").glob("*.py"))


def test_sparse24_stands_on_torch_alone() -> None:
    for path in SPARSE24:
        roots = _roots(path)
        assert not roots & {"workbench", "numpy", "pandas", "transformers", "torchvision"}, path


def test_the_workbench_uses_sparse24_where_it_measures_predicts_or_deploys_alone() -> None:
    found = {part_of(path) for path in FILES if _roots(path) & {"sparse24"}}
    assert found == {"bench", "predict", "deploy"}


def _roots(path: Path) -> set[str]:
    return {(name or "").split(".")[0] for name in imports(path)}


def test_kernels_is_not_an_importable_package() -> None:
    # transformers probes a top-level module named kernels
    assert not (ROOT / "kernels" / "__init__.py").exists()
