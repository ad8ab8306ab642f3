"""Resume: the state of an interrupted stage, in undeclared files that a finished stage removes."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from workbench.record import write_text

Row = dict[str, Any]


class Resume:
    """The folder `resume/` of a stage: finished phases, the running one's state, the curve."""

    def __init__(self, folder: Path, digest: str):
        """Open the folder; what another spec left there is thrown away, and said so."""
        self.folder = folder / "resume"
        mark = self.folder / "spec_digest"
        if self.folder.exists() and (not mark.exists() or mark.read_text() != digest):
            print(f"{self.folder}: left by another spec; starting afresh", flush=True)
            shutil.rmtree(self.folder)
        if not mark.exists():
            write_text(mark, digest)

    def finished(self, phase: str) -> dict[str, torch.Tensor] | None:
        """The weights at the end of a phase, if an earlier attempt came that far."""
        path = self.folder / f"{phase}.safetensors"
        return load_file(path) if path.exists() else None

    def finish(self, phase: str, weights: dict[str, torch.Tensor], rows: list[Row]) -> None:
        """Keep the weights and the curve of a phase that is over."""
        self._keep_curve(phase, rows)
        part = self.folder / f"{phase}.part"
        save_file(weights, part)
        part.replace(self.folder / f"{phase}.safetensors")
        (self.folder / "state.pt").unlink(missing_ok=True)

    def save(self, phase: str, state: dict[str, Any], rows: list[Row]) -> None:
        """Keep the state of the running phase (tensors, numbers, lists and mappings only)."""
        self._keep_curve(phase, rows)
        part = self.folder / "state.part"
        torch.save({"phase": phase, **state}, part)
        part.replace(self.folder / "state.pt")

    def load(self, phase: str) -> dict[str, Any] | None:
        """The state of the running phase, on the CPU."""
        path = self.folder / "state.pt"
        if not path.exists():
            return None
        state = torch.load(path, weights_only=True, map_location="cpu")
        return state if state["phase"] == phase else None

    def curve(self, phase: str, before: int | None = None) -> list[Row]:
        """The logged rows of a phase, those before a step."""
        path = self.folder / f"{phase}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [row for row in rows if before is None or row["step"] < before]

    def remove(self) -> None:
        """Forget everything: the stage's outputs are complete."""
        shutil.rmtree(self.folder)

    def _keep_curve(self, phase: str, rows: list[Row]) -> None:
        write_text(self.folder / f"{phase}.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
