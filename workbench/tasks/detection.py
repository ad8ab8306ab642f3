"""Object detection and instance segmentation: the model's own losses, COCO average precision."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as coco_mask
from torch import Tensor, nn

from workbench.data.boxes import open_boxes
from workbench.sections import Phase
from workbench.tasks import base
from workbench.tasks.base import moved

Result = dict[str, Any]


class Task(base.Task):
    """Photos with boxes; networks that predict masks are judged on those too."""

    metric, higher_is_better = "box_ap", True
    why_no_graph = "photos differ in size and in the number of their boxes"

    def __init__(self, phase: Phase, seed: int, root: Path):
        """Open the training and held-out photos; masks are read where the catalog has them."""
        super().__init__(phase, seed, root)
        masks = bool(self.source.entry.get("masks"))
        self.size = phase.data.image_size or 800
        self.train = open_boxes(
            self.source, "train", masks, phase.data.limit, self.augment, self.size
        )
        self.held_out = open_boxes(self.source, "held_out", False, phase.eval.limit)
        self.most = _most_objects(self.source.entry)

    @property
    def collate(self) -> Any:
        """Photos differ in size, so a batch is two lists."""
        return lists

    @classmethod
    def declared_shape(cls, phase: Phase, entry: dict[str, Any]) -> dict[str, Any]:
        """Classes with the background, the side to resize to, detections per image.

        Photos that come `presized` for training are not resized again.
        """
        return {
            "classes": entry["classes"] + 1,
            "image_size": phase.data.image_size or 800,
            "detections": _most_objects(entry),
            "presized": any(each.name == "shortest_side" for each in phase.data.augment or ()),
        }

    def loss(self, model: nn.Module, batch: Any, carry: Any) -> tuple[Tensor, Any]:
        """The sum of the detector's losses."""
        images, targets = batch
        return sum(model(images, targets).values()), None

    def run(self, model: nn.Module, batch: Any, carry: Any) -> Any:
        """Detect."""
        model(batch[0])

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Box and mask AP in percent, averaged over IoU 0.50:0.95, and at 0.50."""
        boxes: list[Result] = []
        masks: list[Result] = []
        for image_id, output in self.outputs(model, device):
            boxes += self._found(image_id, output)
            if "masks" in output:
                masks += self._found(image_id, output, with_masks=True)
        metrics = _named("box", self._average_precision(boxes, "bbox"))
        if masks:
            metrics |= _named("mask", self._average_precision(masks, "segm"))
        return metrics

    def chance(self) -> float:
        """Detecting nothing has an average precision of zero."""
        return 0.0

    def outputs(
        self, model: nn.Module, device: torch.device
    ) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """What the model says of each held-out photo, with the photo's id."""
        for images, targets in self.held_out_batches():
            for target, output in zip(targets, model(moved(images, device)), strict=True):
                yield int(target["image_id"]), output

    def _found(self, image_id: int, output: dict[str, Tensor], with_masks: bool = False) -> list:
        category_of = {label: category for category, label in self.held_out.label_of.items()}
        boxes = output["boxes"].float().cpu()
        boxes[:, 2:] -= boxes[:, :2]
        rows = [
            {
                "image_id": image_id,
                "category_id": category_of[int(label)],
                "score": float(score),
                "bbox": box.tolist(),
            }
            for box, label, score in zip(boxes, output["labels"], output["scores"], strict=True)
        ]
        if with_masks:
            for row, mask in zip(rows, output["masks"], strict=True):
                binary = np.asfortranarray((mask[0] > 0.5).cpu().numpy().astype(np.uint8))
                row["segmentation"] = coco_mask.encode(binary)
                del row["bbox"]
        return rows

    def _average_precision(self, found: list[Result], kind: str) -> tuple[float, float]:
        if not found:
            return 0.0, 0.0
        held_out = self.held_out
        kept = set(held_out.ids)
        truth = {
            "images": [i for i in held_out.annotations["images"] if i["id"] in kept],
            "annotations": [
                a for a in held_out.annotations["annotations"] if a["image_id"] in kept
            ],
            "categories": held_out.annotations["categories"],
        }
        known = COCO(truth, print_function=_quiet)
        judge = COCOeval_faster(known, known.loadRes(found), kind, print_function=_quiet)
        judge.params.maxDets = [1, 10, self.most]
        judge.evaluate()
        judge.accumulate()
        precision = judge.eval["precision"][:, :, :, 0, -1]
        return _mean(precision), _mean(precision[0])


def lists(examples: list[Any]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images and targets side by side."""
    images, targets = zip(*examples, strict=True)
    return list(images), list(targets)


def _most_objects(entry: dict[str, Any]) -> int:
    return int(entry.get("most_objects", 100))  # COCO judges the best 100 of an image


def _named(kind: str, values: tuple[float, float]) -> dict[str, float]:
    return {f"{kind}_ap": 100 * values[0], f"{kind}_ap50": 100 * values[1]}


def _mean(precision: np.ndarray) -> float:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else 0.0


def _quiet(*_: Any) -> None:
    return None
