"""Linear and attention topologies keep their function; exactly the weights named gain."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TOKENS, VECTOR = (2, 5, 16), (4, 16)


def test_the_function_of_mlp_is_kept(check: Callable) -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8))
    check(model, VECTOR, "2")


def test_the_function_of_layer_norm_block_is_kept(check: Callable) -> None:
    class Residual(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return x + super().forward(x)

    model = nn.Sequential(
        nn.Linear(16, 32),
        nn.Linear(32, 16),
        nn.LayerNorm(16),
        Residual(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)),
        nn.Linear(16, 4),
    )
    check(model, TOKENS, "1", "3.0", "3.2", "4")


def test_the_function_of_attention_module_is_kept(net: Callable, check: Callable) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.norm(self.inside(self.stem(x)))
        return self.out(x + self.attention(x, x, x)[0])

    model = net(
        forward,
        stem=nn.Linear(16, 32),
        inside=nn.Linear(32, 32),
        norm=nn.LayerNorm(32),
        attention=nn.MultiheadAttention(32, 2, batch_first=True),
        out=nn.Linear(32, 4),
    )
    check(model, TOKENS, "inside", "attention.out_proj", "attention.in_proj", "out")


def test_the_function_of_functional_attention_is_kept(net: Callable, check: Callable) -> None:
    def heads(x: Tensor) -> Tensor:
        return x.view(2, 5, 2, 16).transpose(1, 2)

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.stem(x)
        scores = heads(self.q(x)) @ heads(self.k(x)).transpose(-2, -1) / 4
        mixed = scores.softmax(-1) @ heads(self.v(x))
        return self.o(mixed.transpose(1, 2).reshape(2, 5, 32))

    model = net(
        forward,
        stem=nn.Linear(16, 32),
        q=nn.Linear(32, 32),
        k=nn.Linear(32, 32),
        v=nn.Linear(32, 32),
        o=nn.Linear(32, 4),
    )
    check(model, TOKENS, "q", "k", "v", "o")


def test_the_function_of_transformer_encoder_layer_is_kept(check: Callable) -> None:
    layer = nn.TransformerEncoderLayer(16, 1, 32, batch_first=True)
    model = nn.Sequential(layer, nn.Linear(16, 4))
    check(model, TOKENS, "0.self_attn.out_proj", "0.linear2")  # the input is on the residual path


def test_the_function_of_tied_weights_is_kept(net: Callable, check: Callable) -> None:
    net = net(
        lambda net, x: net.out(F.relu(net.b(F.relu(net.a(net.stem(x)))))),
        stem=nn.Linear(16, 16), a=nn.Linear(16, 16), b=nn.Linear(16, 16), out=nn.Linear(16, 4),
    )  # fmt: skip
    net.b.weight = net.a.weight
    check(net, VECTOR, "a", "out")


def test_the_function_of_module_used_twice_is_kept(net: Callable, check: Callable) -> None:
    model = net(
        lambda net, x: net.out(F.relu(net.twice(F.relu(net.twice(net.stem(x)))))),
        stem=nn.Linear(16, 16),
        twice=nn.Linear(16, 16),
        out=nn.Linear(16, 4),
    )
    check(model, VECTOR, "twice", "out")


def test_the_function_of_layer_scale_and_position_embedding_is_kept(
    net: Callable, check: Callable
) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.stem(x) + self.position
        x = torch.cat([self.first.expand(2, -1, -1), x], 1)
        return self.out(self.scale * self.mid(x))

    model = net(
        forward,
        stem=nn.Linear(16, 16),
        position=nn.Parameter(torch.randn(1, 5, 16)),
        first=nn.Parameter(torch.randn(1, 1, 16)),
        mid=nn.Linear(16, 16),
        scale=nn.Parameter(torch.rand(16)),
        out=nn.Linear(16, 4),
    )
    check(model, TOKENS, "mid", "out")


def test_the_function_of_functional_layers_is_kept(net: Callable, check: Callable) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = torch.addmm(self.shift, self.stem(x), self.matrix).relu()
        return self.out(x @ self.second)

    model = net(
        forward,
        stem=nn.Linear(16, 16),
        matrix=nn.Parameter(torch.randn(16, 16)),
        shift=nn.Parameter(torch.randn(16)),
        second=nn.Parameter(torch.randn(16, 16)),
        out=nn.Linear(16, 4),
    )
    check(model, VECTOR, "out")
