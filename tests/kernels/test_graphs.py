"""Graphs: one recording per shape, copies, refusals; a stand-in records where there is no GPU."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from sparse24 import GraphError, Graphs
from sparse24.graphs import Recorded


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor, shift: float = 0.0) -> dict[str, Tensor]:
        self.calls += 1
        return {"out": x * self.factor + shift}


def recording(call) -> Recorded:
    """As a CUDA graph does it: the same call again, its result into the same memory."""
    result = call()

    def replay() -> None:
        result["out"].copy_(call()["out"])

    return Recorded(replay, result)


def test_on_a_cpu_the_model_is_called() -> None:
    model = Doubled().eval()
    graphs = Graphs(model)
    assert graphs(torch.ones(3), shift=1.0)["out"].tolist() == [3.0] * 3
    assert (model.calls, len(graphs)) == (1, 0)
    assert not graphs(torch.ones(3))["out"].requires_grad


def test_each_shape_type_and_plain_argument_is_recorded_once() -> None:
    graphs = Graphs(Doubled().eval(), record=recording)
    for x in (torch.ones(3), torch.full((3,), 5.0), torch.ones(3, 1), torch.ones(3).double()):
        assert torch.equal(graphs(x)["out"], x * 2)
    assert len(graphs) == 3
    assert graphs(torch.ones(3), shift=1.0)["out"].tolist() == [3.0] * 3
    assert graphs(torch.ones(3), shift=2.0)["out"].tolist() == [4.0] * 3
    assert len(graphs) == 5
    graphs.forget()
    assert len(graphs) == 0


def test_a_result_is_kept_over_the_next_call_unless_no_copies_are_asked_for() -> None:
    one, two = torch.ones(3), torch.full((3,), 2.0)
    graphs = Graphs(Doubled().eval(), record=recording)
    first = graphs(one)["out"]
    graphs(two)
    assert first.tolist() == [2.0] * 3
    bare = Graphs(Doubled().eval(), copies=False, record=recording)
    first = bare(one)["out"]
    assert bare(two)["out"] is first
    assert first.tolist() == [4.0] * 3
    assert (one.tolist(), two.tolist()) == ([1.0] * 3, [2.0] * 3)


class Answer(NamedTuple):
    """Known to torch's pytree; Opaque is not."""

    out: Tensor


class Opaque:
    pass


def test_what_cannot_be_recorded_is_refused_with_the_reason() -> None:
    with pytest.raises(GraphError, match="in training mode, .*: call model.eval()"):
        Graphs(Doubled(), record=recording)(torch.ones(3))
    with pytest.raises(
        GraphError, match="tensor 0 of the arguments is on meta and the model on cpu"
    ):
        Graphs(Doubled().eval(), record=recording)(torch.ones(3, device="meta"))
    model = Doubled().eval()
    with pytest.raises(GraphError, match="the model gives a Opaque, whose tensors are not known"):
        Graphs(model, record=lambda call: Recorded(call, Opaque()))(torch.ones(3))
    Graphs(model, record=lambda call: Recorded(call, Answer(torch.ones(3))))(torch.ones(3))
