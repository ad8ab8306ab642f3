"""A region proposal network alone on a ResNet with a feature pyramid, from torchvision's blocks."""

from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from workbench.models import backbone


class Proposals(nn.Module):
    """What follows the proposals in an R-CNN, left out: they are the result, best first."""

    def forward(
        self, features: dict[str, Tensor], proposals: list[Tensor], *_: Any
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """For each image its boxes [n, 4], without labels; no loss of its own."""
        return [{"boxes": boxes} for boxes in proposals], {}


def build(
    *,
    counts: list[int],
    frozen_stages: int = 2,
    freeze_norms: bool = True,
    classes: int = 81,
    image_size: int = backbone.FULL_SIZE,
    detections: int = 100,
    presized: bool = False,
    width: float = 1.0,
    depth: float = 1.0,
) -> nn.Module:
    """A proposer over lists of images [3, H, W] in 0..1; `classes` do not matter to it.

    It gives 2000 proposals an image (Detectron2's rpn_R_50_FPN_1x) at a short side of 800 pixels;
    their number shrinks with it, but not below `detections`.
    """
    features = backbone.pyramid(
        backbone.body(counts, frozen_stages, freeze_norms, width, depth), width
    )
    share = image_size / backbone.FULL_SIZE
    proposer = RegionProposalNetwork(
        backbone.anchors(image_size),
        RPNHead(features.out_channels, len(backbone.ASPECT_RATIOS)),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": round(2000 * share), "testing": round(1000 * share)},
        post_nms_top_n={
            "training": round(1000 * share),
            "testing": max(detections, round(2000 * share)),
        },
        nms_thresh=0.7,
    )
    resize = GeneralizedRCNNTransform(
        **backbone.sides(image_size, presized),
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    return GeneralizedRCNN(features, proposer, Proposals(), resize)
