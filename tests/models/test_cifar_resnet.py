"""CIFAR ResNets: the paper's sizes, the published names, the parameter-free shortcut by hand."""

import pytest
import torch

from workbench import models, resolve
from workbench.models.cifar_resnet import Block


@pytest.mark.parametrize(
    ("name", "parameters"),
    # arXiv 1512.03385, table 6: 0.27M and 0.85M; counted in the published files without statistics
    [("resnet20_cifar", 269_722), ("resnet56_cifar", 853_018)],
)
def test_a_network_has_the_published_size_and_names(name: str, parameters: int) -> None:
    spec = resolve.resolve(name, "2to4", "lite").spec
    model = models.build(spec.model.build, **spec.model.args)
    assert sum(p.numel() for p in model.parameters()) == parameters
    # cifar10-resnet-weights/SOURCE.md
    leaves = {key.rpartition(".")[0] for key in model.state_dict()}
    assert {"conv1", "bn1", "linear"} < leaves
    last = spec.model.args["blocks"] - 1
    for layer in ("conv1", "bn1", "conv2", "bn2"):
        assert {f"layer1.0.{layer}", f"layer3.{last}.{layer}"} < leaves
    assert f"layer3.{last + 1}.conv1" not in leaves


def test_a_wider_shortcut_takes_every_second_pixel_and_adds_zero_channels() -> None:
    block = Block(2, 4, stride=2).eval()
    torch.nn.init.zeros_(block.bn2.weight)
    images = torch.arange(1.0, 33.0).view(1, 2, 4, 4)
    found = block(images)
    assert torch.equal(found[:, 1:3], images[:, :, ::2, ::2])
    assert not found[:, [0, 3]].any()


def test_no_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="blocks is 0"):
        models.build("cifar_resnet", blocks=0)
