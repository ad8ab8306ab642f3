"""Where a result came from: commit, library versions, device and file digests; no host names."""

import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

from workbench.resolve import ROOT

LIBRARIES = ("torch", "torchvision", "transformers", "accelerate", "numpy", "sacrebleu")
DIGITS = 12  # of a commit, in records


class ProvenanceError(ValueError):
    """A declared origin that cannot be one."""


def sha256(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git() -> dict[str, str | bool]:
    """The commit of the running sources, and whether tracked files differ from it.

    In order of truth: WORKBENCH_COMMIT, for sources that travel without their repository or with
    a stale one; the repository that tracks this file; what `git archive` wrote; else `unknown`.
    ProvenanceError if WORKBENCH_COMMIT names no commit.
    """
    text = _given() or _described() or _archived() or "unknown"
    return {"commit": text.removesuffix("-dirty")[:DIGITS], "dirty": text.endswith("-dirty")}


def _given() -> str | None:
    text = os.environ.get("WORKBENCH_COMMIT")
    if text and not re.fullmatch("[0-9a-f]{7,40}(-dirty)?", text):
        raise ProvenanceError(
            f"WORKBENCH_COMMIT is {text!r}; it is what `git describe --always --abbrev=40 "
            "--exclude='*' --dirty` prints: 7 to 40 hexadecimal digits, and perhaps -dirty"
        )
    return text


def _described() -> str | None:
    """What git says, if the sources are of its repository and do not just lie in its folder."""
    if _git("ls-files", "--error-unmatch", str(Path(__file__).resolve())) is None:
        return None
    return _git("describe", "--always", f"--abbrev={DIGITS}", "--exclude=*", "--dirty")


def _git(*arguments: str) -> str | None:
    """What a git command prints, None if it fails or there is no git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return None if done.returncode else done.stdout.strip()


def _archived() -> str | None:
    """The commit that `git archive` wrote in the place of `$Format:%H$` (.gitattributes)."""
    path = ROOT / ".git_archival.txt"
    text = path.read_text().partition(": ")[2].strip() if path.exists() else "$"
    return None if "$" in text else text


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide numbers."""
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), **found}
