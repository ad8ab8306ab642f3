"""SparseLinear and swap: state dicts, devices, what is replaced and what is said of the rest."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sparse24
from sparse24 import draw
from sparse24.bench import Timing
from sparse24.dispatch import Measured


def linear_2to4(out: int, columns: int, seed: int, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(columns, out, bias).half()
    layer.weight.data = draw.weight_2to4(out, columns, torch.float16, seed)
    return layer


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.body = nn.Sequential(linear_2to4(16, 16, 1), nn.ReLU(), linear_2to4(24, 16, 2, False))
        self.attention = nn.MultiheadAttention(16, 2)
        self.not_2to4 = nn.Linear(16, 8).half()
        self.odd = nn.Linear(6, 8).half()
        self.single = nn.Linear(16, 8)
        self.head = nn.Linear(16, 20, bias=False).half()
        self.head.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def test_swap_replaces_what_is_2to4_and_says_why_not_of_the_rest() -> None:
    net = Net()
    x = torch.randn(3, 5, 16).half()
    before = net(x)
    table = sparse24.swap(net)
    reasons = {layer.name: (layer.swapped, layer.reason) for layer in table}
    assert reasons["body.0"] == (True, "2:4, not measured; relu fused")
    assert isinstance(net.body[0], sparse24.SparseLinear)
    assert isinstance(net.body[2], sparse24.SparseLinear)
    assert "a NonDynamicallyQuantizableLinear" in reasons["attention.out_proj"][1]
    assert "row 0, group 0 (columns 0 to 3) has 4 non-zeros" in reasons["not_2to4"][1]
    assert "multiple of 4" in reasons["odd"][1]
    assert "torch.float32; allowed are" in reasons["single"][1]
    assert reasons["head"] == (False, "its weight is also that of embedding.weight")
    assert type(net.head) is nn.Linear
    assert str(table).splitlines()[-1] == "2 of 7 layers are sparse"
    torch.testing.assert_close(net(x), before, rtol=2e-3, atol=2e-3)


def test_a_layer_where_dense_is_faster_everywhere_stays_dense(tmp_path) -> None:
    net = nn.Sequential(linear_2to4(16, 16, 1), linear_2to4(24, 16, 2), linear_2to4(32, 24, 3))

    def timer(calls) -> Timing:
        choice, x, w, *_ = calls[0].args
        tokens = len(x)
        ours = {16: 20.0, 24: 5.0, 32: 20.0 if tokens < 10 else 5.0}[w.out_features]
        time = {"sparse24": ours, "dense": 10.0, "cusparselt": 30.0}[choice.backend]
        return Timing(time, time, time)

    store = Measured(tmp_path / "times.json")
    table = sparse24.swap(net, tokens=[4, 64], measure=True, timer=timer, store=store)
    assert [layer.swapped for layer in table] == [False, True, True]
    assert table[0].reason == "2:4, but dense is the fastest at every size measured"
    assert table[1].reason == "2:4; tokens: 4: sparse24 2.00x, 64: sparse24 2.00x"
    assert table[2].reason == "2:4; tokens: 4: dense 1.00x, 64: sparse24 2.00x"
    assert table[2].times == ((4, 10.0, 20.0), (64, 10.0, 5.0))
    assert type(net[0]) is nn.Linear
    assert set(net[1].weight.copies) == set()
    assert set(net[2].weight.copies) == {"dense"}


def test_a_state_dict_holds_the_packed_weight_and_loads_into_another() -> None:
    layer = sparse24.SparseLinear.of(linear_2to4(24, 16, 1))
    state = layer.state_dict()
    assert {name: t.dtype for name, t in state.items()} == {
        "packed": torch.uint8,
        "header": torch.int64,
        "bias": torch.float16,
    }
    for assign in (False, True):
        other = sparse24.SparseLinear.of(linear_2to4(24, 16, 9))
        other.load_state_dict(state, assign=assign)
        x = torch.randn(3, 16).half()
        assert torch.equal(other(x), layer(x))
        assert other.weight.packed is other.packed


def test_a_state_dict_of_another_shape_is_refused_by_its_header() -> None:
    # both are one block of 64 x 64, so that the packed tensors alone look alike
    other = sparse24.SparseLinear.of(linear_2to4(24, 20, 9, bias=False))
    state = sparse24.SparseLinear.of(linear_2to4(24, 16, 1, bias=False)).state_dict()
    with pytest.raises(sparse24.PackError, match=r"says \(\(24, 16\).* is \(\(24, 20\)"):
        other.load_state_dict(state)


def test_a_layer_moves_copies_and_comes_back_dense() -> None:
    dense = linear_2to4(24, 16, 1)
    layer = sparse24.SparseLinear.of(dense)
    assert copy.deepcopy(layer).weight.packed is not layer.packed
    assert layer.to("meta").weight.device.type == "meta"
    layer = sparse24.SparseLinear.of(dense).float()  # the bias follows, packed bytes do not
    assert (layer.packed.dtype, layer.bias.dtype) == (torch.uint8, torch.float32)
    back = sparse24.SparseLinear.of(dense).dense()
    assert torch.equal(back.weight, dense.weight)
    assert torch.equal(back.bias, dense.bias)


def test_a_layer_trains_its_bias_and_its_input() -> None:
    layer = sparse24.SparseLinear.of(linear_2to4(24, 16, 1))
    x = torch.randn(3, 16).half().requires_grad_()
    layer(x).sum().backward()
    assert layer.bias.grad.tolist() == [3.0] * 24
    assert x.grad.shape == x.shape
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


class Block(nn.Module):
    """x + f(x) of two linear layers, written with functions."""

    def __init__(self, shift: tuple[int, ...] = (16,)) -> None:
        super().__init__()
        self.up, self.down = linear_2to4(24, 16, 1), linear_2to4(16, 24, 2)
        self.own, self.shift = len(shift) == 1, nn.Parameter(torch.ones(shift).half())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = F.gelu(self.up(x), approximate="tanh")
        return torch.relu(self.down(inner) + (x if self.own else self.shift))


@pytest.mark.parametrize("shift", [(16,), (1, 16)], ids=["residual", "broadcast"])
def test_gelu_residual_and_relu_behind_linear_layers_are_fused(shift) -> None:
    model, x = nn.Sequential(Block(shift), nn.Identity()), torch.randn(3, 5, 16).half()
    wanted = model(x)
    table = sparse24.swap(model)
    assert table[0].reason == "2:4, not measured; gelu_tanh fused"
    assert table[1].reason == "2:4, not measured; residual fused; relu fused"
    called = [node.op for node in model[0].graph.nodes if node.op.startswith("call")]
    assert called == ["call_module"] * 2
    torch.testing.assert_close(model(x), wanted, rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize(
    ("activation", "name"),
    [(nn.GELU(), "gelu"), (nn.GELU("tanh"), "gelu_tanh"), (nn.ReLU(), "relu"), (nn.SiLU(), None)],
)
def test_an_activation_of_a_sequence_is_fused_if_the_kernel_has_it(activation, name) -> None:
    model = nn.Sequential(linear_2to4(24, 16, 1), activation, linear_2to4(8, 24, 2))
    x = torch.randn(3, 16).half()
    wanted = model(x)
    sparse24.swap(model)
    assert model[0].activation == name
    assert type(model[1]) is (type(activation) if name is None else nn.Identity)
    torch.testing.assert_close(model(x), wanted, rtol=4e-3, atol=4e-3)


def test_a_linear_itself_cannot_be_swapped_in_place() -> None:
    with pytest.raises(ValueError, match=r"use SparseLinear.of\(model\)"):
        sparse24.swap(linear_2to4(24, 16, 1))
