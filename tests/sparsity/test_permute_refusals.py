"""What `permute` refuses, what it leaves in place with a reason, and what it must not touch."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.sparsity import FunctionChangedError, NotTraceableError, permute
from workbench.sparsity import permutation_proof as proof


class Inner(nn.Module):
    """16 channels into a linear layer, with something in between."""

    def __init__(self, between) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))


def network(between) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Inner(between))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def is_same(model: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def ramp(x: Tensor) -> Tensor:
    return x * torch.arange(1.0, 1 + x.shape[1])


def first_doubled(x: Tensor) -> Tensor:
    return torch.cat([2 * x[:, :1], x[:, 1:]], 1)


def written(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 2] = 0
    return x


def half_written(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :8].mul_(3)
    return x


def neighbors(x: Tensor) -> Tensor:
    return F.avg_pool1d(x[:, None], 3, 1, 1)[:, 0]


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (ramp, "joined with values that differ by channel (node mul"),
        (neighbors, "avg_pool1d mixes channels (node avg_pool1d"),
        (lambda x: x.cumsum(1), "cumsum has no channel rule here (node cumsum"),
        (lambda x: x.sort(1).values, "sort has no channel rule here (node sort"),
        (lambda x: x * (x.argmax(1, keepdim=True) / 16), "argmax has no channel rule here"),
        (lambda x: x.view(-1, 4, 4).mean(1).repeat(1, 4), "reduced over some of the axes"),
        (lambda x: F.glu(torch.cat([x, x], 1)), "glu has no channel rule here"),
    ],
)
def test_code_that_depends_on_a_channels_position_stops_the_channels_with_its_node(between, reason):
    model = network(between)
    state = state_of(model)
    report = permute(model, torch.randn(4, 8))
    reasons = {layer.name: layer.reason for layer in report.layers}
    assert reason in reasons["0.second.weight"]
    assert "in 0)" in reasons["0.second.weight"]
    assert is_same(model, state)


@pytest.mark.parametrize(("between", "stays"), [(first_doubled, 0), (written, 2)])
def test_only_the_channel_that_is_treated_differently_keeps_its_place(between, stays):
    model = network(between)
    before, state = copy.deepcopy(model).double(), state_of(model)
    report = permute(model, torch.randn(4, 8))
    assert report.total.after > report.total.before
    assert torch.equal(model[0].first.weight[stays], state["0.first.weight"][stays])
    x = torch.randn(4, 8).double()
    torch.testing.assert_close(model.double()(x), before(x), rtol=1e-9, atol=1e-9)


def test_a_write_into_half_of_the_channels_leaves_that_half_in_place():
    model = network(half_written)
    before, state = copy.deepcopy(model).double(), state_of(model)
    report = permute(model, torch.randn(4, 8))
    assert report.total.after > report.total.before
    assert torch.equal(model[0].first.weight[:8], state["0.first.weight"][:8])
    x = torch.randn(4, 8).double()
    torch.testing.assert_close(model.double()(x), before(x), rtol=1e-9, atol=1e-9)


def test_a_hook_that_writes_one_channel_is_followed_too():
    model = network(nn.ReLU())
    model[0].between.register_forward_hook(lambda module, args, out: ramp(out))
    report = permute(model, torch.randn(4, 8))
    assert "differ by channel" in report.layers[1].reason


def hidden(x: Tensor) -> Tensor:
    return x.relu() if torch.compiler.is_exporting() else ramp(x)


def test_what_the_graph_does_not_show_is_caught_by_the_proof_and_nothing_changes():
    model = network(hidden)
    state = state_of(model)
    with pytest.raises(FunctionChangedError, match="no node of its graph: forward does something"):
        permute(model, torch.randn(4, 8))
    assert is_same(model, state)


def test_a_wrong_rule_is_caught_by_the_proof_with_the_offending_node(monkeypatch):
    from workbench.sparsity.channel_layers import LAYERS

    # cumsum declared channel by channel, which it is not
    monkeypatch.setitem(LAYERS, "cumsum", lambda rules, named: named["self"])
    model = network(lambda x: x.relu().cumsum(1).tanh())
    state = state_of(model)
    with pytest.raises(FunctionChangedError, match=r"node cumsum \(aten.cumsum.default\) in '0'"):
        permute(model, torch.randn(4, 8))
    assert is_same(model, state)


def test_forgotten_statistics_of_a_batch_norm_show_in_the_outputs():
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    nn.init.uniform_(model[1].running_mean)
    twin = copy.deepcopy(model).eval().double()
    example = proof.probes((torch.randn(4, 8),), {})[0]
    before = proof.outputs(twin, example)
    with torch.no_grad():
        order = torch.arange(15, -1, -1)
        for tensor in (twin[0].weight, twin[0].bias, twin[1].weight, twin[1].bias):
            tensor.copy_(tensor[order])
        twin[3].weight.copy_(twin[3].weight[:, order])
    assert proof.largest_error(before, proof.outputs(twin, example)) > 1e-9


def branching(x: Tensor) -> Tensor:
    return x + 1 if x.sum() > 0 else x


def test_data_dependent_control_flow_is_refused_with_the_module():
    model = network(branching)
    state = state_of(model)
    with pytest.raises(NotTraceableError, match=r"cannot trace 0 \(Inner\): GuardOnDataDependent"):
        permute(model, torch.randn(4, 8))
    assert is_same(model, state)


@pytest.mark.parametrize(
    ("between", "inputs", "message"),
    [
        (lambda x: 0 * x, torch.randn(4, 8), "the same for the example inputs and for others"),
        (lambda x: x / 0, torch.randn(4, 8), "not finite"),
        (lambda x: x, torch.full((4, 8), float("nan")), "not finite"),
    ],
)
def test_probes_that_would_prove_nothing_are_refused(between, inputs, message):
    with pytest.raises(ValueError, match=message):
        permute(network(between), inputs)


def test_a_wrong_pattern_is_refused_before_any_work():
    with pytest.raises(ValueError, match="keep 5 of 4"):
        permute(network(nn.ReLU()), torch.randn(4, 8), keep=5)


def test_inputs_and_outputs_keep_their_order():
    model = nn.Sequential(nn.Linear(16, 16))
    state = state_of(model)
    report = permute(model, torch.randn(4, 16))
    assert report.layers[0].reason.startswith("network input")
    assert is_same(model, state)


def rows_with_gradients(layer: nn.Linear) -> list[list[float]]:
    return torch.cat([layer.weight, layer.weight.grad], 1).tolist()


def test_the_random_states_modes_and_gradients_of_the_user_are_left_alone():
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 4))
    model[1].eval()
    model(torch.randn(4, 8)).sum().backward()
    rows = rows_with_gradients(model[0])
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    parameters = [id(parameter) for parameter in model.parameters()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    fast = torch.backends.mha.get_fastpath_enabled()
    permute(model, torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]
    assert [module.training for module in model.modules()] == modes
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert [id(parameter) for parameter in model.parameters()] == parameters
    assert torch.backends.mha.get_fastpath_enabled() == fast
    after = rows_with_gradients(model[0])
    assert sorted(after) == sorted(rows)  # gradients went with their weights
    assert after != rows


def test_the_same_model_is_permuted_the_same_way_whatever_the_seed():
    weights = []
    for seed in (1, 2):
        model = network(nn.ReLU())
        torch.manual_seed(seed)
        permute(model, torch.randn(4, 8))
        weights.append(model[0].first.weight)
    assert torch.equal(*weights)


def test_a_second_permutation_gains_nothing_once_the_search_has_converged():
    model = network(nn.ReLU())
    first = permute(model, torch.randn(4, 8), rounds=200).total
    second = permute(model, torch.randn(4, 8), rounds=200).total
    assert second.before == pytest.approx(first.after)
    assert second.after >= second.before


def test_other_patterns_are_searched_by_their_own_groups():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))
    for keep, of in ((1, 4), (4, 8), (1, 2)):
        report = permute(model, torch.randn(4, 8), keep, of)
        assert report.layers[-1].efficacy > 0


def test_weights_kept_dense_are_not_searched_for():
    model = network(nn.ReLU())
    state = state_of(model)
    report = permute(model, torch.randn(4, 8), keep_dense=["0.second.weight"])
    assert [layer.name for layer in report.layers] == ["0.first.weight"]
    assert is_same(model, state)


def test_keyword_inputs_and_several_inputs_are_taken():
    class Two(Inner):
        def forward(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
            return {"out": super().forward(x if y is None else x + y)}

    for inputs in ((torch.randn(4, 8), torch.randn(4, 8)), {"x": torch.randn(4, 8)}):
        torch.manual_seed(0)
        report = permute(Two(nn.ReLU()), inputs)
        assert report.layers[1].efficacy > 0


def test_the_report_prints_every_layer_and_the_total():
    text = str(permute(network(nn.ReLU()), torch.randn(4, 8)))
    assert [line.split()[0] for line in text.splitlines()] == [
        "layer", "0.first.weight", "0.second.weight", "total",
    ]  # fmt: skip


def test_bert_gains_in_every_layer_but_those_that_read_its_output_order():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=16,
    )  # fmt: skip
    model = transformers.BertForQuestionAnswering(config)
    ids = torch.arange(16).view(2, 8)
    before = copy.deepcopy(model).eval()(ids).start_logits
    report = permute(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert all(layer.efficacy > 0 for layer in report.layers)
    torch.testing.assert_close(model.eval()(ids).start_logits, before)


@pytest.mark.parametrize(
    ("name", "least"),
    [("resnet18", 20), ("densenet121", 100), ("mobilenet_v3_small", 20)],
)
@pytest.mark.slow
def test_torchvision_networks_keep_their_function(name, least):
    models = pytest.importorskip("torchvision.models")
    model = models.get_model(name, weights=None)
    report = permute(model, torch.randn(1, 3, 64, 64), rounds=2)
    assert sum(layer.efficacy > 0 for layer in report.layers) >= least
