"""What holding does to gradients and to the state of optimizers, dense or resumed."""

import pytest
import torch
from torch import nn, optim

from tests.sparsity.held import OPTIMIZERS, network, train
from workbench.sparsity import hold, mask_gradients, prune


def largest_pruned_state(masks, model, optimizer) -> float:
    largest = 0.0
    for name, mask in masks.items():
        for value in optimizer.state[model.get_parameter(name)].values():
            if torch.is_tensor(value) and value.shape == mask.shape:
                largest = max(largest, value[~mask].abs().max().item())
    return largest


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
def test_state_of_pruned_weights_is_zero_even_when_the_dense_phase_left_some(name):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer)
    masks = prune(model)
    assert largest_pruned_state(masks, model, optimizer) > 0
    hold(masks, model, optimizer)
    assert largest_pruned_state(masks, model, optimizer) == 0
    train(model, optimizer)
    assert largest_pruned_state(masks, model, optimizer) == 0


def test_a_dense_state_loaded_later_is_masked_too():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    train(model, optimizer)
    dense_state = optimizer.state_dict()
    masks = prune(model)
    again = OPTIMIZERS["sgd"](model.parameters())
    hold(masks, model, again)
    again.load_state_dict(dense_state)
    assert largest_pruned_state(masks, model, again) == 0
    assert again.state[model[3].weight]["momentum_buffer"].count_nonzero() > 0


def test_a_resumed_run_ends_bit_equal():
    def start():
        model = network()
        masks = prune(model)
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        hold(masks, model, optimizer)
        return model, optimizer

    straight, optimizer = start()
    train(straight, optimizer, 2)
    train(straight, optimizer, 2)
    half, optimizer = start()
    train(half, optimizer, 2)
    resumed, fresh_optimizer = start()
    resumed.load_state_dict(half.state_dict())
    fresh_optimizer.load_state_dict(optimizer.state_dict())
    train(resumed, fresh_optimizer, 2)
    assert all(map(torch.equal, straight.parameters(), resumed.parameters()))


def test_a_param_group_added_later_is_held():
    model = network()
    masks = prune(model)
    optimizer = optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9)
    hold(masks, model, optimizer)
    train(model, optimizer)
    optimizer.add_param_group({"params": model[3].parameters(), "weight_decay": 0.1})
    train(model, optimizer)
    masks.verify(model)
    assert largest_pruned_state(masks, model, optimizer) == 0


def test_lbfgs_and_other_closures_see_masked_gradients():
    model = network()
    masks = prune(model)
    optimizer = optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    hold(masks, model, optimizer)
    examples = torch.randn(2, 4, 4, 4)

    def closure():
        optimizer.zero_grad()
        loss = (model(examples) - 1).square().sum()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    masks.verify(model)
    flat = optimizer.state[model[0].weight]["prev_flat_grad"][: model[0].weight.numel()]
    assert flat.view_as(model[0].weight)[~masks["0.weight"]].abs().max() == 0
    assert optimizer.step(closure=closure) < first
    masks.verify(model)


def test_a_step_skipped_by_the_grad_scaler_leaves_the_weights_as_they_are():
    model = network()
    masks = prune(model)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    hold(masks, model, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = model[3].weight.detach().clone()
    for value, stepped in ((float("inf"), False), (1.0, True)):
        optimizer.zero_grad()
        scaler.scale(model(torch.full((2, 4, 4, 4), value)).square().sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(before, model[3].weight) is not stepped
        masks.verify(model)


def test_clipping_after_mask_gradients_measures_only_kept_weights():
    model = network()
    masks = prune(model)
    handle = hold(masks, model, OPTIMIZERS["sgd"](model.parameters()))
    for mask_now in (lambda: mask_gradients(masks, model), handle.mask_gradients):
        model.zero_grad()
        model(torch.ones(2, 4, 4, 4)).square().sum().backward()
        kept = sum(
            (p.grad[masks[n]] if n in masks else p.grad).square().sum()
            for n, p in model.named_parameters()
        ).sqrt()
        dense = nn.utils.get_total_norm([p.grad for p in model.parameters()])
        mask_now()
        masked = nn.utils.get_total_norm([p.grad for p in model.parameters()])
        assert torch.isclose(masked, kept)
        assert masked < dense
