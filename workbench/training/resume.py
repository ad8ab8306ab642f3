"""Resume: the state of an interrupted stage, in undeclared files that a finished stage removes."""

import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from workbench.files import refusing, whole, write_text

FOLDER = "resume"
Row = dict[str, Any]


class Resume:
    """The folder `resume/` of a stage: finished phases, the running one's state, the curve.

    What a disk has damaged since is told and trained again; the result is the same.
    """

    def __init__(self, folder: Path, digest: str):
        """Open the folder; what another spec left there is thrown away, and said so."""
        self.folder = folder / FOLDER
        mark = self.folder / "spec_digest"
        if self.folder.exists() and (not mark.exists() or mark.read_bytes() != digest.encode()):
            print(f"{self.folder}: left by another spec; starting afresh", flush=True)
            with refusing(self.folder):
                shutil.rmtree(self.folder)
        if not mark.exists():
            write_text(mark, digest)

    def finished(self, phase: str) -> dict[str, torch.Tensor] | None:
        """The weights at the end of a phase, if an earlier attempt came that far."""
        path = self.folder / f"{phase}.safetensors"
        return None if self._rows(phase) is None else _undamaged(path, load_file)

    def finish(self, phase: str, weights: dict[str, torch.Tensor], rows: list[Row]) -> None:
        """Keep the weights and the curve of a phase that is over."""
        self._keep_curve(phase, rows)
        with whole(self.folder / f"{phase}.safetensors") as part:
            save_file(weights, part)
        (self.folder / "state.pt").unlink(missing_ok=True)

    def save(self, phase: str, state: dict[str, Any], rows: list[Row]) -> None:
        """Keep the state of the running phase (tensors, numbers, lists and mappings only)."""
        self._keep_curve(phase, rows)
        content = io.BytesIO()  # writing to a full disk itself, torch.save hides why it failed
        torch.save({"phase": phase, **state}, content)
        with whole(self.folder / "state.pt") as part:
            part.write_bytes(content.getbuffer())

    def load(self, phase: str) -> dict[str, Any] | None:
        """The state of the running phase, on the CPU."""
        if self._rows(phase) is None:
            return None
        state = _undamaged(self.folder / "state.pt", _state)
        return state if state and state["phase"] == phase else None

    def curve(self, phase: str, before: int | None = None) -> list[Row]:
        """The logged rows of a phase, those before a step."""
        rows = self._rows(phase) or []
        return [row for row in rows if before is None or row["step"] < before]

    def _rows(self, phase: str) -> list[Row] | None:
        return _undamaged(self.folder / f"{phase}.jsonl", _lines)

    def _keep_curve(self, phase: str, rows: list[Row]) -> None:
        write_text(self.folder / f"{phase}.jsonl", "".join(json.dumps(r) + "\n" for r in rows))


def _undamaged(path: Path, read: Callable[[Path], Any]) -> Any:
    """What `read` finds in a file; None if it is absent or, which is told, cannot be read."""
    if not path.exists():
        return None
    try:
        return read(path)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        why = " ".join(str(error).split())[:120]
        print(f"{path}: damaged ({why}); its phase is trained again", flush=True)
        return None


def _state(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True, map_location="cpu")


def _lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]
