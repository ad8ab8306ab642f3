"""ResNet, ResNeXt and Wide ResNet of torchvision, with width and depth as fractions."""

from typing import Literal

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from workbench.models.scaling import channels, layers

BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ScaledResNet(ResNet):
    """torchvision's ResNet with its channel counts scaled; parameter names are the same."""

    def __init__(
        self,
        block: type,
        counts: list[int],
        planes: list[int],
        groups: int,
        width_per_group: int,
        classes: int,
    ):
        """`planes` are the inner widths of the four stages; `planes[0]` is the stem's too."""
        nn.Module.__init__(self)
        self._norm_layer = nn.BatchNorm2d
        self.dilation = 1
        self.inplanes = planes[0]
        self.groups, self.base_width = groups, width_per_group
        self.conv1 = nn.Conv2d(3, planes[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(planes[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for number, (width, count) in enumerate(zip(planes, counts, strict=True), start=1):
            stride = 1 if number == 1 else 2
            setattr(self, f"layer{number}", self._make_layer(block, width, count, stride))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(planes[-1] * block.expansion, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def build(
    *,
    block: Literal["basic", "bottleneck"] = "bottleneck",
    counts: list[int],
    groups: int = 1,
    width_per_group: int = 64,
    classes: int = 1000,
    width: float = 1.0,
    depth: float = 1.0,
) -> nn.Module:
    """A classifier of images [batch, 3, H, W] into logits [batch, classes]."""
    if block not in BLOCKS:
        raise ValueError(f"block={block!r}: a ResNet block is one of {', '.join(BLOCKS)}")
    planes = [channels(base, width) for base in (64, 128, 256, 512)]
    counts = [layers(count, depth) for count in counts]
    return ScaledResNet(BLOCKS[block], counts, planes, groups, width_per_group, classes)
