"""Where a result came from: commit, library versions, device and file digests; no host names."""

import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path

from workbench.resolve import ROOT

LIBRARIES = ("torch", "torchvision", "transformers", "accelerate", "numpy", "sacrebleu")


def sha256(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git() -> dict[str, str | bool]:
    """Commit and whether tracked files differ from it; an exported archive names its own."""
    described = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    if described.returncode:
        archival = ROOT / ".git_archival.txt"
        named = archival.read_text().partition(": ")[2].strip() if archival.exists() else "$"
        return {"commit": "unknown" if "$" in named else named, "dirty": False}
    text = described.stdout.strip()
    return {"commit": text.removesuffix("-dirty"), "dirty": text.endswith("-dirty")}


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide numbers."""
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), **found}
