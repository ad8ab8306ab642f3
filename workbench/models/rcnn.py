"""Faster R-CNN on a ResNet with a feature pyramid, from torchvision's blocks."""

from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FrozenBatchNorm2d

from workbench.models import resnet
from workbench.models.scaling import channels

FULL_SIZE = 800  # short side for which the anchors 32..512 are meant


def build(
    *,
    counts: list[int],
    frozen_stages: int = 2,
    freeze_norms: bool = True,
    classes: int = 81,
    image_size: int = FULL_SIZE,
    detections: int = 100,
    width: float = 1.0,
    depth: float = 1.0,
) -> nn.Module:
    """A detector over lists of images [3, H, W] in 0..1; `frozen_stages` counts the stem as one.

    Anchors and the numbers of proposals are the paper's at a short side of 800 pixels and shrink
    with it.
    """
    if not 0 <= frozen_stages <= 5:
        raise ValueError(
            f"frozen_stages={frozen_stages}: a ResNet has the stem and four stages, "
            "so 0 to 5 can be frozen"
        )
    body = resnet.build(counts=counts, classes=1, width=width, depth=depth)
    if freeze_norms:
        _freeze_norms(body)
    stages = [body.layer1, body.layer2, body.layer3, body.layer4]
    for stage in [nn.ModuleList([body.conv1, body.bn1]), *stages][:frozen_stages]:
        stage.requires_grad_(False)
    features = channels(256, width)
    hidden = channels(1024, width)
    backbone = BackboneWithFPN(
        body,
        return_layers={f"layer{number}": str(number - 1) for number in range(1, 5)},
        in_channels_list=[stage[-1].conv3.out_channels for stage in stages],
        out_channels=features,
    )
    sizes = tuple((max(4, size * image_size // FULL_SIZE),) for size in (32, 64, 128, 256, 512))
    share = image_size / FULL_SIZE
    return FasterRCNN(
        backbone,
        min_size=image_size,
        max_size=image_size * 1333 // FULL_SIZE,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        box_head=TwoMLPHead(features * 7 * 7, hidden),
        box_predictor=FastRCNNPredictor(hidden, classes),
        box_detections_per_img=detections,
        rpn_pre_nms_top_n_train=round(2000 * share),
        rpn_post_nms_top_n_train=round(1000 * share),
        rpn_pre_nms_top_n_test=round(1000 * share),
        rpn_post_nms_top_n_test=round(1000 * share),
        box_batch_size_per_image=round(512 * share),
    )


def _freeze_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features))
        else:
            _freeze_norms(child)
