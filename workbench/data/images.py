"""Labelled images: parquet files with encoded images, or a folder per class as ImageNet has."""

import random
from collections.abc import Sequence
from pathlib import Path

import pyarrow as arrow
import pyarrow.parquet as parquet
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from workbench.data.at_once import AtOnce, decoded, rgb, steps_of
from workbench.data.augment import Named, compose
from workbench.data.loader import Item, seeded
from workbench.data.source import DataError, Source, some

REFERENCE: Named = (("random_resized_crop", {}), ("flip", {}))  # torchvision's
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Images(Dataset):
    """(image [3, size, size], label) pairs; without `augment`, as the torchvision reference."""

    def __init__(
        self,
        read: "Parquet | Folder",
        size: int,
        augment: Named | None,
        label_noise: float = 0.0,
        classes: int = 0,
        whole: bool = False,
    ):
        """`augment` is None for held-out images: resize by 256/224 and center crop, or `whole`.

        The share `label_noise` of the labels is replaced by any of the `classes`, at random.
        """
        self.read, self.augment = read, augment is not None
        self.label_noise, self.classes = label_noise, classes
        if augment is not None:
            if not {"random_resized_crop", "shifted_crop"} & set(dict(augment)):
                raise DataError(
                    f"data.augment names {', '.join(dict(augment)) or 'nothing'}; images of "
                    "different sizes make no batch: name random_resized_crop or shifted_crop too"
                )
            geometry = [compose(augment, size)]
        elif whole:
            geometry = [v2.Resize((size, size), antialias=True)]
        else:
            geometry = [v2.Resize(size * 256 // 224, antialias=True), v2.CenterCrop(size)]
        self.at_once: AtOnce | None = None  # how a batch is read, where `open_images` finds a way
        finish = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, DEVIATION)]
        self.finish = v2.Compose(finish)
        self.transform = v2.Compose([v2.PILToTensor(), *geometry, *finish])

    def __len__(self) -> int:
        """The number of images."""
        return len(self.read)

    def __getitem__(self, item: Item) -> tuple[torch.Tensor, int]:
        """One image and its label; the key decides the augmentation."""
        index, key = item
        image, label = self.read(index)
        label = self._with_noise(index, label)
        if self.augment:
            return seeded(key, lambda: self.transform(image)), label
        return self.transform(image), label

    def __getitems__(self, items: Sequence[Item]) -> list[tuple[torch.Tensor, int]]:
        """The images and labels of a batch, which a loader asks for; bit for bit those of each."""
        if self.at_once is None:
            return [self[item] for item in items]
        images = self.finish(torch.from_numpy(self.at_once(items)))
        labels = [self._with_noise(index, self.read.labels[index]) for index, _ in items]
        return list(zip(images.unbind(), labels, strict=True))

    def _with_noise(self, index: int, label: int) -> int:
        if not self.label_noise:
            return label
        draw = random.Random(index)  # the same wrong label in every epoch, run and seed
        return draw.randrange(self.classes) if draw.random() < self.label_noise else label


class Parquet:
    """Encoded images and labels of a parquet file, kept in memory as bytes."""

    def __init__(self, path: Path, limit: int | None = None):
        """Read columns `image` (bytes) and `label`; `limit` rows are taken evenly over the file."""
        table = parquet.read_table(path, columns=["image", "label"])
        table = table.take(arrow.array(_evenly(len(table), limit), arrow.int64()))
        self.images = [value["bytes"] for value in table["image"].to_pylist()]
        self.labels = table["label"].to_pylist()

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def __call__(self, index: int) -> tuple[Image.Image, int]:
        """The decoded image and its label."""
        return rgb(self.images[index]), self.labels[index]


class Folder:
    """A folder per class, as ImageNet is kept."""

    def __init__(self, path: Path, limit: int | None = None):
        """List the files, `limit` of them evenly over the classes; decoded when asked for."""
        self.folder = ImageFolder(str(path))
        samples = self.folder.samples
        self.samples = [samples[index] for index in _evenly(len(samples), limit)]
        self.labels = [label for _, label in self.samples]

    def __len__(self) -> int:
        """The number of images."""
        return len(self.samples)

    def __call__(self, index: int) -> tuple[Image.Image, int]:
        """The decoded image and its label."""
        path, label = self.samples[index]
        return self.folder.loader(path), label


def _evenly(count: int, limit: int | None) -> list[int]:
    kept = min(limit or count, count)  # none of an empty split, which is refused later
    return [index * count // kept for index in range(kept)]


def open_images(
    source: Source,
    role: str,
    size: int,
    limit: int | None = None,
    label_noise: float = 0.0,
    augment: Named | None = None,
    whole: bool = False,
) -> Images:
    """The training or held-out images of a source, `size` pixels square."""
    path = source.file(role)
    read = Folder(path, limit) if path.is_dir() else Parquet(path, limit)
    classes = source.entry["classes"]
    some(source, role, read)
    if outside := sorted({label for label in read.labels if not 0 <= label < classes}):
        raise DataError(
            f"data set {source.name}: {path} has the labels {_few(outside)}; labels go from 0 to "
            f"{classes - 1}, as the catalog gives {classes} classes: correct either"
        )
    chosen = (REFERENCE if augment is None else augment) if role == "train" else None
    images = Images(read, size, chosen, label_noise, classes, whole)
    steps = steps_of(chosen) if chosen is not None else [] if whole else None
    if isinstance(read, Parquet) and steps is not None:
        made_of = {"images": source.digest(role), "limit": limit}
        pixels = decoded(read.images, size, made_of)
        images.at_once = None if pixels is None else AtOnce(pixels, steps)
    return images


def _few(labels: list[int]) -> str:
    return ", ".join(str(label) for label in labels[:3]) + (" ..." if len(labels) > 3 else "")
