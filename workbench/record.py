"""A record: the result of one stage of one cell, written last, by rename, and checked on read."""

import json
from pathlib import Path
from typing import Any

from workbench.files import write_text
from workbench.sections import Section


class RecordError(ValueError):
    """A record that cannot be believed; the message names the file and what to do."""


class Cell(Section):
    """One square of the table of experiments, at one stage."""

    scale: str
    network: str
    treatment: str
    stage: str
    seed: int

    @property
    def folder(self) -> Path:
        """Where the files of this cell lie, relative to the results folder."""
        return Path(self.scale, self.network, f"seed{self.seed}", self.treatment, self.stage)


class File(Section):
    """A file that went in or came out."""

    sha256: str
    bytes: int


class Record(Section):
    """Numbers, and all that is needed to judge them."""

    cell: Cell
    metrics: dict[str, float]
    primary: str
    higher_is_better: bool
    spec: dict[str, Any]
    spec_digest: str
    data: dict[str, str]
    inputs: dict[str, File]
    outputs: dict[str, File]
    mask_digest: str
    sparsity: dict[str, Any]
    notes: dict[str, Any]
    started: str
    seconds: float
    peak_memory_mb: float
    provenance: dict[str, Any]
    mlflow_run_id: str = ""

    def write(self, path: Path) -> None:
        """Write the record as JSON; it appears whole or not at all."""
        write_text(path, json.dumps(self.model_dump(mode="json"), indent=1) + "\n")


def read(path: Path) -> Record:
    """The record in a file, or a RecordError that names the file."""
    try:
        return Record.model_validate(json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise RecordError(f"{path}: no such record; run the stage that makes it") from error
    except (ValueError, RecursionError) as error:  # pydantic's and JSON's are ValueErrors
        why = " ".join(str(error).split())[:200]
        raise RecordError(
            f"{path}: not a record ({why}); delete it and run the stage again"
        ) from error
