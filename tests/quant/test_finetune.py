"""Quantization-aware training: gradients by hand, masks held, scales frozen or learned."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from workbench import quant
from workbench.quant.finetune import rounded
from workbench.sparsity import hold, prune


def test_the_gradient_passes_inside_of_the_range_and_not_beyond() -> None:
    values = torch.tensor([-130.0, -127.0, -0.4, 0.0, 63.5, 127.0, 128.0], requires_grad=True)
    grid = rounded(values, torch.tensor(1.0))
    assert grid.tolist() == [-127, -127, 0, 0, 64, 127, 127]  # half to even
    grid.sum().backward()
    assert values.grad.tolist() == [0, 1, 1, 1, 1, 1, 0]


def test_a_learned_scale_gets_lsqs_gradient() -> None:
    scale = torch.tensor(0.5, requires_grad=True)
    values = torch.tensor([0.6, -0.2, 100.0, -100.0])
    rounded(values, scale).sum().backward()
    # Esser et al., equation 3: round(v / s) - v / s inside, +-127 beyond: (1 - 1.2) + (0 + 0.4)
    assert scale.grad.item() == pytest.approx(-0.2 + 0.4 + 127 - 127)


@pytest.fixture
def pruned():
    """A pruned network, its masks, and inputs with targets."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    return model, prune(model), torch.randn(64, 16), torch.randn(64, 4)


def trained(model: nn.Module, masks, rounding: quant.Finetuning, data: tuple) -> list[float]:
    values, targets = data
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    held, losses = hold(masks, model, optimizer), []
    with rounding:
        for _ in range(30):
            loss = (model(values) - targets).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    held.remove()
    return losses


@pytest.mark.parametrize("learned", [False, True])
def test_training_lowers_the_loss_and_keeps_the_zeros(
    learned: bool, pruned: tuple, calibrated: Callable
) -> None:
    model, masks, *data = pruned
    start = calibrated(model, data[0])
    names = set(model.state_dict())
    rounding = quant.Finetuning(model, start, learned)
    losses = trained(model, masks, rounding, data)
    assert losses[-1] < 0.9 * losses[0]
    ranges, scales = rounding.scales()
    assert set(model.state_dict()) == names  # learned scales are gone from the model
    moved = [ranges[site] / 127 != pytest.approx(s) for site, s in start.input_scales.items()]
    assert moved == [learned, learned]
    assert all(torch.equal(scales[n], s) != learned for n, s in start.scales.items())
    end = quant.quantize(model, ranges, scales=scales)
    counted = quant.zeros(end, masks)
    assert counted["pruned_not_zero"] == 0 and counted["layers_2to4"] == 2
    with torch.no_grad(), quant.Simulated(model, end):
        judged = (model(data[0]) - data[1]).square().mean().item()
    assert judged == pytest.approx(losses[-1], rel=0.05)  # trained as it is judged


def test_training_rounds_as_the_integers_do(calibrated: Callable, pruned: tuple) -> None:
    model, _, values, _ = pruned
    start = calibrated(model, values)
    with torch.no_grad():
        with quant.Finetuning(model, start, learned=False):
            trained_like = model(values)
        with quant.Simulated(model, start):
            torch.testing.assert_close(trained_like, model(values), rtol=1e-5, atol=1e-5)


def test_recurrent_layers_and_attention_train_too(calibrated: Callable) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 8, batch_first=True)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            states = self.lstm(values)[0]
            return nn.functional.scaled_dot_product_attention(states, states, states)

    torch.manual_seed(0)
    model, values = Net(), torch.randn(2, 5, 8)
    start = calibrated(model, values)
    with quant.Finetuning(model, start, learned=True) as rounding:
        output = model(values)
        output.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    rounding.scales()
    with torch.no_grad(), quant.Simulated(model, start):
        torch.testing.assert_close(output.detach(), model(values), rtol=1e-4, atol=1e-5)


def test_a_scale_that_left_the_positive_numbers_is_refused(calibrated, pruned) -> None:
    model, _, values, _ = pruned
    rounding = quant.Finetuning(model, calibrated(model, values), learned=True)
    model.int8_ratio1.data.fill_(-0.1)
    with pytest.raises(quant.QuantError, match="learned scales of 0 are negative.*lr_share"):
        rounding.scales()


def test_a_step_of_sgd_is_a_step_of_the_range(calibrated: Callable) -> None:
    torch.manual_seed(0)
    model, values = nn.Sequential(nn.Linear(4, 1, bias=False)), torch.randn(3, 4)
    start = calibrated(model, values)
    rounding = quant.Finetuning(model, start, learned=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with rounding:
        model(values).sum().backward()
    optimizer.step()
    scale = torch.tensor(start.input_scales["0"], requires_grad=True)
    weight = rounded(
        model[0].weight.detach() + 0.01 * model[0].weight.grad, start.scales["0.weight"]
    )
    nn.functional.linear(rounded(values, scale), weight).sum().backward()
    expected = 127 * scale.item() - 0.01 * scale.grad.item() / 127  # range = 127 scale
    ranges, _ = rounding.scales()
    assert ranges["0"] == pytest.approx(expected, rel=1e-6) != pytest.approx(127 * scale.item())
