"""Which commit a record names: as declared, of the repository, of the archive, or unknown."""

import shutil
import subprocess
from pathlib import Path

import pytest

from workbench import cli, provenance

ARCHIVED = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sources lie elsewhere: workbench/provenance.py and the archive's line, no repository."""
    monkeypatch.delenv("WORKBENCH_COMMIT", raising=False)
    root = tmp_path / "tree"
    (root / "workbench").mkdir(parents=True)
    shutil.copy(provenance.__file__, root / "workbench")
    (root / ".git_archival.txt").write_text("commit: $Format:%H$\n")
    monkeypatch.setattr(provenance, "ROOT", root)
    monkeypatch.setattr(provenance, "__file__", str(root / "workbench" / "provenance.py"))
    return root


def git(folder: Path, *arguments: str) -> str:
    line = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()


def commit(folder: Path) -> str:
    git(folder, "init")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "first")
    return git(folder, "rev-parse", "HEAD")[:12]


def test_the_repository_names_its_commit_and_whether_files_were_edited(tree: Path) -> None:
    first = commit(tree)
    assert provenance.git() == {"commit": first, "dirty": False}
    (tree / "workbench" / "new.py").touch()  # not tracked
    assert provenance.git()["dirty"] is False
    with (tree / "workbench" / "provenance.py").open("a") as file:
        file.write("# edited")
    assert provenance.git() == {"commit": first, "dirty": True}


def test_an_exported_archive_names_its_own_commit(tree: Path) -> None:
    (tree / ".gitattributes").write_text(".git_archival.txt export-subst\n")
    first = commit(tree)
    archive = subprocess.run(
        ["git", "-C", str(tree), "archive", "HEAD", ".git_archival.txt"],
        capture_output=True,
        check=True,
    ).stdout
    shutil.rmtree(tree / ".git")
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive, check=True)
    assert provenance.git() == {"commit": first, "dirty": False}


def test_files_of_neither_are_of_an_unknown_commit(tree: Path) -> None:
    assert provenance.git() == {"commit": "unknown", "dirty": False}


def test_a_repository_in_whose_folder_the_files_merely_lie_is_not_theirs(tree: Path) -> None:
    (tree.parent / "other").touch()
    (tree.parent / ".gitignore").write_text("tree/\n")
    commit(tree.parent)
    assert provenance.git()["commit"] == "unknown"


def test_the_declared_commit_wins_over_a_stale_repository(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(tree)
    monkeypatch.setenv("WORKBENCH_COMMIT", ARCHIVED)
    assert provenance.git() == {"commit": ARCHIVED[:12], "dirty": False}
    monkeypatch.setenv("WORKBENCH_COMMIT", f"{ARCHIVED[:7]}-dirty")
    assert provenance.git() == {"commit": ARCHIVED[:7], "dirty": True}


def test_without_git_the_archive_still_tells(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / ".git_archival.txt").write_text(f"commit: {ARCHIVED}\n")
    monkeypatch.setenv("PATH", str(tree))
    assert provenance.git() == {"commit": ARCHIVED[:12], "dirty": False}


def test_a_declared_commit_that_is_none_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKBENCH_COMMIT", "main")
    assert cli.run(["dense", "resnet50", "--no-track"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("workbench dense: WORKBENCH_COMMIT is 'main'; it is what `git describe")
    assert told.count("\n") == 1
    assert not list(tmp_path.rglob("*.safetensors"))
