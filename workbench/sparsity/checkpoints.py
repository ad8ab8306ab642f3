"""Checkpoints: files of other tools and of ours read into tensors and masks, and verified."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from workbench.files import DAMAGED
from workbench.sparsity import compressed
from workbench.sparsity.eligibility import weights
from workbench.sparsity.layouts import CHANNELS_SECOND, Layout, layout_of
from workbench.sparsity.masks import FORMATS, Masks
from workbench.sparsity.measure import is_nm, refuse_unless_nm
from workbench.sparsity.names import SparsityError
from workbench.sparsity.onnx_file import read_onnx
from workbench.sparsity.patterns import nm
from workbench.sparsity.prune import TWO_OF_FOUR

_ASP = ("__", "_mma_mask")  # buffer of a parameter: <module>.__<parameter>_mma_mask
_ASP_PRUNED = "_mma_pruned_p"  # ASP's copy of pruned values, never trained
_MODEL_OPTIMIZER = "_weight_mask"  # buffer beside <module>.weight, whose pruned values are kept
_NESTED = ("state_dict", "model_state_dict", "model")
_TRANSPOSED = Layout(0)
_SPARSE = 0.6  # a matrix with no more non-zeros than this was meant to be pruned


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by parameter name, the masks found with them, and which tool's form it was."""

    tensors: dict[str, Tensor]
    masks: Masks
    form: str


def read_checkpoint(
    source: str | os.PathLike[str] | Mapping[str, Any], model: nn.Module | None = None
) -> Checkpoint:
    """A checkpoint's tensors and masks, from a file or a state dict.

    Read are apex ASP (mask buffers), Model Optimizer (`_weight_mask`; its weights keep their
    pruned values, so apply the masks), our compressed files, ONNX, and any checkpoint whose weights
    are 2:4 by their zeros. Masks that do not keep 2 of 4 are refused by layer and group. `model`
    tells which weights belong to transposed convolutions; without it, groups that fit only along
    the first dimension are taken for them.
    """
    if not isinstance(source, Mapping):
        metadata = _metadata(Path(source))
        if compressed.FORMAT in metadata:
            return Checkpoint(*compressed.load_compressed(source), "compressed 2:4")
        if any(name in metadata for name in FORMATS):
            return Checkpoint({}, Masks.load(source), "masks")
        source = _read(Path(source))
    tensors = {name: value for name, value in _flat(source).items() if torch.is_tensor(value)}
    layouts = {} if model is None else {n: layout_of(m) for n, (m, _) in weights(model).items()}
    for form, found in (("apex ASP", _asp(tensors)), ("Model Optimizer", _optimizer(tensors))):
        if found:
            plain = {n: t for n, t in tensors.items() if not _is_buffer(n)}
            return Checkpoint(plain, _from_buffers(found, plain, layouts, form), form)
    return Checkpoint(tensors, _from_zeros(tensors, layouts), "zeros")


def verify_file(path: str | os.PathLike[str], masks: Masks | None = None) -> str:
    """One line on what a file holds; raises SparsityError if its weights are not what they claim.

    With `masks`, the weights must be zero outside them. Without, every matrix with at most 60 % of
    non-zeros must be 2:4: a file that lost its pattern is told by the first layer and group.
    """
    checkpoint = read_checkpoint(path)
    if masks is not None:
        masks.verify_tensors(checkpoint.tensors)
        return f"{path}: {checkpoint.form}; zero outside {len(masks)} masks"
    if checkpoint.form == "zeros":
        for name, tensor in checkpoint.tensors.items():
            if name not in checkpoint.masks and _looks_pruned(tensor):
                refuse_unless_nm(name, tensor, 2, 4)
    elif checkpoint.form == "apex ASP":
        checkpoint.masks.verify_tensors(checkpoint.tensors)
    found = checkpoint.masks
    if found.pattern.get("kind") == "nm":
        keep, of = found.pattern["keep"], found.pattern["of"]
        for name, mask in found.items():
            refuse_unless_nm(f"mask of {name}", mask, keep, of, found.layout(name), exactly=True)
    if not found:
        raise SparsityError(f"{path}: no weight of {len(checkpoint.tensors)} tensors is 2:4")
    kept = sum(int(mask.count_nonzero()) for mask in found.values())
    total = sum(mask.numel() for mask in found.values())
    return (
        f"{path}: {checkpoint.form}; {len(found)} weights of pattern {found.pattern}, {kept:,} of "
        f"{total:,} kept; mask digest {found.digest()}"
    )


def _from_buffers(
    found: dict[str, Tensor], tensors: dict[str, Tensor], given: Mapping[str, Layout], form: str
) -> Masks:
    layouts = {name: given.get(name, CHANNELS_SECOND) for name in found}
    for name, mask in found.items():
        if name not in tensors:
            raise SparsityError(
                f"{form}: a mask for {name}, which the checkpoint lacks; its weights begin with "
                f"{', '.join(list(tensors)[:3])}"
            )
        if mask.all():
            raise SparsityError(
                f"{form}: the mask of {name} keeps everything, so pruning was set up but never "
                "done; in ASP compute_sparse_masks was not called"
            )
        refuse_unless_nm(f"mask of {name}", mask, 2, 4, layouts[name], exactly=True)
    return Masks({n: m.bool() for n, m in found.items()}, TWO_OF_FOUR, form, layouts)


def _from_zeros(tensors: dict[str, Tensor], given: Mapping[str, Layout]) -> Masks:
    """Masks of the weights that are 2:4; where zeros leave a choice, the lowest index is kept."""
    masks, layouts = {}, {}
    for name, tensor in tensors.items():
        if not _looks_pruned(tensor):
            continue
        candidates = [given[name]] if name in given else [CHANNELS_SECOND, _TRANSPOSED]
        layout = next((one for one in candidates if is_nm(tensor, 2, 4, one)), None)
        if layout is not None:
            nonzero = layout.oriented((tensor != 0).float())
            masks[name], layouts[name] = layout.restored(nm(nonzero, 2, 4)), layout
    return Masks(masks, TWO_OF_FOUR, "zeros", layouts)


def _looks_pruned(tensor: Tensor) -> bool:
    if tensor.dim() < 2 or not (tensor.is_floating_point() or tensor.dtype == torch.int8):
        return False
    return 0 < int(tensor.count_nonzero()) <= _SPARSE * tensor.numel()


def _is_buffer(name: str) -> bool:
    leaf = name.rpartition(".")[2]
    return leaf.endswith((_ASP[1], _ASP_PRUNED)) or leaf == _MODEL_OPTIMIZER


def _asp(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, tensor in tensors.items():
        path, dot, leaf = name.rpartition(".")
        if leaf.startswith(_ASP[0]) and leaf.endswith(_ASP[1]):
            found[f"{path}{dot}{leaf[len(_ASP[0]) : -len(_ASP[1])]}"] = tensor
    return found


def _optimizer(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removesuffix(_MODEL_OPTIMIZER) + "weight": tensor
        for name, tensor in tensors.items()
        if name.rpartition(".")[2] == _MODEL_OPTIMIZER
    }


def _flat(source: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in _NESTED:
        if isinstance(source.get(key), Mapping):
            return source[key]
    return source


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError:
        return {}  # `_read` decides whether it is another kind of checkpoint
    except FileNotFoundError as error:
        raise SparsityError(f"{path}: no such file") from error


def _read(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".onnx":
        return read_onnx(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError:
        pass  # torch.save's files are read below
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        why = " ".join(str(error).split())[:120]
        raise SparsityError(
            f"{path}: neither a whole safetensors file nor a torch checkpoint of plain tensors "
            f"({why}); save the state dict alone"
        ) from error
    if not isinstance(found, Mapping):
        raise SparsityError(f"{path}: holds a {type(found).__name__}, not a state dict")
    return found
