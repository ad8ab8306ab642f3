"""Files: an INT8 network from the tensors of its file, plain or compressed, and its model."""

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from workbench.quant.convert import FOLDED, Quantized
from workbench.quant.fold import strip
from workbench.quant.layers import QuantError, layers, spread, weights_of
from workbench.sparsity.layouts import layout_of

INPUT_SCALE = ".input_scale"


def restored(model: nn.Module, tensors: Mapping[str, Tensor]) -> Quantized:
    """The INT8 network of `Quantized.tensors`; `model`, freshly built, becomes its fp32 form.

    Norms that were folded become identities, and weights their integers times their scales.
    """
    if FOLDED not in tensors:
        raise QuantError(f"no INT8 network: {FOLDED} is absent; give what stage quantize wrote")
    folded = json.loads(bytes(tensors[FOLDED].tolist()))
    strip(model, folded)
    ends = len(INPUT_SCALE)
    inputs = {n[:-ends]: t.item() for n, t in tensors.items() if n.endswith(INPUT_SCALE)}
    weights, scales, layouts, floats = {}, {}, {}, {}
    for name, module in layers(model).items():
        for parameter, weight in weights_of(name, module).items() if name in inputs else ():
            weights[parameter], scales[parameter] = _pair(tensors, parameter, weight)
            layouts[parameter] = layout_of(module)
            floats[parameter] = weights[parameter] * spread(module, scales[parameter], weight)
    known = {FOLDED, *weights, *(f"{parameter}.scale" for parameter in weights)}
    rest = {
        name: value
        for name, value in tensors.items()
        if name not in known and not name.endswith(INPUT_SCALE)
    }
    _load(model, floats | rest)
    return Quantized(weights, scales, layouts, inputs, rest, folded)


def _pair(tensors: Mapping[str, Tensor], name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
    found, scale = tensors.get(name), tensors.get(f"{name}.scale")
    if found is None or scale is None or found.shape != weight.shape:
        raise QuantError(f"the INT8 network is of another model ({name} or its scale)")
    return found, scale


def _load(model: nn.Module, floats: dict[str, Any]) -> None:
    own = model.state_dict()
    fitting = {name for name, v in floats.items() if name in own and own[name].shape == v.shape}
    tied = {own[name].data_ptr() for name in fitting}
    absent = [name for name, value in own.items() if value.data_ptr() not in tied]
    if foreign := sorted([*(floats.keys() - fitting), *absent]):
        raise QuantError(
            f"the INT8 network is of another model ({', '.join(foreign[:3])}: absent or of another "
            "shape)"
        )
    model.load_state_dict(floats, strict=False)
