"""ONNX with Q/DQ nodes: the INT8 network for onnxruntime, TensorRT and other engines.

The exporter of PyTorch writes the network of the integers' values; then each layer's weight becomes
int8 behind a DequantizeLinear per output channel, and each of its inputs goes through
QuantizeLinear and DequantizeLinear, as do both inputs of an INT8 add. ONNX clips at -128 where the
workbench clips at -127.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from workbench.quant.convert import Quantized
from workbench.quant.layers import QuantError, weights_of

OPSET = 21
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def to_onnx(
    model: nn.Module, quantized: Quantized, args: tuple, kwargs: Mapping[str, Any] | None = None
) -> Any:
    """The onnx.ModelProto of the INT8 network, whose model has the values of its integers.

    `args` and `kwargs` are an example call; the first dimension of their tensors may vary, and all
    of tokens'. Refused: INT8 LSTM and attention, whose ONNX operators have no inside to put Q/DQ
    nodes into.
    """
    onnx = _library()
    inside = [s for s in quantized.input_scales if s.endswith((".hidden", ".weights"))]
    if inside or any(":matmul" in site for site in quantized.input_scales):
        raise QuantError(f"no Q/DQ form of {inside or 'products'}; keep them in FP16 to export")
    dims = torch.utils._pytree.tree_map(_varying, (args, dict(kwargs or {})))
    program = torch.onnx.export(
        model.cpu().eval(),
        args,
        kwargs=dict(kwargs or {}),
        dynamic_shapes=(*dims[0], *dims[1].values()),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    proto = program.model_proto
    graph = _Graph(onnx, proto.graph, quantized)
    for name, parameter in _layers(model, quantized).items():
        graph.quantize_layer(name, parameter)
    graph.quantize_adds()
    graph.finish()
    onnx.checker.check_model(proto)
    return proto


class _Graph:
    """The graph being rewritten: nodes to put before others, weights to replace."""

    def __init__(self, onnx: Any, graph: Any, quantized: Quantized) -> None:
        self.onnx, self.graph, self.quantized = onnx, graph, quantized
        self.constants = {constant.name: constant for constant in graph.initializer}
        self.before: dict[int, list[Any]] = defaultdict(list)  # place of a node -> new nodes
        self.done: dict[tuple[str, str], str] = {}

    def quantize_layer(self, name: str, parameter: str) -> None:
        """Put Q/DQ on the input and an int8 weight into every node of a layer."""
        found = False
        for place, node in enumerate(self.graph.node):
            scopes = _scopes(node)
            if node.op_type in _LAYERS and scopes and scopes[-1] == name:
                node.input[0] = self._rounded(place, name, node.input[0])
                node.input[1] = self._weight(place, node, parameter)
                found = True
        if not found:
            raise QuantError(f"the ONNX graph has no node of layer {name}")

    def quantize_adds(self) -> None:
        """Put Q/DQ on both inputs of the adds; they are matched by module and order."""
        adds = defaultdict(list)
        for place, node in enumerate(self.graph.node):
            plain = not any(name in self.constants for name in node.input)
            if node.op_type == "Add" and plain and _operation(node).startswith("aten.add"):
                adds[_scopes(node)[-1]].append((place, node))
        sites = [s.removesuffix(".left") for s in self.quantized.input_scales if ":add" in s]
        sites = [site for site in sites if not site.endswith(".right")]
        for site in sites:
            module, _, number = site.partition(":add")
            count = sum(other.startswith(f"{module}:add") for other in sites)
            if count != len(adds[module]):
                raise QuantError(
                    f"{module or 'the network'} has {count} INT8 adds and {len(adds[module])} in "
                    "ONNX: they cannot be matched"
                )
            place, node = adds[module][int(number)]
            for index, side in enumerate(("left", "right")):
                node.input[index] = self._rounded(place, f"{site}.{side}", node.input[index])

    def finish(self) -> None:
        """Put the new nodes before those that use them, and drop the float weights."""
        nodes = []
        for place, node in enumerate(self.graph.node):
            nodes += [*self.before[place], node]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        used = {name for node in nodes for name in node.input}
        kept = [constant for constant in self.graph.initializer if constant.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def _rounded(self, place: int, site: str, source: str) -> str:
        if (site, source) not in self.done:
            scale = self._constant(f"{site}.input_scale", torch.tensor(self._scale(site)))
            zero = self._constant("zero", torch.tensor(0, dtype=torch.int8))
            names = [f"{source}.{site}.{kind}" for kind in ("int8", "rounded")]
            self._node(place, "QuantizeLinear", [source, scale, zero], names[0])
            self._node(place, "DequantizeLinear", [names[0], scale, zero], names[1])
            self.done[site, source] = names[1]
        return self.done[site, source]

    def _weight(self, place: int, node: Any, parameter: str) -> str:
        integers, scale = self.quantized.weights[parameter], self.quantized.scales[parameter]
        layout = self.quantized.layouts[parameter]
        if layout.input_dim == 0 and layout.groups > 1:
            raise QuantError(f"{parameter}: ONNX has no scale per channel of a grouped transpose")
        axis = 1 - layout.input_dim if layout.input_dim == 0 else 0
        stored = f"{parameter}.int8"
        if node.op_type == "MatMul":  # which wants [in, out]
            integers, axis, stored = integers.T, 1, f"{parameter}.int8_transposed"
        if (stored, "") not in self.done:
            self._constant(stored, integers.contiguous())
            self._constant(f"{parameter}.scale", scale)
            inputs = [stored, f"{parameter}.scale"]
            self._node(place, "DequantizeLinear", inputs, f"{stored}.float", axis=axis)
            self.done[stored, ""] = f"{stored}.float"
        return self.done[stored, ""]

    def _scale(self, site: str) -> float:
        return self.quantized.input_scales[site]

    def _node(self, place: int, kind: str, inputs: list[str], output: str, **with_: int) -> None:
        node = self.onnx.helper.make_node(kind, inputs, [output], name=output, **with_)
        self.before[place].append(node)

    def _constant(self, name: str, value: Tensor) -> str:
        if name not in self.constants:
            made = self.onnx.numpy_helper.from_array(value.numpy(), name)
            self.graph.initializer.append(made)
            self.constants[name] = made
        return name


def _varying(leaf: Any) -> dict[int, Any] | None:
    if not isinstance(leaf, Tensor):
        return None
    dimensions = 1 if leaf.is_floating_point() else leaf.ndim
    return dict.fromkeys(range(dimensions), torch.export.Dim.AUTO)


def _layers(model: nn.Module, quantized: Quantized) -> dict[str, str]:
    """Layer -> its weight's name."""
    modules = dict(model.named_modules())
    return {name: next(iter(weights_of(name, modules[name]))) for name in quantized.layers}


def _scopes(node: Any) -> list[str]:
    """The modules around a node, outermost first; a repeated call is told by @1 and so on."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            return [re.sub(r"@\d+", "", name) for name in ast.literal_eval(entry.value)[:-1]]
    return []


def _operation(node: Any) -> str:
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.class_hierarchy":
            return ast.literal_eval(entry.value)[-1]
    return ""


def _library() -> Any:
    try:
        import onnx
        import onnxscript  # noqa: F401 - what PyTorch's exporter is written in
    except ImportError as error:
        raise QuantError(
            f"ONNX export needs {error.name}: install the extra `onnx` of this package"
        ) from error
    return onnx
