import pytest
import torch
from torch import nn, optim

from workbench.sparsity import hold, mask_gradients, prune

TWO_OF_FOUR = {"kind": "nm", "keep": 2, "of": 4}

OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": lambda p: optim.Adam(p, lr=0.01, weight_decay=1e-2, amsgrad=True),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, weight_decay=1e-2),
    "adam_without_eps": lambda p: optim.Adam(p, lr=0.01, eps=0.0),
    "adam_fused": lambda p: optim.Adam(p, lr=0.01, fused=True),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.9, weight_decay=1e-2, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.01),
    "adadelta": lambda p: optim.Adadelta(p),
    "rprop": lambda p: optim.Rprop(p, lr=0.01),
    "adafactor": lambda p: optim.Adafactor(p, lr=0.01),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(32, 4))


def train(model, optimizer, steps=3, clip=None, masks=None):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(2, 4, 4, 4, generator=generator)).square().sum().backward()
        if masks is not None:
            mask_gradients(masks, model)
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()


def largest_pruned_state(masks, model, optimizer) -> float:
    largest = 0.0
    for name, mask in masks.items():
        for value in optimizer.state[model.get_parameter(name)].values():
            if torch.is_tensor(value) and value.shape == mask.shape:
                largest = max(largest, value[~mask].abs().max().item())
    return largest


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_stay_zero_and_kept_weights_move(name, clip):
    model = network()
    masks = prune(model, TWO_OF_FOUR)
    before = model[3].weight.detach().clone()
    optimizer = OPTIMIZERS[name](model.parameters())
    hold(masks, model, optimizer)
    train(model, optimizer, clip=clip)
    masks.verify(model)
    moved = (model[3].weight != before)[masks["3.weight"]]
    assert moved.all()
    assert model[3].weight.isfinite().all()


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
def test_state_of_pruned_weights_is_zero_even_when_the_dense_phase_left_some(name):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer)
    masks = prune(model, TWO_OF_FOUR)
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
    masks = prune(model, TWO_OF_FOUR)
    again = OPTIMIZERS["sgd"](model.parameters())
    hold(masks, model, again)
    again.load_state_dict(dense_state)
    assert largest_pruned_state(masks, model, again) == 0
    assert again.state[model[3].weight]["momentum_buffer"].count_nonzero() > 0


def test_a_resumed_run_ends_bit_equal():
    def start():
        model = network()
        masks = prune(model, TWO_OF_FOUR)
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
    masks = prune(model, TWO_OF_FOUR)
    optimizer = optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9)
    hold(masks, model, optimizer)
    train(model, optimizer)
    optimizer.add_param_group({"params": model[3].parameters(), "weight_decay": 0.1})
    train(model, optimizer)
    masks.verify(model)
    assert largest_pruned_state(masks, model, optimizer) == 0


def test_two_models_and_two_optimizers_live_side_by_side():
    first, second = network(), network()
    masks = [prune(model, TWO_OF_FOUR) for model in (first, second)]
    sgd = optim.SGD(first.parameters(), lr=0.1)
    adam = optim.Adam(second[0].parameters(), lr=0.1)
    adamw = optim.AdamW(second[3].parameters(), lr=0.1)
    hold(masks[0], first, sgd)
    hold(masks[1], second, adam)
    hold(masks[1], second, adamw)
    train(first, sgd)
    train(second, adam)
    train(second, adamw)
    masks[0].verify(first)
    masks[1].verify(second)


def test_lbfgs_and_other_closures_see_masked_gradients():
    model = network()
    masks = prune(model, TWO_OF_FOUR)
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


def test_removing_the_hold_lets_the_weights_go():
    model = network()
    masks = prune(model, TWO_OF_FOUR)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    handle = hold(masks, model, optimizer)
    handle.remove()
    train(model, optimizer)
    with pytest.raises(ValueError, match="non-zero weights outside the mask in 2 layers"):
        masks.verify(model)


def test_a_step_skipped_by_the_grad_scaler_leaves_the_weights_as_they_are():
    model = network()
    masks = prune(model, TWO_OF_FOUR)
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


def test_an_accelerate_wrapped_optimizer_is_held_before_and_after_wrapping():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    for wrap_first in (True, False):
        model = network()
        masks = prune(model, TWO_OF_FOUR)
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        if wrap_first:
            optimizer = accelerator.prepare(optimizer)
            hold(masks, model, optimizer)
        else:
            hold(masks, model, optimizer)
            optimizer = accelerator.prepare(optimizer)
        train(model, optimizer)
        masks.verify(model)


def test_an_optimizer_of_another_model_is_refused():
    model, other = network(), network()
    masks = prune(model, TWO_OF_FOUR)
    with pytest.raises(ValueError, match="steps none of the 2 masked weights"):
        hold(masks, model, optim.SGD(other.parameters(), lr=0.1))


def test_clipping_after_mask_gradients_measures_only_kept_weights():
    model = network()
    masks = prune(model, TWO_OF_FOUR)
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


def test_holding_unpruned_weights_prunes_them_at_once():
    model = network()
    masks = prune(network(), TWO_OF_FOUR)
    hold(masks, model, OPTIMIZERS["sgd"](model.parameters()))
    masks.verify(model)


def test_empty_masks_hold_nothing():
    model, reference = network(), network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    hold(prune(model, {"kind": "none"}), model, optimizer)
    train(model, optimizer)
    train(reference, OPTIMIZERS["sgd"](reference.parameters()))
    assert all(map(torch.equal, model.parameters(), reference.parameters()))
