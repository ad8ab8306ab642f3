"""Prune a torchvision network 2:4, retrain it with the same loop, save it in one file.

    python examples/prune_torchvision.py --epochs 3

The three lines of the talk are marked. The images are ten classes of Caltech-101, shipped with the
repository; `--weights DEFAULT` starts from torchvision's ImageNet weights (a download).
"""

import argparse
import io
from pathlib import Path

import pandas as pd
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from workbench.sparsity import (
    as_text,
    explain,
    load_compressed,
    prune_trained_model,
    save_compressed,
)

DATA = Path(__file__).parent.parent / "experiments" / "data" / "caltech10"
TO_TENSOR = v2.Compose(
    [
        v2.RGB(),
        v2.Resize((64, 64)),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)


def main() -> None:
    """Train, prune, retrain, save, load and compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--weights", default=None)
    parser.add_argument("--epochs", type=int, default=3, help="of each of the two trainings")
    parser.add_argument("--limit", type=int, default=None, help="images to train on")
    parser.add_argument("--out", type=Path, default=Path("sparse.safetensors"))
    given = parser.parse_args()
    torch.manual_seed(0)
    images, labels = read("train", given.limit)
    shape = {"weights": given.weights} if given.weights else {"num_classes": 10}
    model = torchvision.models.get_model(given.model, **shape)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)

    train(model, optimizer, images, labels, given.epochs)  # 1: train dense, or load
    print(f"dense:   {accuracy(model):.1%}")
    print(as_text(model, explain(model)))
    masks = prune_trained_model(model, optimizer)  # 2: prune; the optimizer keeps the zeros
    print(f"pruned:  {accuracy(model):.1%}")
    train(model, optimizer, images, labels, given.epochs)  # 3: the same loop again
    print(f"retrained: {accuracy(model):.1%}")

    masks.verify(model)
    save_compressed(model.state_dict(), masks, given.out)
    tensors, _ = load_compressed(given.out)
    model.load_state_dict(tensors)
    print(f"{given.out}: {given.out.stat().st_size:,} bytes, mask digest {masks.digest()[:12]}")


def read(part: str, limit: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [n, 3, 64, 64] and labels [n] of a part, the first `limit` of a shuffle."""
    table = pd.read_parquet(DATA / f"{part}.parquet").sample(frac=1, random_state=0)[:limit]
    images = [TO_TENSOR(Image.open(io.BytesIO(image["bytes"]))) for image in table["image"]]
    return torch.stack(images), torch.tensor(table["label"].to_numpy())


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
    epochs: int,
) -> None:
    """Your own training loop: nothing in it knows of sparsity."""
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(32):
            loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@torch.inference_mode()
def accuracy(model: nn.Module) -> float:
    """Share of the held-out images that the network names."""
    images, labels = read("test")
    model.eval()
    return float((model(images).argmax(1) == labels).float().mean())


if __name__ == "__main__":
    main()
