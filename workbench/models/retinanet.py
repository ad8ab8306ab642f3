"""RetinaNet on a ResNet with a feature pyramid, from torchvision's blocks."""

import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss
from torchvision.models import detection
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from workbench.models import backbone
from workbench.models.scaling import channels

Targets = list[dict[str, Tensor]]


class RetinaNet(detection.RetinaNet):
    """torchvision's, whose outputs begin with class 1: a sigmoid needs none for the background."""

    def forward(
        self, images: list[Tensor], targets: Targets | None = None
    ) -> dict[str, Tensor] | Targets:
        """The losses in training, else detections; labels count from 1 on both sides."""
        if targets is not None:
            targets = [{**target, "labels": target["labels"] - 1} for target in targets]
        found = super().forward(images, targets)
        if self.training:
            return found
        return [{**output, "labels": output["labels"] + 1} for output in found]


class SmoothBoxes(detection.retinanet.RetinaNetRegressionHead):
    """torchvision's head of boxes with smooth L1 in place of L1."""

    def __init__(self, channels_in: int, anchors: int, beta: float):
        """`beta` is the error up to which the loss is quadratic."""
        super().__init__(channels_in, anchors)
        self.beta = beta

    def compute_loss(
        self,
        targets: Targets,
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> Tensor:
        """The mean over images of the loss of an image's positive anchors, by their number."""
        losses = []
        outputs = head_outputs["bbox_regression"]
        for target, output, around, matched in zip(
            targets, outputs, anchors, matched_idxs, strict=True
        ):
            positive = torch.where(matched >= 0)[0]
            boxes = target["boxes"][matched[positive]]
            wanted = self.box_coder.encode_single(boxes, around[positive])
            loss = smooth_l1_loss(output[positive], wanted, reduction="sum", beta=self.beta)
            losses.append(loss / max(1, len(positive)))
        return torch.stack(losses).mean()


def build(
    *,
    counts: list[int],
    smooth_l1_beta: float = 0.0,
    frozen_stages: int = 2,
    freeze_norms: bool = True,
    classes: int = 81,
    image_size: int = backbone.FULL_SIZE,
    detections: int = 100,
    presized: bool = False,
    width: float = 1.0,
    depth: float = 1.0,
) -> nn.Module:
    """A detector over lists of images [3, H, W] in 0..1; `classes` counts the background.

    P6 is made from C5 as in Detectron2 (torchvision's second version too; its first from P5).
    Anchors have three sizes an octave and shrink with the short side. The loss of boxes is L1, or
    smooth L1 with `smooth_l1_beta`.
    """
    network = backbone.body(counts, frozen_stages, freeze_norms, width, depth)
    top = LastLevelP6P7(backbone.outputs(network.layer4), channels(256, width))
    model = RetinaNet(
        backbone.pyramid(network, width, lowest=3, top=top),
        num_classes=classes - 1,
        **backbone.sides(image_size, presized),
        anchor_generator=backbone.anchors(image_size, per_octave=3),
        detections_per_img=detections,
    )
    if smooth_l1_beta:
        anchors = model.anchor_generator.num_anchors_per_location()[0]
        model.head.regression_head = SmoothBoxes(channels(256, width), anchors, smooth_l1_beta)
    _keep_signal(model.head, channels(256, width))
    return model


def _keep_signal(head: nn.Module, features: int) -> None:
    # the paper's deviation of 0.01 is for 256 channels: four layers of 32 of them would pass on
    # 0.0002 of what they get, not 0.01, and learn nothing in a short training
    for module in head.modules():
        if isinstance(module, nn.Conv2d) and features != 256:
            nn.init.normal_(module.weight, std=0.01 * (256 / features) ** 0.5)
