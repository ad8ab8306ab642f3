"""The ResNets of He et al. 2015, section 4.2, for CIFAR-10, with parameter-free shortcuts."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from workbench.models import scaling


class Block(nn.Module):
    """Two 3x3 convolutions; a wider shortcut takes every second pixel and adds zero channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """From `inputs` to `outputs` channels."""
        super().__init__()
        self.stride, self.added = stride, outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Features [batch, outputs, H / stride, W / stride]."""
        features = self.bn1(self.conv1(images)).relu()
        features = self.bn2(self.conv2(features))
        shortcut = images[:, :, :: self.stride, :: self.stride]
        before = self.added // 2  # option A: zeros on both sides of the channels
        shortcut = pad(shortcut, (0, 0, 0, 0, before, self.added - before))
        return (features + shortcut).relu()


class CifarResNet(nn.Module):
    """A stem, three stages of blocks, the mean over pixels and a linear layer."""

    def __init__(self, blocks: int, planes: list[int], classes: int) -> None:
        """`blocks` a stage, of `planes` channels each."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, planes[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes[0])
        inputs = planes[0]
        for number, outputs in enumerate(planes, start=1):
            stage = [Block(inputs, outputs, 1 if number == 1 else 2)]
            stage += [Block(outputs, outputs, 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{number}", nn.Sequential(*stage))
            inputs = outputs
        self.linear = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, classes] of images [batch, 3, H, W]."""
        features = self.bn1(self.conv1(images)).relu()
        features = self.layer3(self.layer2(self.layer1(features)))
        return self.linear(torch.mean(features, dim=(2, 3)))


def build(*, blocks: int, classes: int = 10, width: float = 1.0, depth: float = 1.0) -> nn.Module:
    """ResNet-(6 blocks + 2): 3 makes ResNet-20, 9 ResNet-56; planes 16, 32 and 64 times width."""
    if blocks < 1:
        raise ValueError(f"blocks is {blocks}; each of the three stages has at least 1")
    planes = [scaling.channels(base, width) for base in (16, 32, 64)]
    return CifarResNet(scaling.layers(blocks, depth), planes, classes)
