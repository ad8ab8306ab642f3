"""Compressed: a checkpoint in one safetensors file, its 2:4 weights as values and 2-bit metadata.

A 2:4 weight of n values takes n / 2 values and n / 8 bytes of metadata: 12.5 % over 16-bit values,
25 % over 8-bit ones. Groups lie in the order [out, *kernel, in / 4]. The entry `<name>.values` is
[out, *kernel, in / 2]; `<name>.indices` has a nibble per group, the lower one first: its low two
bits are the position of the first kept value, its high two bits that of the second.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from workbench.sparsity.layouts import Layout
from workbench.sparsity.masks import Masks
from workbench.sparsity.measure import refuse_unless_nm
from workbench.sparsity.names import SparsityError
from workbench.sparsity.safetensors_file import read_safetensors, whole_header

FORMAT = "workbench-2to4-1"
VALUES, INDICES = ".values", ".indices"


def save_compressed(
    tensors: Mapping[str, Tensor], masks: Masks, path: str | os.PathLike[str]
) -> None:
    """Write `tensors` (a state dict), the weights that `masks` names as values and metadata.

    Weights that are not zero outside their mask, and masks that do not keep exactly 2 of 4, are
    refused by layer and group. Zeros are read back as +0; all else comes back bit by bit.
    """
    masks.verify_tensors(tensors)
    for name, mask in masks.items():
        refuse_unless_nm(f"mask of {name}", mask, 2, 4, masks.layout(name), exactly=True)
    entries: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name not in masks:
            entries[name] = tensor.detach().cpu().contiguous()
            continue
        mask, layout = masks[name].to(tensor.device), masks.layout(name)
        values, indices = compress(tensor.detach(), mask, layout)
        entries |= {name + VALUES: values.cpu(), name + INDICES: indices.cpu()}
    header = {
        "weights": {
            name: {"shape": list(masks[name].shape), "layout": asdict(masks.layout(name))}
            for name in masks
        },
        "pattern": masks.pattern,
        "rule": masks.rule,
        "digest": masks.digest(),
    }
    save_file(entries, Path(path), metadata={FORMAT: json.dumps(header)})


def load_compressed(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], Masks]:
    """The tensors and the masks written by `save_compressed`, on the CPU."""
    entries, metadata = read_safetensors(path)
    if FORMAT not in metadata:
        raise SparsityError(
            f"{path}: header has {sorted(metadata)}; only files written by save_compressed "
            f"({FORMAT}) are allowed"
        )
    with whole_header(path):
        header = json.loads(metadata[FORMAT])
        masks, layouts = {}, {}
        for name, told in header["weights"].items():
            layouts[name] = Layout(**told["layout"])
            packed = entries.pop(name + VALUES), entries.pop(name + INDICES)
            try:
                entries[name], masks[name] = decompress(*packed, told["shape"], layouts[name])
            except SparsityError as error:
                raise SparsityError(f"{path}: {name}: {error}") from error
        found = Masks(masks, header["pattern"], header["rule"], layouts)
        if found.digest() != header["digest"]:
            raise SparsityError(
                f"{path}: the masks do not match their digest; write the file again"
            )
    return entries, found


def compress(weight: Tensor, mask: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Values [out, *kernel, in / 2] and packed indices [groups / 2] of a weight with a 2:4 mask."""
    kept = layout.oriented(mask).movedim(1, -1).unflatten(-1, (-1, 4))
    groups = layout.oriented(weight).movedim(1, -1).unflatten(-1, (-1, 4))
    positions = kept.nonzero()[:, -1].view(-1, 2)  # ascending
    values = groups.reshape(-1, 4).gather(1, positions)
    nibbles = (positions[:, 0] | positions[:, 1] << 2).byte()
    nibbles = torch.nn.functional.pad(nibbles, (0, len(nibbles) % 2)).view(-1, 2)
    return values.view(*groups.shape[:-2], -1), nibbles[:, 0] | nibbles[:, 1] << 4


def decompress(
    values: Tensor, indices: Tensor, shape: list[int], layout: Layout
) -> tuple[Tensor, Tensor]:
    """The weight and its mask, of the given shape."""
    count = math.prod(shape) // 4
    if values.numel() != 2 * count or indices.numel() != -(-count // 2):
        raise SparsityError(
            f"{values.numel()} values and {indices.numel()} bytes of metadata do not make {shape}"
        )
    nibbles = torch.stack([indices & 15, indices >> 4], 1).flatten()[:count].long()
    positions = torch.stack([nibbles & 3, nibbles >> 2], 1)
    if (wrong := (positions[:, 0] >= positions[:, 1]).nonzero()).numel():
        group = int(wrong[0])
        raise SparsityError(f"metadata of group {group} is {positions[group].tolist()}, not rising")
    weight = torch.zeros(count, 4, dtype=values.dtype).scatter_(1, positions, values.view(-1, 2))
    mask = torch.zeros(count, 4, dtype=torch.bool).scatter_(1, positions, True)
    rows = [*values.shape[:-1], 2 * values.shape[-1]]  # [out, *kernel, in / groups]

    def restored(groups: Tensor) -> Tensor:
        return layout.restored(groups.view(rows).movedim(-1, 1)).contiguous()

    return restored(weight), restored(mask)
