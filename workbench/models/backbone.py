"""The ResNet under every detector, the feature pyramid on it, and the anchors of its levels."""

from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from workbench.models import resnet
from workbench.models.scaling import channels

FULL_SIZE = 800  # short side for which anchors and numbers of proposals are given
LONGEST = 1333  # the long side is at most that beside it
ANCHOR_SIZES = (32, 64, 128, 256, 512)
ASPECT_RATIOS = (0.5, 1.0, 2.0)


def body(
    counts: list[int], frozen_stages: int, freeze_norms: bool, width: float, depth: float
) -> resnet.ScaledResNet:
    """A bottleneck ResNet; of the stem and the four stages the first `frozen_stages` are fixed."""
    if not 0 <= frozen_stages <= 5:
        raise ValueError(
            f"frozen_stages={frozen_stages}: a ResNet has the stem and four stages, "
            "so 0 to 5 can be frozen"
        )
    network = resnet.build(counts=counts, classes=1, width=width, depth=depth)
    if freeze_norms:
        _freeze_norms(network)
    stem = nn.ModuleList([network.conv1, network.bn1])
    for stage in [stem, *stages(network)][:frozen_stages]:
        stage.requires_grad_(False)
    return network


def stages(network: resnet.ScaledResNet) -> list[nn.Sequential]:
    """The four stages after the stem, whose outputs are called C2 to C5."""
    return [network.layer1, network.layer2, network.layer3, network.layer4]


def outputs(stage: nn.Sequential) -> int:
    """The channels that a stage gives."""
    return stage[-1].conv3.out_channels


def pyramid(
    network: resnet.ScaledResNet, width: float, lowest: int = 2, top: ExtraFPNBlock | None = None
) -> BackboneWithFPN:
    """Features of equal channels from C`lowest` to C5; `top` adds coarser ones, else P6 is pooled.

    The ResNet's weights keep their names under `body.`.
    """
    used = range(lowest - 1, 5)  # C2 is the output of layer1
    return BackboneWithFPN(
        network,
        return_layers={f"layer{number}": str(number - 1) for number in used},
        in_channels_list=[outputs(stage) for stage in stages(network)[lowest - 2 :]],
        out_channels=channels(256, width),
        extra_blocks=top,
    )


def anchors(image_size: int, per_octave: int = 1) -> AnchorGenerator:
    """Three shapes of 32 to 512 pixels, one octave a level, at a short side of 800; else shrunk."""
    sizes = [
        [size * 2 ** (step / per_octave) * image_size // FULL_SIZE for step in range(per_octave)]
        for size in ANCHOR_SIZES
    ]
    levels = tuple(tuple(max(4, int(size)) for size in level) for level in sizes)
    return AnchorGenerator(levels, (ASPECT_RATIOS,) * len(levels))


def sides(image_size: int, presized: bool) -> dict[str, int | bool]:
    """The short side and the longest the other may be, as torchvision's detectors call them.

    With `presized` images are taken as they come in training (torchvision's detection reference
    too resizes in its data pipeline, by this argument), and resized in evaluation only.
    """
    longest = image_size * LONGEST // FULL_SIZE
    return {"min_size": image_size, "max_size": longest, "_skip_resize": presized}


def _freeze_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features))
        else:
            _freeze_norms(child)
