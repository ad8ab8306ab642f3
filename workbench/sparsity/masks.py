"""Masks: parameter name -> mask, with the pattern and rule they came from."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from workbench.sparsity.layouts import CHANNELS_SECOND, Layout, reflatten
from workbench.sparsity.names import SparsityError, refuse_unknown
from workbench.sparsity.safetensors_file import read_safetensors, whole_header
from workbench.sparsity.zeroing import clear, local, placed, unwrapped

_FORMAT = "workbench-masks-3"
FORMATS = (_FORMAT, "workbench-masks-2")  # 2: without layouts


class Masks(Mapping[str, Tensor]):
    """Parameter name -> bool mask (True where kept), in the order of the model."""

    def __init__(
        self,
        masks: Mapping[str, Tensor],
        pattern: Mapping[str, Any],
        rule: str,
        layouts: Mapping[str, Layout] | None = None,
    ) -> None:
        """Masks of dtype bool, the pattern they follow, the rule that chose their layers.

        `layouts` tells where input channels lie, for masks in which it is not dimension 1.
        """
        for name, mask in masks.items():
            if mask.dtype != torch.bool:
                raise SparsityError(f"mask of {name} is {mask.dtype}; only torch.bool is allowed")
        self._masks = dict(masks)
        self.pattern = dict(pattern)
        self.rule = rule
        given = {name: (layouts or {}).get(name, CHANNELS_SECOND) for name in masks}
        self._layouts = {n: layout for n, layout in given.items() if layout != CHANNELS_SECOND}

    def layout(self, name: str) -> Layout:
        """Where the input channels lie in the mask of the parameter `name`."""
        return self._layouts.get(name, CHANNELS_SECOND)

    def __getitem__(self, name: str) -> Tensor:
        """Mask of the parameter `name`."""
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        """Parameter names."""
        return iter(self._masks)

    def __len__(self) -> int:
        """Number of masked parameters."""
        return len(self._masks)

    def __repr__(self) -> str:
        """Pattern, rule and size, not the masks."""
        return f"Masks({len(self)} layers, pattern={self.pattern}, rule={self.rule!r})"

    def pairs(self, model: nn.Module) -> list[tuple[str, nn.Parameter, Tensor]]:
        """(name, parameter, mask where the parameter lies); names and shapes are checked.

        Names are those of the user's own module, inside whatever wraps it.
        """
        parameters = dict(unwrapped(model).named_parameters(remove_duplicate=False))
        refuse_unknown("parameter in the masks, absent from the model", self, parameters)
        for name, mask in self.items():
            if mask.shape != parameters[name].shape:
                raise SparsityError(
                    f"mask of {name} has shape {list(mask.shape)}, the model's weight "
                    f"{list(parameters[name].shape)}; use the masks of this model"
                )
        return [
            (name, parameters[name], placed(mask, parameters[name])) for name, mask in self.items()
        ]

    def apply(self, model: nn.Module) -> None:
        """Zero the pruned weights of `model` in place."""
        for _, parameter, mask in self.pairs(model):
            clear(parameter, mask)
        reflatten(model)

    def verify(self, model: nn.Module) -> None:
        """Raise SparsityError if a pruned weight of `model` is not zero."""
        broken = []
        for name, parameter, mask in self.pairs(model):
            # `>` of bools: not zero, and not kept; NaN is not zero
            if count := int(((local(parameter) != 0) > local(mask)).count_nonzero()):
                broken.append(f"{name} ({count} of {mask.numel()})")
        if broken:
            raise SparsityError(
                f"non-zero weights outside the mask in {len(broken)} layers: {', '.join(broken)}; "
                "apply the masks, and hold them on every optimizer that steps these weights"
            )

    def verify_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise SparsityError unless `tensors` has every masked weight, zero outside its mask."""
        refuse_unknown("weight in the masks, absent from the tensors", self, tensors)
        for name, mask in self.items():
            weight, mask = tensors[name], mask.to(tensors[name].device)
            if weight.shape != mask.shape:
                raise SparsityError(
                    f"mask of {name} has shape {list(mask.shape)}, the weight {list(weight.shape)}"
                )
            outside = ((weight != 0) > mask).nonzero()
            if len(outside):
                first, group = outside[0].tolist(), ""
                if of := self.pattern.get("of"):
                    channel = first[self.layout(name).input_dim]
                    group = f" (group {channel // of} of input channels)"
                raise SparsityError(
                    f"{name}: {len(outside)} weights outside the mask are not zero, the first "
                    f"{weight[tuple(first)].item()} at index {first}{group}; "
                    "apply the masks they were pruned with"
                )

    def density(self) -> float:
        """Kept share of the masked weights; 1.0 if there are none."""
        total = sum(mask.numel() for mask in self.values())
        return sum(int(mask.count_nonzero()) for mask in self.values()) / total if total else 1.0

    def digest(self) -> str:
        """SHA-256 (hex) over the sorted names, shapes and packed bits; the same on any device."""
        state = hashlib.sha256()
        for name in sorted(self):
            state.update(json.dumps([name, list(self[name].shape)]).encode())
            state.update(memoryview(_pack(self[name]).numpy()))
        return state.hexdigest()

    def to(self, device: torch.device | str) -> "Masks":
        """The same masks on `device`."""
        moved = {name: mask.to(device) for name, mask in self.items()}
        return Masks(moved, self.pattern, self.rule, self._layouts)

    def select(self, names: Iterable[str]) -> "Masks":
        """Only the masks of `names`."""
        names = set(names)
        refuse_unknown("mask", sorted(names), self)
        chosen = {name: mask for name, mask in self.items() if name in names}
        return Masks(chosen, self.pattern, self.rule, self._layouts)

    def renamed(self, change: Mapping[str, str] | Callable[[str], str]) -> "Masks":
        """The same masks under other names: a function of the name, or old prefix -> new prefix.

        The longest matching prefix is replaced ("" matches every name); others stay as they are.
        """
        new_name = change if callable(change) else lambda name: _replace_prefix(name, change)
        renamed = {new_name(name): mask for name, mask in self.items()}
        if len(renamed) != len(self):
            raise SparsityError(f"renaming merges {len(self)} names into {len(renamed)}")
        layouts = {new_name(name): layout for name, layout in self._layouts.items()}
        return Masks(renamed, self.pattern, self.rule, layouts)

    def fitted_to(self, model: nn.Module) -> tuple["Masks", list[str]]:
        """The masks whose parameters `model` has, and the names that were dropped."""
        present = dict(unwrapped(model).named_parameters(remove_duplicate=False))
        dropped = [name for name in self if name not in present]
        if dropped and len(dropped) == len(self):
            refuse_unknown("parameter in the masks (all of them)", dropped[:1], present)
        kept = self.select(name for name in self if name in present)
        kept.pairs(model)  # shapes
        return kept, dropped

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file: 1 bit per weight, which is 2 bits per kept weight of 2:4.

        Pattern, rule, shapes, layouts and digest are its header.
        """
        header = {
            "pattern": self.pattern,
            "rule": self.rule,
            "shapes": {name: list(mask.shape) for name, mask in self.items()},
            "layouts": {name: asdict(layout) for name, layout in self._layouts.items()},
            "digest": self.digest(),
        }
        # one entry: safetensors writes several in an order that changes from run to run
        metadata = {_FORMAT: json.dumps(header)}
        save_file({name: _pack(mask) for name, mask in self.items()}, Path(path), metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Masks":
        """The masks written by `save`, on the CPU; a damaged or foreign file is refused."""
        packed, metadata = read_safetensors(path)
        known = [name for name in FORMATS if name in metadata]
        if not known:
            raise SparsityError(
                f"{path}: header has {sorted(metadata)}; only mask files written by Masks.save "
                f"({', '.join(FORMATS)}) are allowed"
            )
        with whole_header(path):
            header = json.loads(metadata[known[0]])
            unpacked = {
                name: _unpack(packed[name], shape) for name, shape in header["shapes"].items()
            }
            layouts = {name: Layout(**given) for name, given in header.get("layouts", {}).items()}
            masks = cls(unpacked, header["pattern"], header["rule"], layouts)
            if masks.digest() != header["digest"]:
                raise SparsityError(
                    f"{path}: the masks do not match their digest; write the file again"
                )
        return masks


def _replace_prefix(name: str, prefixes: Mapping[str, str]) -> str:
    matching = [prefix for prefix in prefixes if name.startswith(prefix)]
    if not matching:
        return name
    longest = max(matching, key=len)
    return prefixes[longest] + name[len(longest) :]


def _pack(mask: Tensor) -> Tensor:
    """Bytes of 8 mask bits each, lowest bit first, in row-major order, on the CPU."""
    flat = mask.contiguous().flatten()
    flat = nn.functional.pad(flat.view(torch.uint8), (0, -flat.numel() % 8)).view(torch.int64)
    # 8 bytes of 0 or 1 to 8 bits: this product moves byte i to bit 56 + i, without carries
    return ((flat * 0x0102040810204080) >> 56).to(torch.uint8).cpu()


def _unpack(packed: Tensor, shape: list[int]) -> Tensor:
    bits = torch.arange(8, dtype=torch.uint8)
    flat = (packed[:, None] >> bits & 1).view(torch.bool).flatten()
    return flat[: math.prod(shape)].reshape(shape)
