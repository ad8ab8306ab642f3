"""The weights that stages hand on: read, believed only with their record, and put into networks."""

from fnmatch import fnmatch
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from workbench import provenance, sparsity
from workbench.record import read

Weights = dict[str, torch.Tensor]


class StageError(RuntimeError):
    """A stage that cannot run or whose result breaks a promise."""


def read_weights(path: Path) -> Weights:
    """The weights in a stage's file."""
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise StageError(f"{path} is absent; run the stage that makes it") from error
    except SafetensorError as error:
        raise StageError(
            f"{path} is not a whole safetensors file ({error}); delete it and run "
            "the stage that makes it again"
        ) from error


def recorded_weights(path: Path) -> Weights:
    """The weights in a stage's file, refused unless they are those of the record beside it."""
    weights, record = read_weights(path), path.with_name("record.json")
    if record.exists() and provenance.sha256(path) != read(record).outputs[path.name].sha256:
        raise StageError(
            f"{path}: this is not the file of the record beside it (sha256 differs): damaged, or "
            "made again by a run that did not end; run the stage that makes it again"
        )
    return weights


def recorded_masks(path: Path) -> sparsity.Masks:
    """The masks in a stage's file, refused unless its record names their digest."""
    if not path.exists():
        raise StageError(f"{path} is absent; run the stage that makes it")
    masks, recorded = sparsity.Masks.load(path), read(path.with_name("record.json")).mask_digest
    found = masks.digest() if masks else ""
    if found != recorded:
        raise StageError(
            f"{path}: these are not the masks of the record beside it (digest {found[:12] or '-'}, "
            f"recorded {recorded[:12] or '-'}); run the stage that makes them again"
        )
    return masks


def state(model: nn.Module) -> Weights:
    """The weights of a model on the CPU, a tied one once."""
    seen: dict[int, str] = {}
    kept = {}
    for name, value in model.state_dict().items():
        if value.data_ptr() not in seen or not value.numel():
            seen[value.data_ptr()] = name
            kept[name] = value.detach().cpu().clone()
    return kept


def load(model: nn.Module, weights: Weights, may_lack: tuple[str, ...] = ()) -> None:
    """Load the weights of this very network; those of another are refused.

    Only what matches a pattern of `may_lack` may be absent and stays as it was.
    """
    left_out = take(model, weights)
    fresh = [n for n in left_out["fresh"] if not any(fnmatch(n, each) for each in may_lack)]
    if names := [*fresh, *left_out["unused"]]:
        raise StageError(
            f"the weights are of another network ({', '.join(names[:3])}: absent or of another "
            "shape); run the stages from dense on again"
        )


def take(model: nn.Module, weights: Weights, prefix: str = "") -> dict[str, list[str]]:
    """Load the weights that the model has under `prefix`; what was left out, by name."""
    own = model.state_dict()
    renamed = {prefix + name: value for name, value in weights.items()}
    fitting = {k: v for k, v in renamed.items() if k in own and own[k].shape == v.shape}
    if not fitting:
        raise StageError(
            "none of the weights fit the network; their names begin with "
            f"{next(iter(renamed), '')!r}, the network's with {next(iter(own))!r}"
        )
    model.load_state_dict(fitting, strict=False)
    tied = {own[name].data_ptr() for name in fitting}
    return {
        "fresh": sorted(k for k, v in own.items() if k not in fitting and v.data_ptr() not in tied),
        "unused": sorted(set(renamed) - set(fitting)),
    }
