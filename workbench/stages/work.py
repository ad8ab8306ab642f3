"""What one stage of one cell works with: spec, inputs, out folder, device; and how it ends."""

import contextlib
import json
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    gather_object,
)
from safetensors.torch import load_file, save_file
from torch import nn

from workbench import dag, files, models, provenance, sparsity
from workbench.data.source import DataError, open_source
from workbench.record import Cell, File, Record
from workbench.resolve import data_digests
from workbench.seeds import seed_for
from workbench.spec import Spec, data_sets, stage_slice
from workbench.stages.weights import StageError, Weights, load, recorded_masks, recorded_weights
from workbench.tasks import Task, open_task
from workbench.tasks.teacher import Teacher
from workbench.training.resume import FOLDER, Resume, Row

COUNTERS = "*num_batches_tracked"  # of batch norms: files of old PyTorch lack them, none use them
WAIT = timedelta(hours=6)  # other processes wait while the main one evaluates


@dataclass
class Work:
    """One stage of one cell. `log` receives (phase, rows) while training."""

    cell: Cell
    spec: Spec
    results: Path
    data: Path
    log: Callable[[str, list[Row]], None] = lambda phase, rows: None
    metrics: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    clock: float = field(default_factory=time.monotonic)
    git: dict[str, str | bool] = field(default_factory=provenance.git)  # as the stage begins

    @property
    def out(self) -> Path:
        """The only folder the stage writes to."""
        return self.results / self.cell.folder

    @property
    def digest(self) -> str:
        """The digest of what the stage reads of its spec."""
        return dag.stage_digest(
            self.cell.network, self.cell.treatment, self.cell.scale, self.cell.stage
        )

    @cached_property
    def accelerator(self) -> Accelerator:
        """The device, in the precision of the spec; fp16 is for accelerators only."""
        precision = {"fp32": "no"}.get(self.spec.precision, self.spec.precision)
        if precision == "fp16" and not torch.cuda.is_available():
            raise StageError("precision fp16 needs a GPU; on a CPU use the smoke scale, or bf16")
        return Accelerator(
            mixed_precision=precision,
            cpu=not torch.cuda.is_available(),
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=WAIT),
                # an auxiliary head or a pooler may take no part in a phase's loss
                DistributedDataParallelKwargs(find_unused_parameters=True),
            ],
        )

    @cached_property
    def resume(self) -> Resume:
        """What an interrupted attempt left."""
        if self.accelerator.is_main_process:
            Resume(self.out, self.digest)  # clears what another spec left
        self.accelerator.wait_for_everyone()
        return Resume(self.out, self.digest)

    def forget_resume(self) -> None:
        """Remove what an interrupted attempt would need, once the record is written."""
        shutil.rmtree(self.out / FOLDER, ignore_errors=True)  # a rest of it harms nothing

    def task(self, phase: str) -> Task:
        """The task of a phase over its data."""
        try:
            return open_task(self.spec.phases[phase], seed_for(self.cell.seed, "data"), self.data)
        except DataError as error:
            raise DataError(f"{self.cell.network}, phase {phase}: {error}") from error

    def model(self, phase: str, task: Task) -> nn.Module:
        """The network of a phase, freshly initialized."""
        wanted = self.spec.model_of(phase)
        torch.manual_seed(seed_for(self.cell.seed, "init", phase))
        return models.build(
            wanted.build, **wanted.args, width=wanted.width, depth=wanted.depth, **task.shape()
        )

    def teacher(self, phase: str, task: Task) -> Teacher | None:
        """The dense network that the phase learns from, if its treatment says so."""
        distill = self.spec.treatment.distill
        if distill is None or self.cell.stage != "retrain" or phase != self.spec.last_phase:
            return None
        if not task.distills:
            raise StageError(
                f"treatment {self.cell.treatment} learns from the dense network's classes, and "
                f"{self.cell.network}'s task {self.spec.phases[phase].task} is not classification: "
                "take a treatment without distill"
            )
        model = self.model(phase, task)
        load(model, self.weights("teacher"))
        model = model.to(self.accelerator.device).eval().requires_grad_(False)
        return Teacher(model, distill.weight, distill.temperature)

    def weights(self, role: str = "weights") -> Weights:
        """An input file of the stage."""
        return recorded_weights(self.results / dag.upstream(self.cell)[role])

    def obtained(self, phase: str) -> tuple[Weights, tuple[str, ...]]:
        """The published weights that a phase takes, and patterns of the names that they may lack.

        Their file is checked against the catalog, whose entry says how its names differ.
        """
        source = open_source(self.spec.phases[phase].weights, self.data)
        entry, found = source.entry, load_file(source.file("weights"))
        unused = entry.get("unused", ())
        named = {f"{entry.get('prefix', '')}{k}": v for k, v in found.items() if k not in unused}
        return named, (COUNTERS, *entry.get("lacks", ()))

    def masks(self) -> sparsity.Masks | None:
        """The masks that the stage has to keep, if it has any: those that were pruned."""
        path = dag.upstream(self.cell).get("masks")
        return recorded_masks(self.results / path) if path else None

    @contextlib.contextmanager
    def judging(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model on the device, in inference mode, under the precision of the spec."""
        model = model.to(self.accelerator.device).eval()
        with torch.inference_mode(), self.accelerator.autocast():
            yield model
        model.train()

    def judge(self, phase: str, model: nn.Module, task: Task) -> None:
        """Evaluate on held-out data, in the main process, and keep the metrics."""
        if self.accelerator.is_main_process:
            with self.judging(model):
                found = task.evaluate(model, self.accelerator.device)
            found["chance"] = task.chance()
            self.metrics |= {f"{phase}/{name}": float(value) for name, value in found.items()}
            shown = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
            print(f"{self.cell.stage} {phase}: {shown}", flush=True)
        self.accelerator.wait_for_everyone()

    def write(self, name: str, weights: Weights) -> None:
        """Write a weights file into the out folder, in the main process."""
        if self.accelerator.is_main_process:
            whole = {key: value.cpu().contiguous() for key, value in weights.items()}
            with files.whole(self.out / name) as part:
                save_file(whole, part)

    def write_curve(self, rows: list[Row]) -> None:
        """Write the logged rows of all phases, in the main process."""
        if self.accelerator.is_main_process:
            text = "".join(json.dumps(row) + "\n" for row in rows)
            files.write_text(self.out / "curve.jsonl", text)

    def agree(self, masks: sparsity.Masks) -> None:
        """Refuse masks that are not the same in every process."""
        if len(found := set(gather_object([masks.digest()]))) > 1:
            raise StageError(f"processes hold {len(found)} different sets of masks")

    def write_masks(self, masks: sparsity.Masks) -> None:
        """Write the masks that later stages keep, in the main process."""
        if self.accelerator.is_main_process:
            with files.whole(self.out / "masks.safetensors") as part:
                masks.save(part)

    def finish(self, phase: str, task: Task, masks: sparsity.Masks | None, rows: Any) -> Record:
        """The record, once all outputs are written; `phase` gives the primary metric."""
        self.accelerator.wait_for_everyone()
        names = dag.OUTPUTS[self.cell.stage]
        inputs = dag.upstream(self.cell).values()
        devices = provenance.versions() | {"device": _device_name(self.accelerator.device)}
        part = stage_slice(self.spec, self.cell.stage)
        sets = data_sets(part)
        return Record(
            cell=self.cell,
            metrics=self.metrics,
            primary=f"{phase}/{task.metric}",
            higher_is_better=task.higher_is_better,
            spec=part,
            spec_digest=self.digest,
            data={name: data_digests()[name] for name in sets} | task.digests(),
            inputs={str(path): _file(self.results / path) for path in inputs},
            outputs={name: _file(self.out / name) for name in names},
            mask_digest=masks.digest() if masks else "",
            sparsity=rows,
            notes=self.notes,
            started=self.started.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - self.clock, 2),
            peak_memory_mb=_peak_memory_mb(self.accelerator.device),
            provenance={
                "git": self.git,
                "versions": devices,
                "threads": torch.get_num_threads(),
                "cuda": torch.version.cuda or "",
                "deterministic": self.accelerator.device.type == "cpu",
            },
        )


def _file(path: Path) -> File:
    return File(sha256=provenance.sha256(path), bytes=path.stat().st_size)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
