"""Folding: the folded network is the network, and only norms of one layer alone are folded."""

import copy

import pytest
import torch
from torch import Tensor, nn

from workbench import dag, models, quant, resolve, tasks
from workbench.sparsity import prune

# one network of each builder with batch norms, and how to see its features
WITH_NORMS = {
    "resnet50": "",
    "densenet121": "",
    "inception_v3": "",
    "vgg16": "",
    "xception": "",
    "sunet7_128": "",
    "drn105": "",
    "resnet20_cifar": "",
    "fasterrcnn_rn50_fpn_1x": "backbone",
    "ssd_rn50": "backbone",
}


def with_statistics(model: nn.Module) -> nn.Module:
    """The model with norms that do something."""
    for module in model.modules():
        if hasattr(module, "running_var"):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.8, 1.3)
            module.weight.data.uniform_(0.8, 1.2)
            module.bias.data.uniform_(-0.2, 0.2)
    return model.eval()


def flat(output: object) -> Tensor:
    parts = output.values() if isinstance(output, dict) else [output]
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize(
    ("name", "scale"),
    [*((name, "smoke") for name in WITH_NORMS), ("fasterrcnn_rn50_fpn_1x", "full")],  # frozen norms
)
def test_a_folded_network_computes_the_same(name: str, scale: str) -> None:
    torch.manual_seed(0)
    spec = dag.spec_of(name, "2to4", scale)
    shape = tasks.declared_shape(spec.phases[spec.last_phase])
    model = models.build(spec.model.build, **spec.model.args, width=0.1, depth=0.1, **shape)
    model = with_statistics(model)
    part = model.get_submodule(WITH_NORMS[name])
    images = torch.randn(1, 3, 75, 75)  # the least that Inception takes
    with torch.no_grad():
        exact = flat(part(images))
        with quant.Following(part) as followed:
            part(images)
        pairs = followed.pairs()
        quant.fold(part, pairs)
        torch.testing.assert_close(flat(part(images)), exact, rtol=1e-4, atol=1e-4)
    left = [n for n, m in part.named_modules() if hasattr(m, "running_var")]
    assert len(pairs) > 2
    if name not in ("densenet121", "sunet7_128"):  # where norms come before convolutions
        assert [n for n in left if "aux" not in n.lower()] == []


class Net(nn.Module):
    """A convolution and its norm; what else happens to the convolution's output varies."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.conv, self.norm, self.use = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), use
        self.other = nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        made = self.conv(images)
        normed = self.norm(made)
        if self.use == "added":
            return made + normed
        if self.use == "normed twice":
            return normed + self.other(made)
        if self.use == "norm of two":
            return normed + self.norm(images)
        return normed * made.shape[0]


@pytest.mark.parametrize("use", ["alone", "added", "normed twice", "norm of two"])
def test_a_norm_is_folded_only_if_nothing_else_sees_its_input(use: str) -> None:
    model, images = with_statistics(Net(use)), torch.randn(2, 4, 3, 3)
    exact = model(images)
    with quant.Following(model) as followed:
        model(images)
    pairs = followed.pairs()
    assert pairs == ({"norm": "conv"} if use == "alone" else {})
    quant.fold(model, pairs)
    torch.testing.assert_close(model(images), exact)


def test_zeros_of_the_mask_survive_folding() -> None:
    model = with_statistics(nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)))
    masks = prune(model)
    quant.fold(model, {"1": "0"})
    masks.verify(model)
    assert model[0].bias is not None and isinstance(model[1], nn.Identity)


def test_a_plain_network_takes_the_weights_of_a_folded_one() -> None:
    folded = with_statistics(nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8)))
    plain = copy.deepcopy(folded)
    quant.fold(folded, {"1": "0"})
    quant.strip(plain, {"1": "0"})
    plain.load_state_dict(folded.state_dict())
    images = torch.randn(1, 8, 5, 5)
    assert torch.equal(plain(images), folded(images))


def test_every_builder_with_norms_is_among_them() -> None:
    built = {resolve.resolve(name).spec.model.build for name in WITH_NORMS}
    # layer norms only, or none
    others = {"bert", "gnmt", "levenshtein", "transformer", "transformer_xl"}
    detectors = {"retinanet", "rpn"}  # the same backbone as rcnn
    used = {resolve.resolve(name).spec.model.build for name in resolve.names("networks")}
    assert used == built | others | detectors
