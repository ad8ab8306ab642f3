"""A data set of the catalog: its files, found and checked against their sha256."""

import importlib.util
from collections.abc import Sized
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from workbench import resolve
from workbench.provenance import sha256


class DataError(ValueError):
    """Data that is absent or altered; the message names the file and what to do."""


@dataclass(frozen=True)
class Source:
    """A catalog entry and the folder it is read from."""

    name: str
    kind: str
    entry: dict[str, Any]
    root: Path

    def file(self, role: str) -> Path:
        """The path of a file by its role (train, held_out, ...), after checking its content."""
        path = self.root / self.entry["files"][role]
        if not path.exists():
            raise DataError(f"data set {self.name}: {path} is absent; {self.entry['obtain']}")
        expected = self.entry.get("sha256", {}).get(role)
        if expected and _sha256(path) != expected:
            raise DataError(
                f"data set {self.name}: {path} is not the file of the catalog (sha256 "
                f"differs): truncated or altered; {self.entry['obtain']}"
            )
        return path

    def digest(self, role: str) -> str:
        """The sha256 of a file, which is checked as by `file`."""
        return _sha256(self.file(role))


def open_source(name: str, root: Path) -> Source:
    """The data set `name`, in its package or, if it is not shipped either, under `root`."""
    entry = resolve.catalog()[name]
    if entry["place"] == "package":
        root = _package_folder(name, entry)
    elif entry["place"] == "shipped":
        root = resolve.EXPERIMENTS / "data"
    return Source(name, entry["kind"], entry, root)


def _package_folder(name: str, entry: dict[str, Any]) -> Path:
    """Where an installed package lies; its code is not run."""
    found = importlib.util.find_spec(entry["package"])
    if found is None or found.origin is None:
        raise DataError(
            f"{name}: the optional package {entry['package']} is not installed: {entry['obtain']}"
        )
    return Path(found.origin).parent


def some(source: Source, role: str, examples: Sized) -> Any:
    """The examples of a split, which have to be at least one."""
    if not len(examples):
        raise DataError(
            f"data set {source.name}: the split {role} is empty; at least one example is needed: "
            f"{source.entry['obtain']}"
        )
    return examples


def hub(source: Source, split: str) -> Any:
    """A split of a Hugging Face hub data set, through the `datasets` library."""
    import datasets

    wanted = source.entry["hub"]
    path = wanted.get(f"{split}_path", wanted["path"])
    try:
        return datasets.load_dataset(path, wanted.get("name"), split=wanted[split])
    except (OSError, datasets.exceptions.DatasetNotFoundError) as error:
        raise DataError(
            f"data set {source.name}: {path} could not be read from the hub "
            f"({type(error).__name__}); {source.entry['obtain']}"
        ) from error


@cache
def _sha256(path: Path) -> str:
    return sha256(path)
