"""Region proposals: the model's own losses, average recall without classes."""

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, box_iou

from workbench.tasks import detection

THRESHOLDS = torch.arange(0.5, 1.0, 0.05)


class Task(detection.Task):
    """Photos with boxes, of which the classes do not count."""

    metric = "ar100"

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Recall in percent of the best 100 and 1000 proposals, averaged over IoU 0.50:0.95."""
        covered: dict[int, list[Tensor]] = {100: [], 1000: []}
        for image_id, output in self.outputs(model, device):
            truth = self._truth(image_id)
            for most, found in covered.items():
                found.append(overlaps(output["boxes"][:most].float().cpu(), truth))
        return {f"ar{most}": average_recall(torch.cat(found)) for most, found in covered.items()}

    def _truth(self, image_id: int) -> Tensor:
        objects = self.held_out.by_image.get(image_id, [])
        boxes = [each["bbox"] for each in objects if not each.get("iscrowd", 0)]
        return box_convert(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), "xywh", "xyxy")


def overlaps(proposals: Tensor, truth: Tensor) -> Tensor:
    """For each true box the IoU of the proposal it is given, in Detectron2's order.

    The pair that overlaps most is taken first; a proposal stands for one true box only.
    """
    left = box_iou(proposals, truth)  # [proposals, truth]
    covered = torch.zeros(len(truth))
    for _ in range(min(left.shape)):
        proposal, box = divmod(int(left.argmax()), len(truth))
        covered[box] = left[proposal, box]
        left[proposal, :] = left[:, box] = -1
    return covered


def average_recall(covered: Tensor) -> float:
    """The share of true boxes covered, in percent, averaged over the thresholds of IoU."""
    if not len(covered):
        return 0.0
    return 100 * float((covered[:, None] >= THRESHOLDS).float().mean())
