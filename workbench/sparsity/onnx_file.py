"""Weights of an ONNX file, as `workbench onnx` and PyTorch's exporter write it."""

from pathlib import Path

import torch
from torch import Tensor

from workbench.sparsity.names import SparsityError

TRANSPOSED = "_transposed"  # of a MatMul's weight, stored as [in, out]


def read_onnx(path: Path) -> dict[str, Tensor]:
    """The constants of the graph by name, weights as [out, in]; files beside it are not opened."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise SparsityError(
            f"{path}: reading ONNX needs {error.name}: install the extra `onnx` of this package"
        ) from error
    try:
        model = onnx.load_model(path, load_external_data=False)
        found = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    except (DecodeError, ValueError, TypeError, KeyError) as error:
        why = " ".join(str(error).split())[:120]
        raise SparsityError(
            f"{path}: not a whole ONNX file with its weights inside ({why}); export it again"
        ) from error
    if not found:
        raise SparsityError(f"{path}: an ONNX file without constants; export the whole model")
    tensors = {
        name: torch.from_numpy(array.copy())
        for name, array in found.items()
        if array.dtype.kind in "fiub" and array.dtype.itemsize <= 8
    }
    return {n: t.T if n.endswith(TRANSPOSED) and t.dim() == 2 else t for n, t in tensors.items()}
