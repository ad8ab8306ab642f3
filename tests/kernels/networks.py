"""The smoke networks of experiments/, pruned 2:4, for tests of whole networks."""

import torch
from torch import Tensor, nn

from workbench import dag, models, sparsity

RESNETS = ("resnet50", "resnext101_32x16d", "wide_resnet50")


def pruned(network: str, **shape: object) -> nn.Module:
    """A network at smoke scale in fp32 and eval mode, 2:4, its batch norms not idle."""
    wanted = dag.spec_of(network, "2to4", "smoke").model
    torch.manual_seed(0)
    model = models.build(
        wanted.build, **wanted.args, width=wanted.width, depth=wanted.depth, **shape
    )
    sparsity.prune(model)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.1)
    return model.eval()


def resnet(network: str = "resnet50") -> tuple[nn.Module, Tensor]:
    """A classifier and images."""
    return pruned(network, classes=10), torch.randn(3, 3, 48, 48)


def bert(head: str = "question_answering") -> tuple[nn.Module, dict[str, Tensor]]:
    """A BERT-Large and tokens without padding."""
    model = pruned("bert_large", head=head, vocabulary=96, padding=0)
    return model, {"input_ids": torch.randint(1, 96, (3, 24))}


def apart(found: Tensor, wanted: Tensor) -> float:
    """How far a tensor is from another, relative to its length."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())
