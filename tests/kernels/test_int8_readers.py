"""Who reads an INT8 layer's result decides whether it is int8."""

import pytest
import torch
from torch import Tensor, nn

import sparse24
from sparse24.int8 import connect
from tests.kernels.networks import apart


@torch.no_grad()
def called(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


class Reads(nn.Module):
    """Two INT8 layers, with something between or beside them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.drop, self.unused = nn.Dropout(0.5), nn.Identity()
        for layer in (self.one, self.two):
            layer.weight.data.view(-1, 4)[:, 1::2] = 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        if self.kind == "passed on":
            return self.two(self.unused(self.drop(y)))
        if self.kind == "read twice":
            return self.two(y) + y.sum()
        if self.kind == "called twice":
            return self.two(y) + self.one(x.relu())
        if self.kind == "changed":
            return self.two(y.tanh())
        if self.kind == "untraceable" and x.sum() > 1e9:
            return y
        return self.two(y)


@pytest.mark.parametrize(
    ("kind", "is_int8"),
    [("plain", True), ("passed on", True), ("read twice", False), ("called twice", False),
     ("changed", False), ("untraceable", False)],
)  # fmt: skip
def test_a_result_is_int8_only_where_int8_layers_alone_read_it(kind: str, is_int8: bool) -> None:
    torch.manual_seed(0)
    model, x = Reads(kind).eval(), torch.randn(16, 8)
    wanted = called(model, x)
    table = sparse24.swap(model, precision="int8", example=x)
    assert (model.one.scales.out is not None) == is_int8
    assert (model.two.scales.out, connect(model)) == (None, kind != "untraceable")
    assert apart(called(model, x), wanted) < 0.05
    assert table[0].reason.endswith(
        "INT8, int8 result" if is_int8
        else "float result: the model cannot be traced whole" if kind == "untraceable"
        else "INT8, float result"
    )  # fmt: skip


class Optional(Reads):
    """Reads the first result as a float unless a second input is given."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.one(x)
        return y.tanh() if mask is None else self.two(y)


def test_a_branch_on_what_is_given_is_not_guessed() -> None:
    model, x = Optional("").eval(), torch.randn(16, 8)
    wanted = called(model, x)
    sparse24.swap(model, precision="int8", scales={"one": 0.03, "two": 0.03})
    assert apart(called(model, x), wanted) < 0.05
