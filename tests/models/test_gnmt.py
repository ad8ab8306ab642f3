"""GNMT: size, initial weights, what feeds what, padding, step by step decoding."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from workbench import sparsity
from workbench.models import gnmt
from workbench.sparsity.hold import hold

PADDING, BEGIN, END = 0, 1, 2


def tiny(dropout: float = 0.0, layers: int = 4) -> gnmt.GNMT:
    torch.manual_seed(0)
    return gnmt.build(
        layers=layers, hidden=8, dropout=dropout, vocabulary=20, padding=PADDING
    ).eval()


def tokens(rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(3, 20, (rows, length), generator=torch.manual_seed(seed))


def test_the_network_has_the_size_of_deep_learning_examples() -> None:
    with torch.device("meta"):
        model = gnmt.build(vocabulary=32320, padding=0)
    linears = [m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear)]
    gates = [
        parameter.numel()
        for lstm in model.modules()
        if isinstance(lstm, nn.LSTM)
        for name, parameter in lstm.named_parameters()
        if name.startswith("weight")
    ]
    # networks.csv, row 29
    assert sum(p.numel() for p in model.parameters()) == 160_671_297
    assert len(linears) == 3 and sum(linears) == 35_192_832
    assert sum(gates) == 92_274_688


def test_the_classifier_has_a_weight_of_its_own_and_both_sides_embed_with_one_table() -> None:
    model = tiny()
    assert model.classifier.weight is not model.embedding.weight
    assert [m for m in model.modules() if isinstance(m, nn.Embedding)] == [model.embedding]
    before = model(tokens(1, 4), tokens(1, 3, seed=2))
    with torch.no_grad():
        model.embedding.weight[5] += 1.0
    only_source = model(torch.tensor([[5, 6, 7]]), torch.tensor([[8, 9]]))
    only_target = model(torch.tensor([[6, 7, 8]]), torch.tensor([[5, 9]]))
    with torch.no_grad():
        model.embedding.weight[5] -= 1.0
    assert not torch.allclose(only_source, model(torch.tensor([[5, 6, 7]]), torch.tensor([[8, 9]])))
    assert not torch.allclose(only_target, model(torch.tensor([[6, 7, 8]]), torch.tensor([[5, 9]])))
    torch.testing.assert_close(model(tokens(1, 4), tokens(1, 3, seed=2)), before)


def test_initial_weights_are_uniform_within_a_tenth() -> None:
    torch.manual_seed(0)
    model = gnmt.build(hidden=64, vocabulary=999, padding=0)
    for name, parameter in model.named_parameters():
        if ".bias_hh" in name or name == "attention.bias":
            assert not parameter.any()
        elif name == "attention.scale":
            assert parameter.tolist() == [64**-0.5]
        else:
            assert parameter.abs().max() <= 0.1
            # a uniform distribution's deviation is its half width / sqrt(3); 64 draws at least
            assert float(parameter.detach().std()) == pytest.approx(0.1 / 3**0.5, rel=0.25)


def stepwise(model: gnmt.GNMT, source: list[int], target: list[int]) -> Tensor:
    """Logits [target, vocabulary] of one pair by plain formulas, a token at a time."""
    hidden = model.embedding.embedding_dim

    def cell(
        lstm: nn.LSTM, x: Tensor, state: tuple[Tensor, Tensor], suffix: str = ""
    ) -> tuple[Tensor, Tensor]:
        w, u, a, b = (
            getattr(lstm, f"{kind}_l0{suffix}")
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        i, f, g, o = (w @ x + a + u @ state[0] + b).split(hidden)
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    def run(lstm: nn.LSTM, inputs: list[Tensor], suffix: str = "") -> list[Tensor]:
        state, outputs = (torch.zeros(hidden), torch.zeros(hidden)), []
        for x in inputs:
            state = cell(lstm, x, state, suffix)
            outputs.append(state[0])
        return outputs

    words = [model.embedding.weight[token] for token in source]
    forward = run(model.encoder[0], words)
    backward = run(model.encoder[0], words[::-1], "_reverse")[::-1]
    states = [torch.cat(both) for both in zip(forward, backward, strict=True)]
    states = run(model.encoder[1], states)
    for lstm in model.encoder[2:]:  # residual from the third LSTM on
        states = [x + y for x, y in zip(states, run(lstm, states), strict=True)]

    attention = model.attention
    direction = attention.vector / attention.vector.norm()
    past = [(torch.zeros(hidden), torch.zeros(hidden)) for _ in model.decoder]
    logits = []
    for token in target:
        past[0] = cell(model.decoder[0], model.embedding.weight[token], past[0])
        x = past[0][0]
        query = attention.query.weight @ x
        energies = [query + attention.key.weight @ s + attention.bias for s in states]
        scores = [attention.scale * (direction @ energy.tanh()) for energy in energies]
        weights = torch.cat(scores).softmax(0)
        context = sum(weight * s for weight, s in zip(weights, states, strict=True))
        past[1] = cell(model.decoder[1], torch.cat([x, context]), past[1])
        x = past[1][0]
        for index in range(2, len(model.decoder)):
            past[index] = cell(model.decoder[index], torch.cat([x, context]), past[index])
            x = x + past[index][0]
        logits.append(model.classifier.weight @ x + model.classifier.bias)
    return torch.stack(logits)


@pytest.mark.parametrize("layers", [3, 4])
def test_logits_are_those_of_the_plain_formulas(layers: int) -> None:
    model, source, target = tiny(layers=layers), tokens(2, 5), tokens(2, 6, seed=2)
    with torch.no_grad():  # a bias and a scale that matter
        model.attention.bias.copy_(torch.linspace(-1, 1, 8))
        model.attention.scale.fill_(3.0)
        for parameter in model.parameters():
            parameter.mul_(5)
    pairs = zip(source.tolist(), target.tolist(), strict=True)
    expected = [stepwise(model, *pair) for pair in pairs]
    torch.testing.assert_close(model(source, target), torch.stack(expected))


def test_decoding_a_token_at_a_time_gives_the_logits_and_attention_of_a_full_pass() -> None:
    model, source, target = tiny(), tokens(3, 5), tokens(3, 6, seed=2)
    logits, attention = model.decode_with_attention(target, model.start(source))
    state = model.start(source)
    steps = [model.decode_with_attention(target[:, i : i + 1], state) for i in range(6)]
    torch.testing.assert_close(torch.cat([step[0] for step in steps], dim=1), logits)
    torch.testing.assert_close(torch.cat([step[1] for step in steps], dim=1), attention)
    torch.testing.assert_close(model(source, target), logits)
    torch.testing.assert_close(attention.sum(dim=2), torch.ones(3, 6))


def test_selected_rows_go_on_as_if_alone() -> None:
    model, source, target = tiny(), tokens(3, 5), tokens(3, 4, seed=2)
    state = model.start(source)
    model.decode(target[:, :2], state)
    state.select(torch.tensor([2, 0, 2]))
    after = model.decode(target[[2, 0, 2], 2:], state)
    torch.testing.assert_close(after, model(source, target)[[2, 0, 2], 2:])


def test_a_later_target_token_does_not_change_earlier_logits() -> None:
    model, source, target = tiny(), tokens(2, 5), tokens(2, 6, seed=2)
    changed = target.clone()
    changed[:, 4] = 3 + (changed[:, 4] - 2) % 17
    before, after = model(source, target), model(source, changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_padding_of_the_source_changes_nothing_and_gets_no_attention() -> None:
    model, source, target = tiny(), tokens(3, 5), tokens(3, 6, seed=2)
    source[1, 2:] = PADDING  # rows of 5, 2 and 5 tokens, not sorted by length
    padded = functional.pad(source, (0, 3), value=PADDING)
    logits, attention = model.decode_with_attention(target, model.start(padded))
    torch.testing.assert_close(logits, model(source, target))
    torch.testing.assert_close(logits[1:2], model(source[1:2, :2], target[1:2]))
    assert not attention[1, :, 2:].any() and not attention[:, :, 5:].any()


def test_padding_before_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match="pad sources at their end only"):
        tiny().start(torch.tensor([[5, PADDING, 6]]))


def test_dropout_strikes_the_input_of_every_lstm_and_nothing_else() -> None:
    model, struck = tiny(dropout=0.9).train(), []

    def count(_: nn.Module, inputs: tuple) -> None:
        struck.append(float((inputs[0].data == 0).float().mean()))  # .data: the first is packed

    for lstm in [*model.encoder, *model.decoder]:
        lstm.register_forward_pre_hook(count)
    model(tokens(4, 9), tokens(4, 9, seed=2))
    assert len(struck) == 8 and min(struck) > 0.7
    seen = []
    model.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(tokens(4, 9), tokens(4, 9, seed=2))
    assert seen[0].all()


def test_every_weight_gets_a_gradient_in_training() -> None:
    model = tiny(dropout=0.2).train()
    model(tokens(2, 5), tokens(2, 4, seed=2)).log_softmax(-1)[..., 3].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(("depth", "layers"), [(0.125, 3), (1.0, 4), (2.0, 8)])
def test_width_and_depth_scale_it_and_leave_a_residual(depth: float, layers: int) -> None:
    with torch.device("meta"):
        model = gnmt.build(vocabulary=100, padding=0, width=0.125, depth=depth)
    assert model.embedding.embedding_dim == 128
    assert len(model.encoder) == len(model.decoder) == layers


@pytest.mark.parametrize("wrong", [{"layers": 2}, {"padding": 10}, {"width": 0.0}])
def test_wrong_sizes_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
        gnmt.build(**{"vocabulary": 10, "padding": 0} | wrong)


def test_rule_c4_plus_prunes_gates_projections_and_classifier_and_nothing_else() -> None:
    with torch.device("meta"):
        model = gnmt.build(vocabulary=32320, padding=0)
    layers = sparsity.explain(model, "c4+")
    eligible = [layer for layer in layers if layer.eligible]
    # networks.csv, row 29: 35,192,832 in three linear layers and 92,274,688 in gates
    assert sum(torch.Size(layer.shape).numel() for layer in eligible) == 127_467_520
    # 9 LSTMs, one direction each has two matrices: 4 + 1 backward in the encoder, 4 in the decoder
    assert len(eligible) == 9 * 2 + 3
    dense = {name for name, _ in model.named_parameters()} - {layer.name for layer in eligible}
    assert {name for name in dense if "bias" not in name} == {
        "embedding.weight",
        "attention.vector",
        "attention.scale",
    }


def test_pruned_gates_stay_zero_through_training() -> None:
    model = tiny(dropout=0.2).train()
    masks = sparsity.prune(model, rule="c4+")
    gate = "encoder.0.weight_hh_l0_reverse"
    assert gate in masks and masks.density() == 0.5
    assert sparsity.is_nm(model.encoder[0].weight_hh_l0_reverse, 2, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    held = hold(masks, model, optimizer)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for step in range(3):
        source, target = tokens(4, 5, seed=step), tokens(4, 6, seed=step + 9)
        logits = model(source, target[:, :-1])
        functional.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten()).backward()
        held.mask_gradients()
        nn.utils.clip_grad_norm_(model.parameters(), 0.2)
        optimizer.step()
        optimizer.zero_grad()
        masks.verify(model)
    for name, mask in masks.items():
        parameter = model.get_parameter(name)
        assert not torch.equal(parameter, before[name])  # trained, and the forward pass uses it
        assert parameter.masked_fill(mask, 0).count_nonzero() == 0
    trained = model.eval()(tokens(2, 5), tokens(2, 4))
    with torch.no_grad():
        model.get_parameter(gate).fill_(9.0)
    with pytest.raises(ValueError, match=gate):
        masks.verify(model)
    assert not torch.equal(model(tokens(2, 5), tokens(2, 4)), trained)
