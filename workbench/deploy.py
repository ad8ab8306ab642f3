"""Deployment: the network of a finished stage, its 2:4 layers on sparse tensor cores.

from workbench import deploy

model, table = deploy.swapped("results/lite/bert_large/seed0/2to4/quantize", device="cuda")
print(table)
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sparse24
from workbench import dag
from workbench.quant import Quantized
from workbench.quant.files import restored
from workbench.record import read
from workbench.stages.weights import load, recorded_weights
from workbench.stages.work import Work

FILES = {"dense": "final", "retrain": "final", "quantize": "int8"}


class DeployError(ValueError):
    """A folder from which no network can be deployed."""


def swapped(
    folder: str | Path,
    precision: str | None = None,
    device: str | torch.device = "cpu",
    data: str | Path = "data",
    **options: Any,
) -> tuple[nn.Module, sparse24.Table]:
    """The network of a record's folder in eval mode, swapped, and the table of its layers.

    precision: by default "int8" of a folder of quantize, by its own scales, and "fp16" of dense and
    retrain. `data`: the folder of the data, which tells classes or vocabulary. `options` go to
    sparse24.swap, as `example`, at whose sizes a GPU measures.
    """
    model, scales = network(work_of(Path(folder), Path(data)))
    precision = precision or ("fp16" if scales is None else "int8")
    if precision == "int8":
        options = {"scales": scales} | options
    return model, sparse24.swap(model.to(device), precision=precision, **options)


def work_of(folder: Path, data: Path) -> Work:
    """The work whose record lies in a folder; DeployError if the spec is another one by now."""
    record = read(folder / "record.json")
    cell = record.cell
    if cell.stage not in FILES:
        allowed = ", ".join(FILES)
        raise DeployError(f"{folder} is of stage {cell.stage}; allowed are {allowed}")
    results = folder.resolve().parents[len(cell.folder.parts) - 1]
    work = Work(cell, dag.spec_of(cell.network, cell.treatment, cell.scale), results, data)
    if record.spec_digest != work.digest:
        raise DeployError(
            f"{folder}: the record is of another spec than experiments/ has now (its digest "
            "differs): run the stage again, or check out the commit that made it"
        )
    return work


def network(work: Work) -> tuple[nn.Module, dict[str, float | Tensor] | None]:
    """The network of a finished stage in fp32 and eval mode, and of an INT8 one its scales."""
    phase = work.spec.last_phase
    model = work.model(phase, work.task(phase)).eval()
    weights = recorded_weights(work.out / f"{FILES[work.cell.stage]}.safetensors")
    if work.cell.stage != "quantize":
        load(model, weights)
        return model, None
    return model, scales_of(restored(model, weights))


def scales_of(quantized: Quantized) -> dict[str, float | Tensor]:
    """The scales of an INT8 network as sparse24.swap takes them: of inputs, adds and weights."""
    return quantized.input_scales | quantized.scales
