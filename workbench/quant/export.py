"""Export: an INT8 network as one safetensors file, its 2:4 weights at half the values.

A weight of which every group of four input channels has at most two non-zeros becomes
    <weight>.values     int8   [out, *kernel, in / 2]   the kept two of each group, in order
    <weight>.metadata   uint8  [groups / 2]             four bits a group: first | second << 2
rows in C order (output channel, kernel place, input channel: KRSC), groups along the input
channels, the earlier group in the low half of a byte, an odd number filled up with 0. `first` and
`second` are the places of the kept two, the four bits one of 4, 8, 9, 12, 13 and 14: the order of
mma.sp's ordered_metadata, with the zeros that CUTLASS's compressor keeps where a group has fewer
than two values. Other weights stay int8 in their own shape under their own name. Scales are
<weight>.scale, fp32 [out], and <site>.input_scale, fp32; the header tells layouts, shapes and which
norms are folded.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from workbench.quant.convert import Quantized
from workbench.quant.fold import strip
from workbench.quant.layers import QuantError
from workbench.sparsity import is_nm
from workbench.sparsity.layouts import Layout

FORMAT = "workbench-int8-1"


def packed(quantized: Quantized) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the header of the file of an INT8 network."""
    tensors = dict(quantized.rest)
    shapes = {}
    for name, integers in quantized.weights.items():
        layout = quantized.layouts[name]
        if is_nm(integers, 2, 4, layout):
            shapes[name] = list(layout.oriented(integers).shape)
            values, metadata = compressed(layout.oriented(integers).cpu())
            tensors |= {f"{name}.values": values, f"{name}.metadata": metadata}
        else:
            tensors[name] = integers
        tensors[f"{name}.scale"] = quantized.scales[name]
    for site, scale in quantized.input_scales.items():
        tensors[f"{site}.input_scale"] = torch.tensor(scale)
    header = {
        "layouts": {name: asdict(layout) for name, layout in quantized.layouts.items()},
        "compressed": shapes,  # [out, in / groups, *kernel]
        "input_scales": list(quantized.input_scales),
        "folded": quantized.folded,
    }
    return tensors, {FORMAT: json.dumps(header)}


def read(path: Path) -> Quantized:
    """The INT8 network in a file written from `packed`; a damaged or foreign file is refused."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(FORMAT, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise QuantError(f"{path}: not a whole safetensors file ({error})") from error
    if header is None:
        raise QuantError(f"{path}: not an INT8 network of this workbench ({FORMAT})")
    layouts = {name: Layout(**layout) for name, layout in header["layouts"].items()}
    weights, scales = {}, {}
    for name, layout in layouts.items():
        if shape := header["compressed"].get(name):
            parts = (tensors.pop(f"{name}.{part}") for part in ("values", "metadata"))
            weights[name] = layout.restored(decompressed(*parts, shape))
        else:
            weights[name] = tensors.pop(name)
        scales[name] = tensors.pop(f"{name}.scale")
    inputs = {site: tensors.pop(f"{site}.input_scale").item() for site in header["input_scales"]}
    return Quantized(weights, scales, layouts, inputs, tensors, header["folded"])


def restore(model: nn.Module, quantized: Quantized) -> None:
    """Give a freshly built model the modules and the weights of the INT8 network, as floats."""
    strip(model, quantized.folded)
    floats: dict[str, Any] = dict(quantized.rest)
    for name, integers in quantized.weights.items():
        layout, scale = quantized.layouts[name], quantized.scales[name]
        oriented = layout.oriented(integers)
        floats[name] = layout.restored(oriented * scale.view(-1, *[1] * (oriented.ndim - 1)))
    own = model.state_dict()
    fitting = {k for k, value in floats.items() if k in own and own[k].shape == value.shape}
    tied = {own[name].data_ptr() for name in fitting}
    absent = [name for name, value in own.items() if value.data_ptr() not in tied]
    if foreign := [*(floats.keys() - fitting), *absent]:
        raise QuantError(
            f"the INT8 network is of another model ({', '.join(sorted(foreign)[:3])}: absent or of "
            "another shape)"
        )
    model.load_state_dict(floats, strict=False)


def compressed(oriented: Tensor) -> tuple[Tensor, Tensor]:
    """Values and metadata of int8 [out, in, *kernel] of which each four channels keep two."""
    groups = oriented.movedim(1, -1).unflatten(-1, (-1, 4))  # [out, *kernel, in / 4, 4]
    kept = groups != 0
    count, place = kept.sum(-1), torch.arange(4)
    first = torch.where(kept, place, 4).amin(-1)
    last = torch.where(kept, place, -1).amax(-1)
    # nothing: 0 and 1; one at 3: 0 and 3; one elsewhere: it and 3
    first = torch.where((count == 0) | ((count == 1) & (last == 3)), 0, first)
    last = torch.where(count == 0, 1, torch.where(count == 1, 3, last))
    values = groups.gather(-1, torch.stack([first, last], -1)).flatten(-2)
    nibbles = nn.functional.pad((first | last << 2).flatten(), (0, first.numel() % 2))
    low, high = nibbles.view(-1, 2).unbind(1)
    return values.contiguous(), (low | high << 4).to(torch.uint8)


def decompressed(values: Tensor, metadata: Tensor, shape: list[int]) -> Tensor:
    """The weight [out, in, *kernel] again; metadata that names no two places is refused."""
    nibbles = torch.stack([metadata & 15, metadata >> 4], 1).flatten().long()
    nibbles = nibbles[: values.numel() // 2]
    places = torch.stack([nibbles & 3, nibbles >> 2], -1)
    if not (places[:, 0] < places[:, 1]).all():
        raise QuantError("the metadata of a compressed weight is damaged: places out of order")
    groups = torch.zeros(len(nibbles), 4, dtype=values.dtype)
    groups.scatter_(1, places, values.reshape(-1, 2))
    return groups.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1).contiguous()
