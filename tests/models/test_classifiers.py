"""Classifiers: sizes of the originals, torchvision's names, logits and gradients when narrow."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.functional import cross_entropy

from workbench import models, resolve
from workbench.models import drn, inception, sunet, xception
from workbench.spec import Spec

SPECS = {name: resolve.resolve(name, "2to4", "full").spec for name in resolve.names("networks")}
CLASSIFIERS = [
    name for name, spec in SPECS.items() if spec.phases[spec.last_phase].task == "classification"
]
# builders of torchvision for our YAMLs; the other networks have none
ORIGINALS = {
    "resnet34": "resnet34",
    "resnet50": "resnet50",
    "resnext101_32x8d_swsl": "resnext101_32x8d",
    "wide_resnet50": "wide_resnet50_2",
    "densenet121": "densenet121",
    "densenet161": "densenet161",
    "vgg16": "vgg16_bn",
    "vgg19": "vgg19_bn",
}


def network_of(spec: Spec, classes: int) -> nn.Module:
    wanted = spec.model
    return models.build(
        wanted.build, **wanted.args, width=wanted.width, depth=wanted.depth, classes=classes
    )


@pytest.mark.parametrize(("name", "original"), ORIGINALS.items())
def test_parameters_have_torchvisions_names_and_shapes(name: str, original: str) -> None:
    with torch.device("meta"):
        ours = network_of(SPECS[name], 1000).state_dict()
        theirs = getattr(torchvision.models, original)().state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_inception_has_torchvisions_names_and_shapes() -> None:
    with torch.device("meta"):
        ours = inception.build().state_dict()
        theirs = torchvision.models.Inception3(init_weights=False).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_narrow_network_answers_and_learns(name: str) -> None:
    spec = resolve.resolve(name, "2to4", "smoke").spec
    data = spec.phases[spec.last_phase].data
    size = max(data.image_size, data.minimum_size or 1)  # 64; 75 for inception
    model = network_of(spec, 10)
    images = torch.randn(2, 3, size, size, generator=torch.manual_seed(0))
    outputs = model(images)
    heads = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    assert all(logits.shape == (2, 10) for logits in heads)
    sum(cross_entropy(logits, torch.tensor([1, 2])) for logits in heads).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.eval()(images).shape == (2, 10)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_width_gives_every_convolution_a_multiple_of_32(name: str) -> None:
    model = network_of(resolve.resolve(name, "2to4", "smoke").spec, 10)
    outputs = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    # a transition of DenseNet halves what it is given, DRN ends in a convolution to the classes
    allowed = 8 if name.startswith("densenet") else 32
    assert all(count % allowed == 0 for count in outputs if count != 10)


def test_a_photo_too_small_for_inception_is_refused_with_the_least_size() -> None:
    with pytest.raises(ValueError, match="32 x 32 pixels given; at least 75 x 75 .*minimum_size"):
        inception.build(classes=10, width=0.03, depth=0.1)(torch.zeros(2, 3, 32, 32))
    least = SPECS["inception_v3"].phases["train"].data.minimum_size
    assert least == inception.MINIMUM_SIZE


def test_inceptions_auxiliary_head_is_torchvisions_at_299_pixels() -> None:
    ours = inception.Auxiliary(32, 10).eval()
    theirs = torchvision.models.inception.InceptionAux(32, 10).eval()
    theirs.load_state_dict(ours.state_dict())
    features = torch.randn(1, 32, 17, 17, generator=torch.manual_seed(0))  # of 299 pixels
    assert torch.equal(ours(features), theirs(features))
    assert ours(features[..., :3, :3]).shape == (1, 10)  # of 75


def test_a_dilated_network_keeps_an_eighth_of_the_size() -> None:
    model = drn.build(counts=[1, 1, 1, 1, 2, 1, 1, 1], classes=10, width=0.01).eval()
    seen = []
    model.layer8.register_forward_hook(lambda *args: seen.append(args[2].shape[-2:]))
    model(torch.zeros(1, 3, 64, 48))
    assert seen == [(8, 6)]


def test_a_u_net_returns_the_size_it_was_given_even_or_odd() -> None:
    block = sunet.UNet(32, 32, 64, levels=2).eval()
    for side in (1, 7, 14, 9):
        assert block(torch.zeros(1, 32, side, side + 1)).shape == (1, 64, side, side + 1)


def test_a_residual_block_of_xception_leaves_its_input_as_it_was() -> None:
    features = torch.randn(1, 32, 8, 8, generator=torch.manual_seed(0))
    given = features.clone()
    xception.Block([32, 32, 32])(features)
    assert torch.equal(features, given)
