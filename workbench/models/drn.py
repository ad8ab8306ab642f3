"""Dilated residual network of kind D: the last stages dilate where a ResNet strides."""

from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from workbench.models.scaling import channels, layers

# layers 1 to 8; the outer four are plain convolutions, the inner four bottlenecks
WIDTHS = (16, 32, 64, 128, 256, 512, 512, 512)
STRIDES = (1, 2, 2, 2, 1, 1, 1, 1)
DILATIONS = (1, 1, 1, 1, 2, 4, 2, 1)
RESIDUAL = range(3, 7)


class DRN(nn.Module):
    """DRN-D; parameter names are those of fyu/drn, the map is an eighth of the image."""

    def __init__(self, counts: list[int], widths: list[int], classes: int):
        """`counts` and `widths` belong to the layers 1 to 8."""
        super().__init__()
        self.layer0 = _plain(3, widths[0], kernel=7)
        inputs = widths[0]
        settings = zip(widths, counts, STRIDES, DILATIONS, strict=True)
        for number, setting in enumerate(settings, start=1):
            stage = _residual if number in RESIDUAL else _plain
            setattr(self, f"layer{number}", stage(inputs, *setting))
            inputs = setting[0] * (Bottleneck.expansion if number in RESIDUAL else 1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)  # the original's 28 x 28 is all of a 224 image's map
        self.fc = nn.Conv2d(inputs, classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, classes] of images [batch, 3, H, W]."""
        features = images
        for number in range(len(WIDTHS) + 1):
            features = getattr(self, f"layer{number}")(features)
        return self.fc(self.avgpool(features)).flatten(1)


def _plain(
    inputs: int, width: int, count: int = 1, stride: int = 1, dilation: int = 1, kernel: int = 3
) -> nn.Sequential:
    modules: list[nn.Module] = []
    for number in range(count):
        modules += [
            nn.Conv2d(
                inputs if number == 0 else width,
                width,
                kernel,
                stride=stride if number == 0 else 1,
                padding=kernel // 2 * dilation,
                dilation=dilation,
                bias=False,
            ),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*modules)


def _residual(inputs: int, width: int, count: int, stride: int, dilation: int) -> nn.Sequential:
    outputs = width * Bottleneck.expansion
    shortcut = nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
    )
    first = Bottleneck(inputs, width, stride, shortcut, dilation=dilation)
    rest = [Bottleneck(outputs, width, dilation=dilation) for _ in range(count - 1)]
    return nn.Sequential(first, *rest)


def build(
    *, counts: list[int], classes: int = 1000, width: float = 1.0, depth: float = 1.0
) -> nn.Module:
    """A classifier of images [batch, 3, H, W] into logits [batch, classes]."""
    widths = [channels(base, width) for base in WIDTHS]
    return DRN([layers(count, depth) for count in counts], widths, classes)
