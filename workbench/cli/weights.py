"""The commands about files of weights: export, verify and onnx."""

import argparse
from pathlib import Path

from workbench import files
from workbench.cli import arguments as shared


def register(commands: shared.Commands) -> None:
    """Add export, verify and onnx."""
    added = shared.add(
        commands, "export", _export, "a finished stage's weights in one file, 2:4 compressed"
    )
    shared.add_cell(added)
    added.add_argument("--stage", default="retrain", choices=("prune", "retrain", "quantize"))
    added.add_argument("--out", type=Path, required=True, help="the file to write")

    added = shared.add(
        commands, "verify", _verify, "whether the weights of a checkpoint are 2:4, of any tool"
    )
    added.add_argument("file", type=Path)
    added.add_argument("--masks", type=Path, help="a mask file that the weights must follow")

    added = shared.add(
        commands, "onnx", _onnx, "write a network's INT8 with Q/DQ nodes to an ONNX file"
    )
    shared.add_cell(added)
    added.add_argument("file", type=Path)


def _export(arguments: argparse.Namespace) -> None:
    from workbench.stages.export import export

    print(export(shared.work(shared.cell(arguments, arguments.stage)), arguments.out))


def _verify(arguments: argparse.Namespace) -> None:
    from workbench import sparsity

    masks = sparsity.Masks.load(arguments.masks) if arguments.masks else None
    print(sparsity.verify_file(arguments.file, masks))


def _onnx(arguments: argparse.Namespace) -> None:
    from workbench.stages.to_onnx import onnx_of

    proto = onnx_of(shared.work(shared.cell(arguments, "quantize")))
    with files.whole(arguments.file) as part:
        part.write_bytes(proto.SerializeToString())
    print(f"{arguments.file}: {arguments.file.stat().st_size:,} bytes")
