"""Held weights: zero after every step, under any optimizer, wrapper and average."""

import pytest
import torch
from torch import nn, optim

from tests.sparsity.held import OPTIMIZERS, network, train
from workbench.sparsity import hold, prune, prune_trained_model


@pytest.mark.parametrize("dense_first", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("scale", [None, 4.0])
@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_are_zero_after_every_step_and_kept_weights_move(
    name, clip, scale, accumulate, dense_first
):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=scale) if scale else None
    if dense_first:
        train(model, optimizer)
    masks = prune(model)
    before = model[3].weight.detach().clone()
    hold(masks, model, optimizer)
    for _ in range(2):
        train(model, optimizer, 1, clip, scaler, accumulate)
        masks.verify(model)
    moved = (model[3].weight != before)[masks["3.weight"]]
    assert moved.all()
    assert model[3].weight.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["sgd", "adamw", "rmsprop"])
def test_models_of_other_precisions_are_held(name, dtype):
    model = network().to(dtype)
    optimizer = OPTIMIZERS[name](model.parameters())
    masks = prune_trained_model(model, optimizer)
    train(model, optimizer, dtype=dtype)
    masks.verify(model)
    assert masks.density() == 0.5


def test_the_fp32_masters_of_a_16_bit_model_decide_are_zeroed_and_are_held():
    model = network().bfloat16()
    name, weight = "3.weight", model[3].weight
    # 1 and 1 + 2^-10 are the same in bf16: the masters know that the last two are larger
    master = torch.tensor([1.0, 1.0, 1 + 2**-10, 1 + 2**-10]).repeat(4, 8).requires_grad_()
    with torch.no_grad():
        weight.copy_(master)
    optimizer = optim.SGD([master], lr=0.1, momentum=0.9, weight_decay=0.1)
    masks = prune_trained_model(model, optimizer, masters={name: master})
    assert masks[name].view(-1, 4).tolist() == [[False, False, True, True]] * 32
    for _ in range(2):
        train(model, optim.SGD([model[0].weight], lr=0.0), 1, dtype=torch.bfloat16)
        master.grad = weight.grad.float()
        optimizer.step()
        assert not master[~masks[name]].any()
        with torch.no_grad():
            weight.copy_(master)
        masks.select([name]).verify(model)
    with pytest.raises(ValueError, match="unknown parameter in the masters.*3.wieght"):
        hold(masks, model, optimizer, masters={"3.wieght": master})


def test_several_optimizers_of_one_model_are_held_by_one_call():
    model = network()
    both = [optim.SGD(model[0].parameters(), lr=0.1), optim.AdamW(model[3].parameters(), lr=0.1)]
    masks = prune_trained_model(model, both)
    for optimizer in both:
        train(model, optimizer)
    masks.verify(model)


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_an_average_of_held_weights_keeps_their_zeros(kind):
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    masks = prune_trained_model(model, optimizer)
    average = optim.swa_utils.get_ema_multi_avg_fn(0.9) if kind == "ema" else None
    averaged = optim.swa_utils.AveragedModel(model, multi_avg_fn=average)
    for _ in range(3):
        train(model, optimizer, 1)
        averaged.update_parameters(model)
    masks.verify(averaged)
    assert not torch.equal(averaged.module[3].weight, model[3].weight)


def test_an_average_begun_before_pruning_forgets_what_was_pruned_once_the_masks_are_applied():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    averaged = optim.swa_utils.AveragedModel(
        model, multi_avg_fn=optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    averaged.update_parameters(model)
    masks = prune_trained_model(model, optimizer)
    with pytest.raises(ValueError, match="outside the mask in 2 layers"):
        masks.verify(averaged)
    masks.apply(averaged)
    train(model, optimizer)
    averaged.update_parameters(model)
    masks.verify(averaged)


def test_a_weight_that_was_replaced_after_holding_is_held():
    # as sharding and assignment do: sparseml lost its masks to dead references (issue 1807)
    model = network()
    masks = prune(model)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    hold(masks, model, optimizer)
    model[3].weight = nn.Parameter(torch.ones(4, 32))
    optimizer.add_param_group({"params": [model[3].weight]})
    train(model, optimizer)
    masks.verify(model)


def test_a_compiled_or_parallel_model_is_pruned_under_its_own_names():
    model = network()
    compiled = torch.compile(model, backend="eager")
    optimizer = optim.SGD(compiled.parameters(), lr=0.1)
    masks = prune_trained_model(compiled, optimizer)
    assert list(masks) == ["0.weight", "3.weight"]
    train(compiled, optimizer)
    masks.verify(model)
    masks.verify(nn.DataParallel(model))


def test_two_models_and_two_optimizers_live_side_by_side():
    first, second = network(), network()
    masks = [prune(model) for model in (first, second)]
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


def test_removing_the_hold_lets_the_weights_go():
    model = network()
    masks = prune(model)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    handle = hold(masks, model, optimizer)
    handle.remove()
    train(model, optimizer)
    with pytest.raises(ValueError, match="non-zero weights outside the mask in 2 layers"):
        masks.verify(model)


def test_an_accelerate_wrapped_optimizer_is_held_before_and_after_wrapping():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    for wrap_first in (True, False):
        model = network()
        masks = prune(model)
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
    masks = prune(model)
    with pytest.raises(ValueError, match="steps none of the 2 masked weights"):
        hold(masks, model, optim.SGD(other.parameters(), lr=0.1))


def test_holding_unpruned_weights_prunes_them_at_once():
    model = network()
    masks = prune(network())
    hold(masks, model, OPTIMIZERS["sgd"](model.parameters()))
    masks.verify(model)


def test_empty_masks_hold_nothing():
    model, reference = network(), network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    hold(prune(model, {"kind": "none"}), model, optimizer)
    train(model, optimizer)
    train(reference, OPTIMIZERS["sgd"](reference.parameters()))
    assert all(map(torch.equal, model.parameters(), reference.parameters()))
