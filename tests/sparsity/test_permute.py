"""Function preservation and gain over small topologies; each says which weights must gain."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.sparsity import is_nm, permute, prune


class Net(nn.Module):
    """Named layers and a function of them and the input."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self._run = forward

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self._run(self, *args, **kwargs)


def conv(i: int, o: int, kernel: int = 3, **more: int) -> nn.Conv2d:
    return nn.Conv2d(i, o, kernel, padding=kernel // 2, **more)


IMAGE, TOKENS, VECTOR = (2, 8, 6, 6), (2, 5, 16), (4, 16)
WEIGHTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str]]] = {}


def topology(shape: tuple[int, ...], *gains: str) -> Callable:
    """Register a builder; after `permute`, exactly the weights `gains` keep more."""

    def register(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        WEIGHTS[build.__name__] = (build, shape, {f"{name}.weight" for name in gains})
        return build

    return register


@topology(VECTOR, "2")
def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8))


@topology(IMAGE, "3", "6")
def batch_norms() -> nn.Module:
    return nn.Sequential(
        conv(8, 16), nn.BatchNorm2d(16), nn.ReLU(), conv(16, 24), nn.BatchNorm2d(24), nn.ReLU6(),
        conv(24, 8, 1),
    )  # fmt: skip


@topology((2, 8, 12), "3", "6")
def conv1d_with_prelu_and_instance_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(8, 16, 3), nn.BatchNorm1d(16), nn.PReLU(16), nn.Conv1d(16, 16, 3),
        nn.InstanceNorm1d(16, affine=True), nn.Tanh(), nn.Conv1d(16, 4, 1),
    )  # fmt: skip


@topology((1, 8, 4, 4, 4), "2")
def conv3d() -> nn.Module:
    return nn.Sequential(nn.Conv3d(8, 16, 3), nn.MaxPool3d(2), nn.Conv3d(16, 4, 1))


@topology(IMAGE, "a", "b", "out")
def residual() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.out(F.relu(x + net.b(F.relu(net.a(x)))))

    return Net(forward, stem=conv(8, 16), a=conv(16, 16), b=conv(16, 16), out=conv(16, 4))


@topology(IMAGE, "a", "b", "out")
def in_place_residual() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        y = F.relu_(net.b(F.relu(net.a(x))))
        y += x
        return net.out(y)

    return Net(forward, stem=conv(8, 16), a=conv(16, 16), b=conv(16, 16), out=conv(16, 4))


@topology(IMAGE, "left", "right", "out")
def siblings_that_share_an_input() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.out(torch.add(net.left(x), net.right(x), alpha=2))

    return Net(forward, stem=conv(8, 16), left=conv(16, 16, 1), right=conv(16, 16), out=conv(16, 4))


@topology(IMAGE, "out")
def concatenation() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.out(torch.cat([net.a(x), net.b(x)], 1))

    return Net(forward, a=conv(8, 16), b=conv(8, 8), out=conv(24, 4))


@topology(IMAGE, "out")
def concatenation_off_the_groups() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.out(torch.cat([net.b(x), net.a(x)], 1))

    return Net(forward, a=conv(8, 18), b=conv(8, 6), out=conv(24, 4))


@topology(IMAGE, "1.conv", "2.conv", "out")
def dense_blocks() -> nn.Module:
    class Grow(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(channels), conv(channels, 16)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)

    layers = [conv(8, 16), Grow(16), Grow(32)]
    net = nn.Sequential(*layers)
    net.out = conv(48, 4, 1)
    return net


@topology(IMAGE, "grouped", "out")
def grouped() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.out(F.relu(net.grouped(F.relu(net.stem(x)))))

    return Net(forward, stem=conv(8, 32), grouped=conv(32, 32, groups=2), out=conv(32, 4))


@topology(IMAGE, "out")
def depthwise_between() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.out(F.silu(net.norm(net.depthwise(net.stem(x)))))

    return Net(
        forward, stem=conv(8, 16), depthwise=conv(16, 16, groups=16), norm=nn.BatchNorm2d(16),
        out=conv(16, 4),
    )  # fmt: skip


@topology(IMAGE, "wide", "out")
def depthwise_with_multiplier() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.out(net.depthwise(x)) + net.wide(x)

    return Net(
        forward, stem=conv(8, 16), depthwise=conv(16, 32, groups=16), out=conv(32, 4, 1),
        wide=conv(16, 4),
    )  # fmt: skip


@topology(IMAGE, "squeeze", "excite", "out")
def squeeze_and_excite() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        gate = net.excite(F.relu(net.squeeze(x.mean((2, 3), keepdim=True))))
        return net.out(x * torch.sigmoid(gate))

    return Net(
        forward, stem=conv(8, 16), squeeze=conv(16, 16, 1), excite=conv(16, 16, 1), out=conv(16, 4)
    )


@topology(IMAGE, "out")
def spatial_gate() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.out(net.stem(x) * net.gate(x).sigmoid())

    return Net(forward, stem=conv(8, 16), gate=conv(8, 1), out=conv(16, 4))


@topology(IMAGE, "mid")
def flatten_then_linear() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.head(torch.flatten(F.max_pool2d(net.mid(F.relu(net.stem(x))), 2), 1))

    return Net(forward, stem=conv(8, 16), mid=conv(16, 8), head=nn.Linear(8 * 9, 10))


@topology(IMAGE, "side")
def flatten_beside_a_conv() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.head(x.flatten(1)) + net.side(x).mean((2, 3))

    return Net(forward, stem=conv(8, 16), head=nn.Linear(16 * 36, 10), side=conv(16, 10))


@topology(IMAGE, "head")
def global_pool_then_linear() -> nn.Module:
    return Net(
        lambda net, x: net.head(F.adaptive_avg_pool2d(F.hardswish(net.stem(x)), 1).flatten(1)),
        stem=conv(8, 16), head=nn.Linear(16, 10),
    )  # fmt: skip


@topology(TOKENS, "1", "3.0", "3.2", "4")
def layer_norm_block() -> nn.Module:
    class Residual(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return x + super().forward(x)

    return nn.Sequential(
        nn.Linear(16, 32), nn.Linear(32, 16), nn.LayerNorm(16),
        Residual(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)), nn.Linear(16, 4),
    )  # fmt: skip


@topology(IMAGE, "3")
def group_norm() -> nn.Module:
    return nn.Sequential(conv(8, 32), nn.GroupNorm(2, 32), nn.ReLU(), conv(32, 4))


@topology(TOKENS, "inside", "attention.out_proj", "attention.in_proj", "out")
def attention_module() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.norm(net.inside(net.stem(x)))
        return net.out(x + net.attention(x, x, x)[0])

    return Net(
        forward, stem=nn.Linear(16, 32), inside=nn.Linear(32, 32), norm=nn.LayerNorm(32),
        attention=nn.MultiheadAttention(32, 2, batch_first=True), out=nn.Linear(32, 4),
    )  # fmt: skip


@topology(TOKENS, "q", "k", "v", "o")
def functional_attention() -> nn.Module:
    def heads(x: Tensor) -> Tensor:
        return x.view(2, 5, 2, 16).transpose(1, 2)

    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        scores = heads(net.q(x)) @ heads(net.k(x)).transpose(-2, -1) / 4
        mixed = scores.softmax(-1) @ heads(net.v(x))
        return net.o(mixed.transpose(1, 2).reshape(2, 5, 32))

    return Net(
        forward, stem=nn.Linear(16, 32), q=nn.Linear(32, 32), k=nn.Linear(32, 32),
        v=nn.Linear(32, 32), o=nn.Linear(32, 4),
    )  # fmt: skip


@topology(TOKENS, "0.self_attn.out_proj", "0.linear2")  # the input is on the residual path
def transformer_encoder_layer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 1, 32, batch_first=True)
    return nn.Sequential(layer, nn.Linear(16, 4))


@topology(VECTOR, "a", "out")
def tied_weights() -> nn.Module:
    net = Net(
        lambda net, x: net.out(F.relu(net.b(F.relu(net.a(net.stem(x)))))),
        stem=nn.Linear(16, 16), a=nn.Linear(16, 16), b=nn.Linear(16, 16), out=nn.Linear(16, 4),
    )  # fmt: skip
    net.b.weight = net.a.weight
    return net


@topology(VECTOR, "twice", "out")
def module_used_twice() -> nn.Module:
    return Net(
        lambda net, x: net.out(F.relu(net.twice(F.relu(net.twice(net.stem(x)))))),
        stem=nn.Linear(16, 16), twice=nn.Linear(16, 16), out=nn.Linear(16, 4),
    )  # fmt: skip


@topology(IMAGE, "left", "right")
def chunk() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        a, b = net.stem(x).chunk(2, 1)
        return net.left(a) + net.right(b)

    return Net(forward, stem=conv(8, 32), left=conv(16, 4), right=conv(16, 4))


@topology(IMAGE, "out")
def gated_halves() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        a, b = torch.split(net.stem(x), [16, 16], 1)
        return net.out(a * b.sigmoid())

    return Net(forward, stem=conv(8, 32), out=conv(16, 4))


@topology(IMAGE, "out")
def channel_shuffle() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        x = x.view(2, 2, 16, 6, 6).transpose(1, 2).reshape(2, 32, 6, 6)
        return net.out(x)

    return Net(forward, stem=conv(8, 32), out=conv(32, 4))


@topology(IMAGE, "side", "out")
def shortcut_padded_with_zero_channels() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        padded = F.pad(x, (0, 0, 0, 0, 8, 8))
        return net.out(F.relu(padded + net.side(x)))

    return Net(forward, stem=conv(8, 16), side=conv(16, 32), out=conv(32, 4))


@topology(IMAGE, "up", "out")
def transposed_and_resized() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = F.interpolate(net.mid(net.deconv(net.stem(x))), scale_factor=2, mode="bilinear")
        return net.out(net.up(x))

    return Net(
        forward, stem=conv(8, 16), deconv=nn.ConvTranspose2d(16, 16, 2), mid=nn.BatchNorm2d(16),
        up=conv(16, 16), out=conv(16, 4),
    )  # fmt: skip


@topology(TOKENS, "mid", "out")
def layer_scale_and_position_embedding() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x) + net.position
        x = torch.cat([net.first.expand(2, -1, -1), x], 1)
        return net.out(net.scale * net.mid(x))

    return Net(
        forward, stem=nn.Linear(16, 16), position=nn.Parameter(torch.randn(1, 5, 16)),
        first=nn.Parameter(torch.randn(1, 1, 16)), mid=nn.Linear(16, 16),
        scale=nn.Parameter(torch.rand(16)), out=nn.Linear(16, 4),
    )  # fmt: skip


@topology(VECTOR, "out")
def functional_layers() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = torch.addmm(net.shift, net.stem(x), net.matrix).relu()
        return net.out(x @ net.second)

    return Net(
        forward, stem=nn.Linear(16, 16), matrix=nn.Parameter(torch.randn(16, 16)),
        shift=nn.Parameter(torch.randn(16)), second=nn.Parameter(torch.randn(16, 16)),
        out=nn.Linear(16, 4),
    )  # fmt: skip


def randomized(build: Callable[[], nn.Module]) -> nn.Module:
    """The model with every norm's parameters and statistics different by channel."""
    torch.manual_seed(0)
    model = build()
    for module in model.modules():
        for name in ("weight", "bias", "running_mean"):
            tensor = getattr(module, name, None)
            if tensor is not None and tensor.dim() == 1:
                nn.init.normal_(tensor)
        if getattr(module, "running_var", None) is not None:
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_function_is_kept_and_the_named_layers_gain(name):
    build, shape, gains = WEIGHTS[name]
    model = randomized(build)
    before = copy.deepcopy(model).eval().double()
    report = permute(model, torch.randn(shape), rounds=20)
    assert report.largest_error <= 1e-9
    # not the probes of the proof; the buffers and parameters as they are in fp32, summed in fp64
    x = torch.randn(shape, generator=torch.Generator().manual_seed(7)).double()
    after = copy.deepcopy(model).eval().double()
    torch.testing.assert_close(after(x), before(x), rtol=1e-9, atol=1e-9)
    assert report.total.after >= report.total.before
    gained = {layer.name for layer in report.layers if layer.after != layer.before}
    assert gained == {name.replace("in_proj.weight", "in_proj_weight") for name in gains}
    for layer in report.layers:
        assert layer.before <= layer.row_bound * (1 + 1e-9) <= layer.unstructured * (1 + 1e-8)
        assert layer.after <= layer.row_bound * (1 + 1e-9)
        assert bool(layer.reason) == (layer.after <= layer.before)
    prune(model)
    parameters = dict(model.named_parameters())
    assert all(is_nm(parameters[layer.name], 2, 4) for layer in report.layers)
    for layer in report.layers:
        kept = parameters[layer.name].detach().abs().sum(dtype=torch.float64).item()
        assert kept == pytest.approx(layer.after, rel=1e-6)
