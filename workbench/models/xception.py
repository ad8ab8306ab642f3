"""Xception: depthwise separable convolutions in residual blocks, with width and depth."""

from torch import Tensor, nn

from workbench.models.scaling import channels, layers

MINIMUM_SIZE = 7  # of smaller images the stem leaves less than its next kernel


class Separable(nn.Sequential):
    """A 3x3 convolution of each channel, then a 1x1 convolution over channels."""

    def __init__(self, inputs: int, outputs: int):
        """From `inputs` to `outputs` channels at the same size."""
        super().__init__(
            nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )


class Block(nn.Module):
    """Separable convolutions through `widths`, halved in size by stride 2, beside a shortcut."""

    def __init__(self, widths: list[int], stride: int = 1, starts_with_relu: bool = True):
        """Without a stride the first and last width are equal and the shortcut is the input."""
        super().__init__()
        body: list[nn.Module] = []
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            # not in place: the shortcut needs the input as it came
            body += [nn.ReLU(), Separable(inputs, outputs)]
        if not starts_with_relu:
            body = body[1:]
        self.shortcut = nn.Identity()
        if stride != 1:
            body.append(nn.MaxPool2d(3, stride, padding=1))
            self.shortcut = nn.Sequential(
                nn.Conv2d(widths[0], widths[-1], 1, stride=stride, bias=False),
                nn.BatchNorm2d(widths[-1]),
            )
        self.body = nn.Sequential(*body)

    def forward(self, features: Tensor) -> Tensor:
        """The sum of body and shortcut."""
        return self.body(features) + self.shortcut(features)


def build(
    *, middle: int = 8, classes: int = 1000, width: float = 1.0, depth: float = 1.0
) -> nn.Module:
    """A classifier of images [batch, 3, H, W] into logits [batch, classes].

    Depth scales the `middle` blocks; entry and exit change the size of the map and stay.
    """
    bases = (32, 64, 128, 256, 728, 1024, 1536, 2048)
    stem, first, second, third, wide, before_last, last, features = (
        channels(base, width) for base in bases
    )
    model = nn.Sequential(
        *_convolution(3, stem, stride=2),
        *_convolution(stem, first),
        Block([first, second, second], stride=2, starts_with_relu=False),
        Block([second, third, third], stride=2),
        Block([third, wide, wide], stride=2),
        *(Block([wide] * 4) for _ in range(layers(middle, depth))),
        Block([wide, wide, before_last], stride=2),
        Separable(before_last, last),
        nn.ReLU(inplace=True),
        Separable(last, features),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(features, classes),
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def _convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, stride=stride, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]
