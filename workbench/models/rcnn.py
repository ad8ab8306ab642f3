"""Faster and Mask R-CNN on a ResNet with a feature pyramid, from torchvision's blocks."""

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from workbench.models import backbone
from workbench.models.scaling import channels


class BoxPredictor(nn.Module):
    """Scores of all classes and a box for each but the background, as Detectron2 predicts.

    maskrcnn-benchmark, NVIDIA's examples and torchvision predict a box for the background too (4
    outputs more: 324 for COCO, not 320) and never use it.
    """

    def __init__(self, features: int, classes: int):
        """`classes` counts the background."""
        super().__init__()
        self.cls_score = nn.Linear(features, classes)
        self.bbox_pred = nn.Linear(features, 4 * (classes - 1))

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [n, classes] and box deltas [n, 4 x classes], those of the background zero."""
        regions = regions.flatten(start_dim=1)
        return self.cls_score(regions), F.pad(self.bbox_pred(regions), (4, 0))


class MaskPredictor(MaskRCNNPredictor):
    """torchvision's, without a mask for the background, as in Detectron2."""

    def __init__(self, features: int, classes: int):
        """`classes` counts the background."""
        super().__init__(features, features, classes - 1)

    def forward(self, regions: Tensor) -> Tensor:
        """Logits [n, classes, 28, 28], those of the background zero."""
        return F.pad(super().forward(regions), (0, 0, 0, 0, 1, 0))


def build(
    *,
    counts: list[int],
    masks: bool = False,
    frozen_stages: int = 2,
    freeze_norms: bool = True,
    classes: int = 81,
    image_size: int = backbone.FULL_SIZE,
    detections: int = 100,
    presized: bool = False,
    width: float = 1.0,
    depth: float = 1.0,
) -> nn.Module:
    """A detector over lists of images [3, H, W] in 0..1; `frozen_stages` counts the stem as one.

    Anchors and the numbers of proposals are the paper's at a short side of 800 pixels and shrink
    with it.
    """
    features = channels(256, width)
    hidden = channels(1024, width)
    share = image_size / backbone.FULL_SIZE
    kind, mask_branch = FasterRCNN, {}
    if masks:
        kind = MaskRCNN
        mask_branch = {
            "mask_head": MaskRCNNHeads(features, (features,) * 4, dilation=1),
            "mask_predictor": MaskPredictor(features, classes),
        }
    return kind(
        backbone.pyramid(backbone.body(counts, frozen_stages, freeze_norms, width, depth), width),
        **backbone.sides(image_size, presized),
        rpn_anchor_generator=backbone.anchors(image_size),
        box_head=TwoMLPHead(features * 7 * 7, hidden),
        box_predictor=BoxPredictor(hidden, classes),
        box_detections_per_img=detections,
        rpn_pre_nms_top_n_train=round(2000 * share),
        rpn_post_nms_top_n_train=round(1000 * share),
        rpn_pre_nms_top_n_test=round(1000 * share),
        rpn_post_nms_top_n_test=round(1000 * share),
        box_batch_size_per_image=round(512 * share),
        **mask_branch,
    )
