"""Convolutional topologies keep their function; exactly the weights named gain."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv(i: int, o: int, kernel: int = 3, **more: int) -> nn.Conv2d:
    return nn.Conv2d(i, o, kernel, padding=kernel // 2, **more)


IMAGE = (2, 8, 6, 6)


def test_the_function_of_batch_norms_is_kept(check: Callable) -> None:
    model = nn.Sequential(
        conv(8, 16),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        conv(16, 24),
        nn.BatchNorm2d(24),
        nn.ReLU6(),
        conv(24, 8, 1),
    )
    check(model, IMAGE, "3", "6")


def test_the_function_of_conv1d_with_prelu_and_instance_norm_is_kept(check: Callable) -> None:
    model = nn.Sequential(
        nn.Conv1d(8, 16, 3),
        nn.BatchNorm1d(16),
        nn.PReLU(16),
        nn.Conv1d(16, 16, 3),
        nn.InstanceNorm1d(16, affine=True),
        nn.Tanh(),
        nn.Conv1d(16, 4, 1),
    )
    check(model, (2, 8, 12), "3", "6")


def test_the_function_of_conv3d_is_kept(check: Callable) -> None:
    model = nn.Sequential(nn.Conv3d(8, 16, 3), nn.MaxPool3d(2), nn.Conv3d(16, 4, 1))
    check(model, (1, 8, 4, 4, 4), "2")


def test_the_function_of_residual_is_kept(net: Callable, check: Callable) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.out(F.relu(x + self.b(F.relu(self.a(x)))))

    model = net(forward, stem=conv(8, 16), a=conv(16, 16), b=conv(16, 16), out=conv(16, 4))
    check(model, IMAGE, "a", "b", "out")


def test_the_function_of_in_place_residual_is_kept(net: Callable, check: Callable) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu_(self.b(F.relu(self.a(x))))
        y += x
        return self.out(y)

    model = net(forward, stem=conv(8, 16), a=conv(16, 16), b=conv(16, 16), out=conv(16, 4))
    check(model, IMAGE, "a", "b", "out")


def test_the_function_of_siblings_that_share_an_input_is_kept(
    net: Callable, check: Callable
) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.out(torch.add(self.left(x), self.right(x), alpha=2))

    model = net(
        forward, stem=conv(8, 16), left=conv(16, 16, 1), right=conv(16, 16), out=conv(16, 4)
    )
    check(model, IMAGE, "left", "right", "out")


def test_the_function_of_concatenation_is_kept(net: Callable, check: Callable) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.out(torch.cat([self.a(x), self.b(x)], 1))

    model = net(forward, a=conv(8, 16), b=conv(8, 8), out=conv(24, 4))
    check(model, IMAGE, "out")


def test_the_function_of_concatenation_off_the_groups_is_kept(
    net: Callable, check: Callable
) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.out(torch.cat([self.b(x), self.a(x)], 1))

    model = net(forward, a=conv(8, 18), b=conv(8, 6), out=conv(24, 4))
    check(model, IMAGE, "out")


def test_the_function_of_dense_blocks_is_kept(check: Callable) -> None:
    class Grow(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(channels), conv(channels, 16)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)

    layers = [conv(8, 16), Grow(16), Grow(32)]
    net = nn.Sequential(*layers)
    net.out = conv(48, 4, 1)
    check(net, IMAGE, "1.conv", "2.conv", "out")


def test_the_function_of_grouped_is_kept(net: Callable, check: Callable) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.out(F.relu(self.grouped(F.relu(self.stem(x)))))

    model = net(forward, stem=conv(8, 32), grouped=conv(32, 32, groups=2), out=conv(32, 4))
    check(model, IMAGE, "grouped", "out")


def test_the_function_of_depthwise_between_is_kept(net: Callable, check: Callable) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.out(F.silu(self.norm(self.depthwise(self.stem(x)))))

    model = net(
        forward,
        stem=conv(8, 16),
        depthwise=conv(16, 16, groups=16),
        norm=nn.BatchNorm2d(16),
        out=conv(16, 4),
    )
    check(model, IMAGE, "out")


def test_the_function_of_depthwise_with_multiplier_is_kept(net: Callable, check: Callable) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.out(self.depthwise(x)) + self.wide(x)

    model = net(
        forward,
        stem=conv(8, 16),
        depthwise=conv(16, 32, groups=16),
        out=conv(32, 4, 1),
        wide=conv(16, 4),
    )
    check(model, IMAGE, "wide", "out")


def test_the_function_of_squeeze_and_excite_is_kept(net: Callable, check: Callable) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        return self.out(x * torch.sigmoid(gate))

    model = net(
        forward, stem=conv(8, 16), squeeze=conv(16, 16, 1), excite=conv(16, 16, 1), out=conv(16, 4)
    )
    check(model, IMAGE, "squeeze", "excite", "out")


def test_the_function_of_spatial_gate_is_kept(net: Callable, check: Callable) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.out(self.stem(x) * self.gate(x).sigmoid())

    model = net(forward, stem=conv(8, 16), gate=conv(8, 1), out=conv(16, 4))
    check(model, IMAGE, "out")


def test_the_function_of_flatten_then_linear_is_kept(net: Callable, check: Callable) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.head(torch.flatten(F.max_pool2d(self.mid(F.relu(self.stem(x))), 2), 1))

    model = net(forward, stem=conv(8, 16), mid=conv(16, 8), head=nn.Linear(8 * 9, 10))
    check(model, IMAGE, "mid")


def test_the_function_of_flatten_beside_a_conv_is_kept(net: Callable, check: Callable) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x.flatten(1)) + self.side(x).mean((2, 3))

    model = net(forward, stem=conv(8, 16), head=nn.Linear(16 * 36, 10), side=conv(16, 10))
    check(model, IMAGE, "side")


def test_the_function_of_global_pool_then_linear_is_kept(net: Callable, check: Callable) -> None:
    model = net(
        lambda net, x: net.head(F.adaptive_avg_pool2d(F.hardswish(net.stem(x)), 1).flatten(1)),
        stem=conv(8, 16),
        head=nn.Linear(16, 10),
    )
    check(model, IMAGE, "head")


def test_the_function_of_group_norm_is_kept(check: Callable) -> None:
    model = nn.Sequential(conv(8, 32), nn.GroupNorm(2, 32), nn.ReLU(), conv(32, 4))
    check(model, IMAGE, "3")


def test_the_function_of_chunk_is_kept(net: Callable, check: Callable) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, 1)
        return self.left(a) + self.right(b)

    model = net(forward, stem=conv(8, 32), left=conv(16, 4), right=conv(16, 4))
    check(model, IMAGE, "left", "right")


def test_the_function_of_gated_halves_is_kept(net: Callable, check: Callable) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        a, b = torch.split(self.stem(x), [16, 16], 1)
        return self.out(a * b.sigmoid())

    model = net(forward, stem=conv(8, 32), out=conv(16, 4))
    check(model, IMAGE, "out")


def test_the_function_of_channel_shuffle_is_kept(net: Callable, check: Callable) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x.view(2, 2, 16, 6, 6).transpose(1, 2).reshape(2, 32, 6, 6)
        return self.out(x)

    model = net(forward, stem=conv(8, 32), out=conv(32, 4))
    check(model, IMAGE, "out")


def test_the_function_of_shortcut_padded_with_zero_channels_is_kept(
    net: Callable, check: Callable
) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.stem(x)
        padded = F.pad(x, (0, 0, 0, 0, 8, 8))
        return self.out(F.relu(padded + self.side(x)))

    model = net(forward, stem=conv(8, 16), side=conv(16, 32), out=conv(32, 4))
    check(model, IMAGE, "side", "out")


def test_the_function_of_transposed_and_resized_is_kept(net: Callable, check: Callable) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = F.interpolate(self.mid(self.deconv(self.stem(x))), scale_factor=2, mode="bilinear")
        return self.out(self.up(x))

    model = net(
        forward,
        stem=conv(8, 16),
        deconv=nn.ConvTranspose2d(16, 16, 2),
        mid=nn.BatchNorm2d(16),
        up=conv(16, 16),
        out=conv(16, 4),
    )
    check(model, IMAGE, "up", "out")


def test_the_function_of_in_place_dropout_after_flatten_is_kept(check: Callable) -> None:
    model = nn.Sequential(
        conv(8, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(inplace=True),
        nn.Linear(16, 4),
    )  # fmt: skip
    check(model, IMAGE, "4")
