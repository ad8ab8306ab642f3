"""Images with boxes and masks in COCO's format: photos in parquet or in a folder, beside a json."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import torch
from faster_coco_eval import mask as coco_mask
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from workbench.data.augment import Named, compose
from workbench.data.loader import Item, seeded
from workbench.data.source import DataError, Source, some

FLIP: Named = (("flip", {}),)


class Boxes(Dataset):
    """(image [3, H, W] in 0..1, target) pairs; targets hold boxes (xyxy), labels, masks.

    In training crowds, boxes without an extent and images without any box are left out.
    """

    def __init__(
        self,
        photos: dict[int, Any],
        annotations: dict[str, Any],
        augment: v2.Transform | None,
        masks: bool,
        limit: int | None,
    ):
        """Photos by image id (bytes or a path); `annotations` is the parsed COCO json.

        Training has an `augment`, held-out photos have none.
        """
        self.photos, self.annotations, self.masks = photos, annotations, masks
        self.augment = augment
        self.label_of = {
            category["id"]: label
            for label, category in enumerate(annotations["categories"], start=1)
        }
        by_image: dict[int, list[dict[str, Any]]] = {}
        for instance in annotations["annotations"]:
            if not augment or _can_be_learned(instance):
                by_image.setdefault(instance["image_id"], []).append(instance)
        self.ids = [im["id"] for im in annotations["images"] if not augment or im["id"] in by_image]
        self.ids = self.ids[:limit]
        self.by_image = by_image

    def __len__(self) -> int:
        """The number of images; in training those without an instance are left out."""
        return len(self.ids)

    def __getitem__(self, item: Item) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """One image and its instances; the key decides the augmentation."""
        index, key = item
        photo = self.photos[self.ids[index]]
        opened = Image.open(io.BytesIO(photo) if isinstance(photo, bytes) else photo)
        image = tv_tensors.Image(v2.functional.pil_to_tensor(opened.convert("RGB")))
        target = self._target(self.ids[index], tuple(image.shape[-2:]))
        if self.augment:
            image, target = seeded(key, lambda: self.augment(image, target))
        plain = {name: value.as_subclass(torch.Tensor) for name, value in target.items()}
        return image.as_subclass(torch.Tensor).float() / 255, plain

    def _target(self, image_id: int, size: tuple[int, int]) -> dict[str, torch.Tensor]:
        instances = self.by_image.get(image_id, [])
        boxes = torch.tensor([i["bbox"] for i in instances], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "labels": torch.tensor([self.label_of[i["category_id"]] for i in instances]).long(),
            "image_id": torch.tensor(image_id),
        }
        if self.masks:
            target["masks"] = tv_tensors.Mask(_decoded(instances, size))
        return target


def _decoded(instances: list[dict[str, Any]], size: tuple[int, int]) -> torch.Tensor:
    masks = torch.zeros(len(instances), *size, dtype=torch.uint8)
    for row, instance in enumerate(instances):
        shape = instance["segmentation"]
        if isinstance(shape, list):
            shape = coco_mask.merge(coco_mask.frPyObjects(shape, *size))
        elif isinstance(shape["counts"], list):
            shape = coco_mask.frPyObjects(shape, *size)
        masks[row] = torch.from_numpy(coco_mask.decode(shape))
    return masks


def _can_be_learned(instance: dict[str, Any]) -> bool:
    return not instance.get("iscrowd", 0) and min(instance["bbox"][2:]) > 0


def open_boxes(
    source: Source,
    role: str,
    masks: bool,
    limit: int | None = None,
    augment: Named | None = None,
    size: int = 800,
) -> Boxes:
    """The training or held-out photos of a source with their instances."""
    path = source.file(f"{role}_instances")
    annotations = json.loads(path.read_text())
    categories = [category["id"] for category in annotations["categories"]]
    if len(categories) != source.entry["classes"]:
        raise DataError(
            f"data set {source.name}: {path} has {len(categories)} categories, the catalog says "
            f"{source.entry['classes']}; correct one of them"
        )
    if outside := {a["category_id"] for a in annotations["annotations"]} - set(categories):
        raise DataError(
            f"data set {source.name}: {path} has boxes of category {min(outside)}; its categories "
            f"are {', '.join(map(str, sorted(categories)))}"
        )
    photos = _photos(source.file(role), annotations)
    chosen = FLIP if augment is None else augment
    transform = compose(chosen, size) if role == "train" else None
    return some(source, role, Boxes(photos, annotations, transform, masks, limit))


def _photos(path: Path, annotations: dict[str, Any]) -> dict[int, Any]:
    if path.is_dir():
        return {image["id"]: path / image["file_name"] for image in annotations["images"]}
    table = parquet.read_table(path, columns=["image_id", "image"]).to_pylist()
    return {row["image_id"]: row["image"]["bytes"] for row in table}
