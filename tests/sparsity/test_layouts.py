import pytest
import torch
from torch import nn

from workbench import inventory
from workbench.sparsity import explain, hold, is_nm, layer_sparsity, layout_of, nm, prune, reflatten

RECURRENT = {
    "lstm": lambda: nn.LSTM(8, 12, num_layers=2, bidirectional=True, proj_size=4),
    "gru": lambda: nn.GRU(8, 12, num_layers=2),
    "rnn": lambda: nn.RNN(8, 12),
    "lstm_cell": lambda: nn.LSTMCell(8, 12),
    "gru_cell": lambda: nn.GRUCell(8, 12),
    "rnn_cell": lambda: nn.RNNCell(8, 12),
}
TRANSPOSED = {
    "1d": lambda: nn.ConvTranspose1d(8, 6, 3),
    "2d": lambda: nn.ConvTranspose2d(8, 6, 3),
    "3d": lambda: nn.ConvTranspose3d(8, 6, 2),
    "grouped": lambda: nn.ConvTranspose2d(16, 6, 3, groups=2),
}


def groups_of_input_channels(module: nn.Module, weight: torch.Tensor) -> list[torch.Tensor]:
    """Every group of four consecutive input channels of a transposed convolution, by hand."""
    per_group = weight.shape[0] // module.groups
    starts = [g * per_group + c for g in range(module.groups) for c in range(0, per_group, 4)]
    return [
        weight[(slice(start, start + 4), out, *position)]
        for start in starts
        for out in range(weight.shape[1])
        for position in torch.cartesian_prod(*map(torch.arange, weight.shape[2:]))
        .view(-1, weight.dim() - 2)
        .tolist()
    ]


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolutions_keep_the_two_largest_of_four_input_channels(name):
    torch.manual_seed(0)
    module = TRANSPOSED[name]()
    before = module.weight.detach().clone()
    masks = prune(module, rule="c4+")
    groups = groups_of_input_channels(module, masks["weight"])
    assert len(groups) * 4 == module.weight.numel()
    for kept, values in zip(groups, groups_of_input_channels(module, before), strict=True):
        assert sorted(values.abs().topk(2).indices.tolist()) == kept.nonzero().flatten().tolist()
    assert is_nm(module.weight, 2, 4, layout_of(module))
    assert layer_sparsity(module)[0]["is_2to4"]


@pytest.mark.parametrize("name", TRANSPOSED)
def test_an_oriented_weight_is_restored_to_the_same_bits(name):
    module = TRANSPOSED[name]()
    layout = layout_of(module)
    oriented = layout.oriented(module.weight)
    assert oriented.shape[:2] == (6, 8)
    assert torch.equal(layout.restored(oriented), module.weight)


def test_an_oriented_transposed_convolution_is_the_weight_of_the_convolution_it_undoes():
    # y = conv_transpose(x, w) at stride 1 and full padding is conv(x, flipped oriented weight)
    torch.manual_seed(0)
    module = nn.ConvTranspose2d(16, 6, 3, groups=2, bias=False)
    x = torch.randn(1, 16, 5, 5)
    as_convolution = layout_of(module).oriented(module.weight).flip(2, 3)
    expected = nn.functional.conv2d(x, as_convolution, padding=2, groups=2)
    assert torch.allclose(module(x), expected, atol=1e-5)


@pytest.mark.parametrize("name", RECURRENT)
def test_gate_matrices_are_pruned_along_their_inputs(name):
    torch.manual_seed(0)
    module = RECURRENT[name]()
    matrices = [n for n, p in module.named_parameters() if p.dim() == 2]
    before = {n: module.get_parameter(n).detach().clone() for n in matrices}
    masks = prune(module, rule="c4+")
    assert list(masks) == matrices  # every direction, layer and projection; no bias
    for matrix, weight in before.items():
        assert torch.equal(masks[matrix], nm(weight, 2, 4))


@pytest.mark.parametrize("rule", ["c4", "asp"])
def test_the_older_rules_list_recurrent_and_transposed_weights_as_dense_and_why(rule):
    model = nn.ModuleDict({"up": nn.ConvTranspose2d(16, 16, 2), "gates": nn.LSTM(16, 16)})
    assert {layer.name: layer.reason for layer in explain(model, rule)} == {
        "up.weight": "transposed convolution: only rule c4+ prunes it",
        "gates.weight_ih_l0": "recurrent gates: only rule c4+ prunes them",
        "gates.weight_hh_l0": "recurrent gates: only rule c4+ prunes them",
    }


def test_channels_of_a_transposed_convolution_are_counted_per_group():
    model = nn.ModuleList(
        [
            nn.ConvTranspose2d(8, 8, 2, groups=4),
            nn.ConvTranspose2d(8, 8, 2, groups=8),
            nn.ConvTranspose2d(6, 8, 2),
            nn.GRU(6, 8),
        ]
    )
    assert [layer.reason for layer in explain(model, "c4+")] == [
        "first layer: 2 input channels per group, not a multiple of 4",
        "depthwise: 1 input channel per group",
        "6 input channels per group, not a multiple of 4",
        "6 input channels per group, not a multiple of 4",
        "",
    ]


# networks.csv: eligible_c4 + extra_eligible_lstm_or_convtranspose, of the originals' definitions
@pytest.mark.parametrize(
    ("network", "c4", "more"),
    [
        ("sunet7_128", 31_729_664, 7_225_344),
        ("maskrcnn_rn50", 44_065_536, 262_144),
        ("maskrcnn_rn101_fpn_3x", 63_005_440, 262_144),
        ("resnet50", 25_493_504, 0),
    ],
)
def test_c4_plus_adds_the_published_count_of_the_talks_networks(network, c4, more):
    model = inventory.meta_network(network).requires_grad_(True)
    assert inventory.eligible(model, "c4") == c4
    assert inventory.eligible(model, "c4+") == c4 + more


@pytest.mark.parametrize("name", RECURRENT)
def test_held_gate_matrices_stay_zero_and_learn(name):
    torch.manual_seed(0)
    model = RECURRENT[name]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    masks = prune(model, rule="c4+")
    before = {n: model.get_parameter(n).detach().clone() for n in masks}
    hold(masks, model, optimizer)
    for _ in range(2):
        last_of_two_steps(model).square().sum().backward()
        optimizer.step()
    masks.verify(model)
    assert all((model.get_parameter(n) != w)[masks[n]].any() for n, w in before.items())


def last_of_two_steps(model: nn.Module) -> torch.Tensor:
    """The output after two steps, so that the hidden matrices matter."""
    if not isinstance(model, nn.RNNCellBase):
        return model(torch.ones(2, 2, 8))[0][-1]
    state = model(torch.ones(2, 8), model(torch.ones(2, 8)))
    return state[0] if isinstance(state, tuple) else state


def test_masking_writes_in_place_so_that_recurrent_weights_keep_their_storage():
    model = nn.LSTM(8, 8, num_layers=2)
    before = [weight.data_ptr() for weight in model._flat_weights]
    prune(model, rule="c4+")
    reflatten(model)
    assert [weight.data_ptr() for weight in model._flat_weights] == before


@pytest.mark.gpu
def test_cudnn_weights_are_one_buffer_after_pruning_training_and_assignment():
    def one_buffer(module: nn.LSTM) -> bool:
        return len({w.untyped_storage().data_ptr() for w in module._flat_weights}) == 1

    model = nn.LSTM(8, 8, num_layers=2).cuda()
    assert one_buffer(model)
    masks = prune(model, rule="c4+")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hold(masks, model, optimizer)
    model(torch.ones(5, 2, 8, device="cuda"))[0].sum().backward()
    optimizer.step()
    assert one_buffer(model)
    assigned = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(assigned, assign=True)
    assert not one_buffer(model)
    masks.apply(model)
    assert one_buffer(model)
    masks.verify(model)
