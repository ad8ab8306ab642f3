"""Mutated files through every reader: a script of its own, so that a crash or a hang is seen.

    python fuzz.py READER COUNT SEED FOLDER

prints one JSON line: how many were refused by name, how many read, and what was neither.
"""

import json
import random
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from workbench import resolve
from workbench.quant.layers import QuantError
from workbench.record import RecordError, read
from workbench.sparsity import Masks, SparsityError, prune, read_checkpoint, verify_file
from workbench.sparsity.compressed import load_compressed, save_compressed
from workbench.training.resume import Resume

NAMED = (SparsityError, RecordError, QuantError, resolve.SpecError)
SECONDS = 20  # the longest that a file of some kilobytes may take
MEMORY = 6 << 30  # bytes of address space, beyond what the libraries take
RECORD = Path(__file__).resolve().parents[2] / "results/reference/smoke"


def mutated(content: bytes, draw: random.Random) -> bytes:
    """The content with one to four damages of the kinds that disks, networks and attackers do."""
    found = bytearray(content)
    for _ in range(draw.randrange(1, 5)):
        at = (
            draw.randrange(len(found) + 1)
            if draw.random() < 0.5
            else draw.randrange(min(len(found), 400) + 1)
        )  # headers are at the start, and those of zip files at the end
        kind = draw.randrange(7)
        if kind == 0:
            del found[at:]
        elif kind == 1 and at < len(found):
            found[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            found[at : at + 8] = draw.choice((b"\0" * 8, b"\xff" * 8, draw.randbytes(8)))
        elif kind == 3:
            found[at:at] = draw.randbytes(draw.randrange(1, 20))
        elif kind == 4:
            del found[at : at + draw.randrange(1, 20)]
        elif kind == 5:
            other = draw.randrange(len(found) + 1)
            found[at:at] = found[other : other + draw.randrange(1, 200)]
        else:  # another number or name, where a header has text
            digits = [i for i, byte in enumerate(found[:2000]) if chr(byte).isdigit()]
            for i in draw.sample(digits, min(2, len(digits))):
                found[i] = ord(draw.choice("0123456789-e"))
    return bytes(found)


def network() -> tuple[nn.Module, Masks]:
    """A small network and its masks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 4))
    return model, prune(model)


def readers(folder: Path) -> dict[str, tuple[Callable[[Path], None], Callable[[Path], Any]]]:
    """Reader -> (how to write a whole file, how to read one)."""
    model, masks = network()
    state = model.state_dict()

    def same(found: Masks) -> None:
        assert found.digest() == masks.digest(), "other masks were taken for these"

    def resumed(path: Path) -> None:
        home = path.parent / "home"
        (home / "resume").mkdir(parents=True, exist_ok=True)
        (home / "resume/spec_digest").write_text("d")
        path.replace(home / "resume/state.pt")
        Resume(home, "d").load("train")

    def saved(path: Path) -> None:
        whole = {"phase": "train", "curve": [{"step": 1, "loss": 0.5}], "step": 2, "model": state}
        torch.save(whole, path)

    def onnx(path: Path) -> None:
        torch.onnx.export(
            model.eval(),
            (torch.zeros(1, 8, 4, 4),),
            path,
            dynamo=True,
            external_data=False,
            verbose=False,
        )

    def recorded(path: Path) -> None:
        path.write_bytes(sorted(RECORD.rglob("record.json"))[0].read_bytes())

    def spec(path: Path) -> None:
        path.write_bytes((resolve.EXPERIMENTS / "networks/_bert.yaml").read_bytes())

    return {
        "safetensors": (lambda path: save_file(state, path), verify_file),
        "torch": (lambda path: torch.save({"model": state}, path), verify_file),
        "masks": (masks.save, lambda path: same(Masks.load(path))),
        "compressed": (
            lambda path: save_compressed(state, masks, path),
            lambda path: same(load_compressed(path)[1]),
        ),
        "any": (lambda path: save_compressed(state, masks, path), read_checkpoint),
        "resume": (saved, resumed),
        "onnx": (onnx, verify_file),
        "record": (recorded, read),
        "yaml": (spec, resolve.read_yaml),
    }


def main(name: str, count: int, seed: int, folder: Path) -> None:
    """Mutate `count` times; what neither is read nor refused by name is told with its seed."""
    write, take = readers(folder)[name]
    suffix = ".onnx" if name == "onnx" else ""
    write(folder / f"whole{suffix}")
    content = (folder / f"whole{suffix}").read_bytes()
    sys.stdout = open(folder / "printed", "w")  # noqa: SIM115 - what readers say
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    found = SimpleNamespace(named=0, read=0, strange=[])
    for number in range(seed, seed + count):
        (folder / "now").write_text(f"{name} {number}")  # for a crash
        path = folder / f"mutated{suffix}"
        path.write_bytes(mutated(content, random.Random(number)))
        signal.alarm(SECONDS)
        try:
            take(path)
            found.read += 1
        except NAMED:
            found.named += 1
        except Exception as error:  # noqa: BLE001 - what else there is, is what we look for
            found.strange.append(f"{name} {number}: {type(error).__name__}: {str(error)[:200]}")
        signal.alarm(0)
    print(json.dumps(vars(found)), file=sys.__stdout__)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
