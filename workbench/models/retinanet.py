"""RetinaNet on a ResNet with a feature pyramid, from torchvision's blocks."""

from torch import Tensor, nn
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


def build(
    *,
    counts: list[int],
    frozen_stages: int = 2,
    freeze_norms: bool = True,
    classes: int = 81,
    image_size: int = backbone.FULL_SIZE,
    detections: int = 100,
    width: float = 1.0,
    depth: float = 1.0,
) -> nn.Module:
    """A detector over lists of images [3, H, W] in 0..1; `classes` counts the background.

    P6 is made from C5 as in Detectron2 (torchvision's second version too; its first from P5).
    Anchors have three sizes an octave and shrink with the short side.
    """
    network = backbone.body(counts, frozen_stages, freeze_norms, width, depth)
    top = LastLevelP6P7(backbone.outputs(network.layer4), channels(256, width))
    return RetinaNet(
        backbone.pyramid(network, width, lowest=3, top=top),
        num_classes=classes - 1,
        **backbone.sides(image_size),
        anchor_generator=backbone.anchors(image_size, per_octave=3),
        detections_per_img=detections,
    )
