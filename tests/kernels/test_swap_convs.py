"""swap on models of convolutions: numbers kept, what is fused, what is left alone and why."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import densenet, inception, resnet

import sparse24
from sparse24.bench import Timing
from sparse24.dispatch import Measured
from sparse24.swap import Table


def pruned(model: nn.Module) -> nn.Module:
    """The model in half precision and eval mode, 2:4 where it can be, its batch norms not idle."""
    torch.manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.weight.shape[1] % 4 == 0:
            weight = layer.weight.data
            flat = weight.flatten(1) if weight.dim() == 2 else weight.permute(0, 2, 3, 1).flatten(1)
            keep = flat.abs().view(-1, 4).argsort(1).argsort(1) >= 2
            flat = flat * keep.view_as(flat)
            if weight.dim() == 4:
                out, channels, *kernel = weight.shape
                flat = flat.view(out, *kernel, channels).permute(0, 3, 1, 2)
            layer.weight.data = flat.contiguous()
        elif isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.1)
    return model.half().eval()


def same_after_swap(model: nn.Module, x: Tensor) -> Table:
    """The table of swapping the model, whose result must stay that of the model in float64."""
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        wanted = exact(x.double())
        table = sparse24.swap(model)
        found = model(x.half()).double()
    size = wanted.abs().max()
    # halves round by 2^-11 at each of some dozen layers
    torch.testing.assert_close(found / size, wanted / size, rtol=0, atol=6e-3)
    return table


def reasons(table: Table) -> dict[str, str]:
    return {layer.name: layer.reason for layer in table}


def test_a_resnet_keeps_its_numbers_and_a_block_is_two_calls() -> None:
    model = pruned(resnet.resnet18(num_classes=8))
    table = same_after_swap(model, torch.randn(2, 3, 40, 40))
    told = reasons(table)
    assert (
        "3 channels; 2:4 needs a multiple of 4: keep it dense; batch norm folded" in told["conv1"]
    )
    assert told["layer1.0.conv1"] == "2:4, not measured; batch norm folded; relu fused"
    fused = "2:4, not measured; batch norm folded; residual fused; relu fused"
    assert told["layer1.0.conv2"] == told["layer4.1.conv2"] == fused
    assert told["layer2.0.downsample.0"] == "2:4, not measured; batch norm folded"
    assert sum(layer.swapped for layer in table) == len(table) - 1 == 20
    block = model.layer1[0]
    assert [n.target for n in block.graph.nodes if n.op == "call_module"] == ["conv1", "conv2"]
    assert type(block).__name__ == "BasicBlock"
    assert not [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    again = copy.deepcopy(model)
    again.load_state_dict(model.state_dict())


def test_a_grouped_resnext_keeps_its_numbers() -> None:
    model = resnet.ResNet(
        resnet.Bottleneck, [1, 1, 1, 1], num_classes=8, groups=8, width_per_group=16
    )
    table = same_after_swap(pruned(model), torch.randn(2, 3, 40, 40))
    assert sum(layer.swapped for layer in table) == len(table) - 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: densenet.DenseNet(8, (1, 2), 8, num_classes=4),
        lambda: inception.InceptionA(16, 8),
    ],
    ids=["densenet", "inception"],
)
def test_other_blocks_keep_their_numbers(make) -> None:
    model = pruned(make())
    channels = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).in_channels
    table = same_after_swap(model, torch.randn(2, channels, 32, 32))
    assert any(layer.swapped for layer in table)


def test_the_relu_of_inceptions_block_is_fused() -> None:
    model = pruned(inception.InceptionA(16, 8))
    told = reasons(sparse24.swap(model))
    assert told["branch1x1.conv"] == "2:4, not measured; batch norm folded; relu fused"


def conv(channels: int = 8, out: int = 8) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1)


class Overwritten(nn.Module):
    """Adds in place into what is read again: the add must stay where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> Tensor:
        kept = x * 1
        kept += self.conv(x)
        return kept * 2 + kept


class Written(nn.Module):
    """Writes into the convolution's input before the add."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = conv(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        y = self.conv(x)
        return F.relu(y + self.relu(x))


class Twice(nn.Module):
    """Calls one convolution twice: its batch norm must not be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.conv(x)))


class Read(nn.Module):
    """Reads the convolution's result a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class Broadcast(nn.Module):
    """Adds one number per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x.mean((2, 3), keepdim=True))


class Branches(nn.Module):
    """Cannot be traced: it branches on values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) if x.sum() > 1e9 else y


class Both(nn.Module):
    """Two convolutions meet in one add, of which only the later can take it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = conv(), conv(), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return (torch.relu(self.norm(self.one(x))) + self.two(x)).relu()


@pytest.mark.parametrize("kind", [Overwritten, Written, Twice, Read, Broadcast, Branches, Both])
def test_what_is_not_safe_is_not_fused(kind) -> None:
    model = pruned(nn.Sequential(kind(), nn.Identity()))
    told = reasons(same_after_swap(model, torch.randn(2, 8, 6, 6)))
    fused = {name: reason for name, reason in told.items() if "residual" in reason}
    assert set(fused) == {Broadcast: {"0.conv"}, Both: {"0.two"}}.get(kind, set())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == (kind in (Twice, Read, Branches))


def test_in_training_no_batch_norm_is_folded_and_hooks_are_kept() -> None:
    model = pruned(nn.Sequential(conv(), nn.BatchNorm2d(8), nn.ReLU()))
    model.train()
    assert reasons(sparse24.swap(model)) == {"0": "2:4, not measured"}
    assert isinstance(model[1], nn.BatchNorm2d)
    model = pruned(nn.Sequential(conv(), nn.BatchNorm2d(8), nn.ReLU()))
    model[1].register_forward_hook(lambda *_: None)
    sparse24.swap(model)
    assert isinstance(model[1], nn.BatchNorm2d)


def test_depthwise_other_paddings_and_shared_weights_stay_dense_with_the_reason() -> None:
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        conv(), conv(),
    )  # fmt: skip
    pruned(model)
    model[3].weight = model[2].weight
    told = reasons(sparse24.swap(model))
    assert "depthwise" in told["0"]
    assert told["1"] == "its padding is reflect, ours of zeros: keep it dense"
    assert told["2"] == "its weight is also that of 3.weight"


def test_a_shared_weight_keeps_its_batch_norms() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(8), conv(), nn.BatchNorm2d(8), nn.ReLU())
    pruned(model)
    model[2].weight = model[0].weight
    told = reasons(same_after_swap(model, torch.randn(2, 8, 6, 6)))
    assert told["0"] == "its weight is also that of 2.weight"
    assert [type(model[i]) for i in (1, 3)] == [nn.BatchNorm2d] * 2


def test_convolutions_are_measured_at_the_images_of_the_example(tmp_path) -> None:
    model = pruned(nn.Sequential(conv(8, 12), nn.BatchNorm2d(12), conv(12, 16), nn.ReLU()))
    x = torch.randn(3, 8, 6, 5).half()
    wanted = model(x)

    def timer(calls) -> Timing:
        choice, given, *_ = calls[0].args
        assert given.shape[:3] == (3, 6, 5)
        time = {"sparse24": 5.0 if given.shape[3] == 12 else 20.0, "dense": 10.0}[choice.backend]
        return Timing(time, time, time)

    given = {"timer": timer, "store": Measured(tmp_path / "times.json")}
    table = sparse24.swap(model, measure=True, example=x, **given)
    first, second = table
    dense = "2:4, but dense is the fastest at every size measured"
    assert (first.swapped, first.reason) == (False, f"{dense}; batch norm folded")
    assert first.times == ((3, 10.0, 20.0),)
    assert (second.swapped, second.reason) == (True, "2:4; images: 3: sparse24 2.00x; relu fused")
    assert type(model[0]) is nn.Conv2d
    assert [type(model[i]) for i in (1, 3)] == [nn.Identity, nn.Identity]
    torch.testing.assert_close(model(x), wanted, rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match=r"use SparseConv2d.of\(model\)"):
        sparse24.swap(conv())


def test_each_of_several_examples_is_measured(tmp_path) -> None:
    model, seen = pruned(nn.Sequential(conv())), set()

    def timer(calls) -> Timing:
        seen.add(tuple(calls[0].args[1].shape[:3]))
        return Timing(1.0, 1.0, 1.0)

    given = {"timer": timer, "store": Measured(tmp_path / "times.json"), "measure": True}
    sparse24.swap(model, example=[torch.randn(1, 8, 6, 6), (torch.randn(4, 8, 5, 6),)], **given)
    assert seen == {(1, 6, 6), (4, 5, 6)}


def test_without_an_example_convolutions_are_not_measured_and_that_is_said() -> None:
    model = pruned(nn.Sequential(conv()))
    (row,) = sparse24.swap(model, measure=True)
    assert row.reason == "2:4, not measured: swap got no example that reaches it"


def test_a_layer_comes_back_dense_moves_and_loads() -> None:
    dense = pruned(nn.Sequential(nn.Conv2d(8, 12, (3, 5), 2, (1, 2), 1)))[0]
    layer = sparse24.SparseConv2d.of(dense, "relu")
    back = layer.dense()
    assert torch.equal(back.weight, dense.weight)
    assert torch.equal(back.bias, dense.bias)
    x = torch.randn(2, 8, 9, 7).half()
    torch.testing.assert_close(layer(x), back(x).relu(), rtol=4e-3, atol=4e-3)
    assert layer.to("meta").weight.device.type == "meta"
    other = sparse24.SparseConv2d.of(pruned(nn.Sequential(nn.Conv2d(8, 12, (5, 3))))[0])
    state = sparse24.SparseConv2d.of(dense).state_dict()
    with pytest.raises(sparse24.PackError, match=r"says \(\(12, 8, 3, 5\).* is \(\(12, 8, 5, 3\)"):
        other.load_state_dict(state)
