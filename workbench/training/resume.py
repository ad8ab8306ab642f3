"""Resume: the state of an interrupted stage, in undeclared files that a finished stage removes."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from workbench.files import DAMAGED, refusing, whole, write_text

FOLDER = "resume"
Row = dict[str, Any]


class Resume:
    """The folder `resume/` of a stage: finished phases, the running one's state, both
    with their curves.

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
        found = _undamaged(self._finished(phase), _weights_and_curve)
        return found[0] if found else None

    def finish(self, phase: str, weights: dict[str, torch.Tensor], rows: list[Row]) -> None:
        """Keep the weights and the curve of a phase that is over."""
        with whole(self._finished(phase)) as part:
            save_file(weights, part, metadata={"curve": json.dumps(rows)})
        (self.folder / "state.pt").unlink(missing_ok=True)

    def save(self, phase: str, state: dict[str, Any], rows: list[Row]) -> None:
        """Keep the state of the running phase (tensors, numbers, lists and mappings only)."""
        content = io.BytesIO()  # writing to a full disk itself, torch.save hides why it failed
        torch.save({"phase": phase, "curve": rows, **state}, content)
        with whole(self.folder / "state.pt") as part:
            part.write_bytes(content.getbuffer())

    def load(self, phase: str) -> dict[str, Any] | None:
        """The state of the running phase, on the CPU, with its logged rows as `curve`."""
        state = _undamaged(self.folder / "state.pt", _state)
        return state if state and state["phase"] == phase else None

    def curve(self, phase: str) -> list[Row]:
        """The logged rows of a finished phase."""
        return _weights_and_curve(self._finished(phase))[1]

    def _finished(self, phase: str) -> Path:
        return self.folder / f"{phase}.safetensors"


def _undamaged(path: Path, read: Callable[[Path], Any]) -> Any:
    """What `read` finds in a file; None if it is absent or, which is told, cannot be read."""
    if not path.exists():
        return None
    try:
        return read(path)
    except DAMAGED as error:
        why = " ".join(str(error).split())[:120]
        print(f"{path}: damaged ({why}); its phase is trained again", flush=True)
        return None


def _state(path: Path) -> dict[str, Any]:
    state = torch.load(path, weights_only=True, map_location="cpu")
    return {**state, "phase": state["phase"], "curve": state["curve"]}


def _weights_and_curve(path: Path) -> tuple[dict[str, torch.Tensor], list[Row]]:
    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return weights, json.loads(file.metadata()["curve"])
