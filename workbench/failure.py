"""Why a stage has no record: the error of its last attempt, in a file where that would be."""

import json
from pathlib import Path

from workbench.files import write_text

NAME = "failed.json"


def remember(folder: Path, error: Exception) -> None:
    """Keep the error of a stage that writes into `folder`."""
    text = json.dumps({"error": f"{type(error).__name__}: {error}"}, indent=1)
    write_text(folder / NAME, text + "\n")


def forget(folder: Path) -> None:
    """The stage has succeeded."""
    (folder / NAME).unlink(missing_ok=True)


def reason(folder: Path) -> str:
    """The error of the last attempt, "" if it did not fail or never began."""
    path = folder / NAME
    return json.loads(path.read_text())["error"] if path.exists() else ""
